"""The grammars in use: compiled once, shared by all requests that ask for the same.

Owns the bounded cache from what clients send to automata. Called on the threads that prepare
requests; what it returns makes masks on the device thread.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from backends.llm.errors import BadGrammar
from backends.llm.structured.automaton import Automaton
from backends.llm.structured.call_grammar import Callee, Writing, call_grammar
from backends.llm.structured.grammar import Grammar
from backends.llm.structured.json_grammar import json_object
from backends.llm.structured.mask import GrammarMask, MaskCache
from backends.llm.structured.program import Program
from backends.llm.structured.regex import parse_regex
from backends.llm.structured.schema import schema_grammar
from backends.llm.structured.vocabulary import Vocabulary

MAX_KEPT = 64
# Larger ones are refused: compiling them would hold up others.
MAX_SOURCE = 64 * 1024

Masks = Callable[[], GrammarMask]


class Grammars:
    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, str, bytes], tuple[Vocabulary, Automaton]] = (
            OrderedDict()
        )
        self._caches: OrderedDict[int, tuple[Vocabulary, MaskCache]] = OrderedDict()
        self._lock = threading.Lock()

    def json(self, vocabulary: Vocabulary) -> Masks:
        """Any JSON object."""
        return self._masks(vocabulary, "json", b"", json_object)

    def regex(self, vocabulary: Vocabulary, pattern: str, param: str) -> Masks:
        """Raises BadGrammar."""
        source = _encoded(pattern, param)
        return self._named(
            param,
            lambda: self._masks(
                vocabulary, "regex", source, lambda: Grammar(parse_regex(pattern), {})
            ),
        )

    def schema(self, vocabulary: Vocabulary, schema: Any, param: str) -> Masks:
        """JSON that the schema accepts. Raises BadGrammar."""
        source = _encoded(schema, param)
        return self._named(
            param,
            lambda: self._masks(vocabulary, "schema", source, lambda: schema_grammar(schema)),
        )

    def calls(
        self,
        vocabulary: Vocabulary,
        tools: Sequence[Callee],
        writing: Writing,
        *,
        must: bool,
        most: int | None,
    ) -> Masks:
        """An answer whose calls have the forms of their tools. Raises BadGrammar."""
        source = _encoded([tools, writing, must, most], "tools")
        return self._masks(
            vocabulary,
            "calls",
            source,
            lambda: call_grammar(tools, writing, must=must, most=most),
        )

    def _named(self, param: str, make: Callable[[], Masks]) -> Masks:
        try:
            return make()
        except BadGrammar as error:
            raise BadGrammar(f"{param}: {error.message}", param=param) from error

    def _masks(
        self, vocabulary: Vocabulary, kind: str, source: bytes, build: Callable[[], Grammar]
    ) -> Masks:
        key = (id(vocabulary), kind, source)
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None and not kept[1].worn:
                self._kept.move_to_end(key)
                automaton = kept[1]
            else:
                automaton = None
        if automaton is None:
            automaton = Automaton(Program(build()))
        with self._lock:
            self._kept[key] = (vocabulary, automaton)
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
            cache = self._cache(vocabulary)
        return lambda: GrammarMask(automaton, vocabulary, cache)

    def _cache(self, vocabulary: Vocabulary) -> MaskCache:
        _, cache = self._caches.setdefault(id(vocabulary), (vocabulary, MaskCache()))
        self._caches.move_to_end(id(vocabulary))
        while len(self._caches) > 4:  # versions that are not served any more
            self._caches.popitem(last=False)
        return cache


def _encoded(source: Any, param: str) -> bytes:
    """The source as a key. Property order matters: it is the order of the answer."""
    try:
        data = orjson.dumps(source)
    except TypeError as error:  # of what came as JSON, only too deep a nesting
        raise BadGrammar(f"{param}: it is nested too deeply", param=param) from error
    if len(data) > MAX_SOURCE:
        raise BadGrammar(f"{param}: it has {len(data)} bytes, {MAX_SOURCE} at most", param=param)
    return data
