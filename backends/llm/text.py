"""What the text side knows of one version: its tokenizer, its chat template, its limits.

Owns the reading of a checkpoint's `model/` folder, as Hugging Face lays it out. Immutable and
shared by all requests of the version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import xxhash

from backends.llm.errors import BadRequest, BadTokenizer, ContextTooLong
from backends.llm.special_tokens import Seals
from backends.llm.structured.vocabulary import Vocabulary
from backends.llm.template import ChatTemplate
from backends.llm.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TextModel:
    """`stop_ids` end an answer; `max_context` is of prompt and answer together; `vocabulary` has
    as many tokens as the model has logits. `identity`: equal where tokens mean the same."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    stop_ids: frozenset[int]
    max_context: int
    vocabulary: Vocabulary
    identity: str = ""

    @classmethod
    def load(cls, folder: Path, max_context: int) -> TextModel:
        """Raises BadTokenizer."""
        tokenizer, template = Tokenizer.load(folder), ChatTemplate.load(folder)
        if template is not None and template.tools is not None:
            tokenizer.reveal(*template.tools.marks)
        config = _json(folder / "config.json")
        size = config.get("vocab_size", len(tokenizer.pieces))
        if not isinstance(size, int) or not 0 < size <= 1 << 24:
            raise BadTokenizer(f"{folder}/config.json: vocab_size is {size!r}")
        stop_ids = _stop_ids(folder, config, tokenizer, size)
        return cls(
            tokenizer=tokenizer,
            template=template,
            stop_ids=stop_ids,
            max_context=max_context,
            vocabulary=Vocabulary(tokenizer.pieces[:size], size, stop_ids),
            identity=xxhash.xxh3_128_hexdigest((folder / "tokenizer.json").read_bytes()),
        )

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        param: str,
        extra: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The prompt of a conversation, up to where the assistant speaks. Control tokens in it are
        the template's: their names in what a client says are text. Raises BadRequest, ModelFailed
        or ContextTooLong."""
        assert self.template is not None
        said = Seals(self.tokenizer.control)
        mine = said.seal_all(list(messages), param)
        offered = said.seal_all(list(tools), "tools")
        more = said.seal_all(dict(extra or {}), "chat_template_kwargs")
        try:
            text = self.template.render(mine, offered or None, more)
        except BadRequest as error:
            at_fault = param if error.param == "messages" else error.param
            raise BadRequest(said.unseal(error.message), param=at_fault) from error
        return self.encode(text, param, special=False, said=said)

    def encode(
        self, text: str, param: str, *, special: bool, said: Seals | None = None
    ) -> list[int]:
        """What cannot fit is not even tokenised: that would take minutes and gigabytes, and hold
        up everybody's streams. Raises ContextTooLong."""
        most = self.max_context * self.tokenizer.longest
        size = len(text) if len(text) > most else len(text.encode())
        if size > most:
            raise ContextTooLong(
                f"This model's maximum context length is {self.max_context} tokens. However, you "
                f"sent more than {most} bytes in the {param}, which are more tokens than that. "
                f"Please reduce the length of the {param}.",
                param=param,
            )
        return self.tokenizer.encode(text, special=special, said=said)

    def room(self, prompt: int, asked: int | None, param: str) -> int:
        """How many tokens may be generated after `prompt` ones. Raises ContextTooLong."""
        limit = self.max_context
        if prompt + (1 if asked is None else asked) > limit:
            wanted = prompt + (asked or 0)
            raise ContextTooLong(
                f"This model's maximum context length is {limit} tokens. However, you requested "
                f"{wanted} tokens ({prompt} in the {param}, {asked or 0} in the completion). "
                f"Please reduce the length of the {param} or completion.",
                param=param,
            )
        return limit - prompt if asked is None else asked


def _stop_ids(
    folder: Path, config: dict[str, Any], tokenizer: Tokenizer, size: int
) -> frozenset[int]:
    found: set[int] = set()
    for source in (_json(folder / "generation_config.json"), config):
        ids = source.get("eos_token_id")
        found.update(id for id in (ids if isinstance(ids, list) else [ids]) if type(id) is int)
    eos = _json(folder / "tokenizer_config.json").get("eos_token")
    name = eos.get("content") if isinstance(eos, dict) else eos
    if isinstance(name, str) and (id := tokenizer.id_of(name)) is not None:
        found.add(id)
    return frozenset(id for id in found if 0 <= id < size)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BadTokenizer(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise BadTokenizer(f"{path} is no JSON object")
    return value
