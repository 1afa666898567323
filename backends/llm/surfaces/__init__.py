"""The bodies that clients send and the replies that they expect, one file for each surface.

A surface reads a body into an `Asked` and brings the `Renderer` of its reply; it refuses every
field that it would have to ignore.
"""
