"""Structured output: which tokens keep an answer inside a regex, a JSON Schema or plain JSON.

    regex, schema → grammar (forms, rules) → program (byte NFA with calls) → automaton (states as
    they are met) → token masks (packed bits, cached by state)

Invariant throughout: a state that is kept can be completed, so an answer never gets stuck.
"""
