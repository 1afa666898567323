"""The prompts of a task: texts of everyday words, cut to one length in tokens.

Owns their making from a seed. No two tasks have a prompt in common: what a server remembers of an
earlier one helps it nowhere.
"""

from __future__ import annotations

import random
from pathlib import Path

from tokenizers import Tokenizer

from bench.generators import Task

_TEXT = (
    "river water tower valley engine copper garden winter letter market stone bridge forest "
    "signal harbour window teacher village captain journey mountain paper silver morning story "
    "kitchen summer doctor island machine station yellow orange bread music number question "
    "answer weather history science country people children family animal money power light "
    "because although while after before under over between without through quickly slowly "
    "carries builds finds reads writes opens closes watches follows remembers explains the a "
    "old new small large quiet bright deep narrow honest careful early late never often"
)
WORDS = tuple(_TEXT.split())


class Prompts:
    def __init__(self, folder: Path, seed: int) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._seed = seed

    def task(self, name: str, count: int, *, shared: int, own: int, tokens: int) -> Task:
        """`name` stands for the task: another one gives other prompts."""
        chance = random.Random(f"{self._seed} {name}")
        head = self._tokens(chance, shared)
        prompts = [head + self._tokens(chance, own) for _ in range(count)]
        return Task(prompts=prompts, shared=shared, tokens=tokens)

    def text(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=False))

    def _tokens(self, chance: random.Random, count: int) -> list[int]:
        # Each word is a token at least.
        text = " ".join(chance.choices(WORDS, k=count))
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids[:count])
