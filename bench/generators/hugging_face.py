"""`transformers` generate, batched: `python -m bench.generators.hugging_face FOLDER THREADS`.

As its users would: bf16, SDPA attention, the default cache, one call for all prompts. A streamer
notes when each step's tokens are there. Prefixes that prompts share are computed in each.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer

from bench.generators import Outcome, Task, answer_tasks, marks


class Clock(BaseStreamer):
    """Is given the prompts, then the tokens of each step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def load(folder: str, threads: int) -> Any:
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    # Answers have the length that was asked for.
    model.generation_config.eos_token_id = None
    return model


def main(folder: str, threads: int) -> None:
    model = load(folder, threads)

    def generate(task: Task) -> Outcome:
        ids_BT = torch.tensor(task.prompts)
        clock, start = Clock(), time.perf_counter()
        found_BT = model.generate(
            ids_BT,
            attention_mask=torch.ones_like(ids_BT),
            max_new_tokens=task.tokens,
            do_sample=False,
            streamer=clock,
        )
        seconds = time.perf_counter() - start
        answers = found_BT[:, ids_BT.shape[1] :].tolist()
        assert all(len(answer) == task.tokens for answer in answers)
        first, gaps = marks(start, [clock.times[1:]] * len(task.prompts))
        return Outcome(seconds=seconds, first=first, gaps=gaps, answers=answers)

    answer_tasks({"transformers": transformers.__version__}, generate)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
