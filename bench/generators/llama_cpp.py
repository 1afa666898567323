"""llama.cpp through llama-cpp-python: `python -m bench.generators.llama_cpp GGUF THREADS`.

The package's own completions take one prompt at a time, so this drives its library as llama.cpp's
server does: prompts in chunks of the batch, then a token of every sequence per step. A shared
prefix is computed once and its cache copied to the other sequences. Each sequence's cache is apart:
as one for all, steps took a quarter longer. It imports nothing of ours but the task, as it runs in
an environment of its own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import llama_cpp  # type: ignore[import-not-found]
import numpy as np

from bench.generators import Outcome, Task, answer_tasks, marks

SEQUENCES, CONTEXT, BATCH = 32, 32 * 640, 512


class Machine:
    def __init__(self, path: str, threads: int) -> None:
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(
            path.encode(), llama_cpp.llama_model_default_params()
        )
        if not model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = CONTEXT, BATCH, BATCH
        params.n_seq_max, params.kv_unified = SEQUENCES, False
        params.n_threads = params.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(model, params)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, SEQUENCES)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(self._memory, False)

    def copy(self, source: int, target: int) -> None:
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def step(self, rows: Sequence[tuple[int, int, int, bool]]) -> list[int]:
        """Rows of (token, position, sequence, ask); the likeliest next token of each that asks."""
        batch: Any = self._batch
        batch.n_tokens = len(rows)
        for index, (token, position, sequence, ask) in enumerate(rows):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
            batch.logits[index] = ask
        if code := llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode said {code}")
        asked = [index for index, row in enumerate(rows) if row[3]]
        return [self._likeliest(index) for index in asked]

    def _likeliest(self, index: int) -> int:
        pointer = llama_cpp.llama_get_logits_ith(self._context, index)
        return int(np.ctypeslib.as_array(pointer, shape=(self._vocabulary,)).argmax())


def generate(machine: Machine, task: Task) -> Outcome:
    machine.clear()
    start = time.perf_counter()
    length = len(task.prompts[0])
    rows = []
    for sequence, prompt in enumerate(task.prompts):
        own = range(0 if sequence == 0 else task.shared, length)
        rows += [(prompt[at], at, sequence, at == length - 1) for at in own]
    answers: list[list[int]] = [[] for _ in task.prompts]
    times: list[list[float]] = [[] for _ in task.prompts]

    def run(part: Sequence[tuple[int, int, int, bool]]) -> None:
        tokens = machine.step(part)
        now = time.perf_counter()
        for (_, _, sequence, _), token in zip([r for r in part if r[3]], tokens, strict=True):
            answers[sequence].append(token)
            times[sequence].append(now)

    if task.shared:
        head, rows = rows[: task.shared], rows[task.shared :]
        for at in range(0, len(head), BATCH):
            run(head[at : at + BATCH])
        for sequence in range(1, len(task.prompts)):
            machine.copy(0, sequence)
    for at in range(0, len(rows), BATCH):
        run(rows[at : at + BATCH])
    for step in range(task.tokens - 1):
        run([(answer[-1], length + step, i, True) for i, answer in enumerate(answers)])
    seconds = time.perf_counter() - start
    first, gaps = marks(start, times)
    cached = task.shared * (len(task.prompts) - 1)
    return Outcome(seconds=seconds, first=first, gaps=gaps, answers=answers, cached=cached)


def main(path: str, threads: int) -> None:
    machine = Machine(path, threads)
    answer_tasks({"llama-cpp-python": llama_cpp.__version__}, lambda task: generate(machine, task))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
