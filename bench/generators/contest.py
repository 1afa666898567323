"""Who generates in `llm`: ours behind the gateway, and the programs that it is compared with.

Owns their start, their end and what a task is to each. Ours is two models of one gateway, the same
run in bf16 and in int8; it is asked as OpenAI's clients ask, all prompts at once. All have the same
number of threads. A contender that cannot run is out with its reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench.contenders import penstock_listens
from bench.generators import Outcome, Task, marks
from bench.generators.player import Player
from bench.generators.weights import Weights
from bench.load.volley import VolleyFailed, volley
from bench.rivals import GENERATORS
from bench.series import MeasureFailed
from bench.serving import Server, ServerFailed, python

OURS, OURS_INT8 = "penstock", "penstock int8"
PATIENCE_S = 300.0
# Room for 32 answers and for the prefixes of earlier tasks.
KV_BYTES = "512 MiB"
_MODELS = {OURS: ("smollm2", "bf16"), OURS_INT8: ("smollm2-int8", "int8")}
_PROGRAMS = {
    "transformers": "bench.generators.hugging_face",
    "transformers-cb": "bench.generators.continuous",
    "llama-cpp": "bench.generators.llama_cpp",
}


class Contest:
    """`play` a task by a contender's name. What it starts ends with `stack`."""

    def __init__(self, folder: Path, stack: ExitStack, weights: Weights, threads: int) -> None:
        self._folder, self._stack = folder, stack
        self._weights, self._threads = weights, threads
        self._play: dict[str, Callable[[Task], Outcome]] = {}
        self.failures: dict[str, str] = {}
        self.versions: dict[str, str] = {}

    def start(self, rivals: Sequence[str], warm: Task) -> None:
        """All of them; each has answered `warm` once when it is measured."""
        server = self._launch_ours()
        players = {name: self._launch(name) for name in rivals if not self._missing(name)}
        try:
            self._ready_ours(server)
        except ServerFailed as error:
            self.failures |= dict.fromkeys(_MODELS, str(error))
        for name, player in players.items():
            self._attempt(name, player.ready)
            self._play[name] = player.play
            self.versions |= player.versions
        for name, play in self._play.items():
            self._attempt(name, partial(play, warm))

    def play(self, name: str, task: Task) -> Outcome:
        """Raises MeasureFailed."""
        return self._play[name](task)

    def _attempt(self, name: str, what: Callable[[], object]) -> None:
        if name in self.failures:
            return
        try:
            what()
        except MeasureFailed as error:
            self.failures[name] = str(error)

    # ------------------------------------------------------------------------------ the programs

    def _missing(self, name: str) -> str | None:
        if reason := GENERATORS[name].missing:
            self.failures[name] = reason
        return reason

    def _launch(self, name: str) -> Player:
        llama = name == "llama-cpp"
        source = self._weights.gguf if llama else self._weights.folder
        interpreter = [GENERATORS[name].python] if llama else python()
        command = [*interpreter, "-m", _PROGRAMS[name], source, str(self._threads)]
        threads = {"OMP_NUM_THREADS": str(self._threads), "MKL_NUM_THREADS": str(self._threads)}
        player = Player(command, log=self._folder / f"{name}.log", env=threads)
        return self._stack.enter_context(player)

    # -------------------------------------------------------------------------------------- ours

    def _launch_ours(self) -> Server:
        text = '[server]\nlisten = "127.0.0.1:0"\nadmin = "127.0.0.1:0"\n'
        for model, weights in _MODELS.values():
            spawn = self._folder / f"{model}.replica.toml"
            spawn.write_text(
                f'model = "{model}"\nkind = "llm"\nrun = "{self._weights.run}"\n'
                f'weights = "{weights}"\nthreads = {self._threads}\nkv_bytes = "{KV_BYTES}"\n'
                "max_running = 32\n"
            )
            text += f'[[models]]\nname = "{model}"\n[[models.replicas]]\nname = "{model}"\n'
            text += f'spawn = "{spawn}"\n'
        config = self._folder / "serve.toml"
        config.write_text(text)
        command = python("-m", "gateway", "serve", config)
        return self._stack.enter_context(Server(OURS, command, log=self._folder / "penstock.log"))

    def _ready_ours(self, server: Server) -> None:
        base = penstock_listens(server)[0]
        server.wait_ready(f"{base}/readyz", 120.0)
        for name, (model, _) in _MODELS.items():
            self._play[name] = partial(ask, base, model)


def ask(base: str, model: str, task: Task) -> Outcome:
    """The task as completions of OpenAI's API, streamed. Raises MeasureFailed."""
    common = {
        "model": model,
        "max_tokens": task.tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    bodies: list[Mapping[str, object]] = [{**common, "prompt": list(p)} for p in task.prompts]
    try:
        start, answers = asyncio.run(volley(f"{base}/v1/completions", bodies, PATIENCE_S))
    except (VolleyFailed, TimeoutError) as error:
        raise MeasureFailed(str(error) or f"no answer within {PATIENCE_S:.0f} s") from error
    if wrong := [a.tokens for a in answers if a.tokens != task.tokens or not a.times]:
        raise MeasureFailed(f"answers of {wrong} tokens instead of {task.tokens}")
    times = [answer.times for answer in answers]
    first, gaps = marks(start, times)
    return Outcome(
        seconds=max(found[-1] for found in times) - start,
        first=first,
        gaps=gaps,
        answers=[answer.text for answer in answers],
        cached=sum(answer.cached for answer in answers),
    )
