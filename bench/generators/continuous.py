"""`transformers` continuous batching: `python -m bench.generators.continuous FOLDER THREADS`.

Its manager lives as long as the program, as in a server. Its pages are sized here, because without
a GPU it would guess; everything else is its default. It times tokens itself.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import transformers
from transformers import ContinuousBatchingConfig, GenerationConfig

from bench.generators import Outcome, Task, answer_tasks, marks
from bench.generators.hugging_face import load

# 32 answers of up to 640 tokens with their prompts.
PAGE, PAGES = 32, 640
# Computed together in a step: as many as our own engine takes by default.
STEP_TOKENS = 512
PATIENCE_S = 300.0


def main(folder: str, threads: int) -> None:
    model = load(folder, threads)
    setting: Any = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    sizes = ContinuousBatchingConfig(
        page_size=PAGE, num_blocks=PAGES, max_batch_tokens=STEP_TOKENS, max_requests_per_batch=32
    )
    with model.continuous_batching_context_manager(
        generation_config=setting, continuous_batching_config=sizes
    ) as manager:

        def generate(task: Task) -> Outcome:
            start = time.perf_counter()
            names = manager.add_requests(
                [list(prompt) for prompt in task.prompts],
                max_new_tokens=task.tokens,
                record_timestamps=True,
            )
            found: dict[str, Any] = {}
            while len(found) < len(names):
                result = manager.get_result(timeout=1.0)
                if result is not None and result.error:
                    raise RuntimeError(result.error)
                if result is not None and result.is_finished():
                    found[result.request_id] = result
                elif not manager.is_running() or time.perf_counter() - start > PATIENCE_S:
                    raise RuntimeError(f"{len(found)} of {len(names)} answers, and then no more")
            seconds = time.perf_counter() - start
            answers = [found[name].generated_tokens for name in names]
            assert all(len(answer) == task.tokens for answer in answers)
            first, gaps = marks(start, [found[name].timestamps for name in names])
            return Outcome(seconds=seconds, first=first, gaps=gaps, answers=answers)

        answer_tasks({"transformers": transformers.__version__}, generate)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
