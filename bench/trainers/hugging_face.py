"""`train` by Hugging Face's Trainer: `python -m bench.trainers.hugging_face TASK FOLDER`.

As its users would: TrainingArguments with the task's numbers, no checkpoint, no evaluation. A loss
is logged every step.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from backends.models.decoder import Decoder
from bench.trainers import Task, report
from bench.trainers.data import HELD_OUT, sequences


class Clock(TrainerCallback):
    """Notes when the first measured step begins, and each loss."""

    def __init__(self, warm: int) -> None:
        self.began, self.ended = 0.0, 0.0
        self.losses: list[float] = []
        self._warm = warm

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self._warm:
            self.began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.ended = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __init__(self, tokens: torch.Tensor) -> None:
        self._tokens = tokens

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self._tokens[index], "labels": self._tokens[index]}


def main(task: Task, folder: str) -> None:
    transformers.set_seed(task.seed)
    model = LlamaForCausalLM(LlamaConfig(**task.model))
    # From the same first values; its own are larger in what adds to the residual stream.
    model.load_state_dict(Decoder(**task.model).state_dict())
    count = task.steps * task.sequences
    tokens = sequences(count + HELD_OUT, task.length, task.vocabulary, task.seed)[HELD_OUT:]
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=task.steps,
        per_device_train_batch_size=task.sequences,
        learning_rate=task.lr,
        lr_scheduler_type="constant",
        weight_decay=task.weight_decay,
        adam_beta2=0.95,
        max_grad_norm=task.clip,
        optim="adamw_torch_fused",
        bf16=task.precision == "bf16",
        use_cpu=task.device == "cpu",
        torch_compile=task.compile,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=task.seed,
    )
    clock = Clock(task.warm)
    Trainer(model=model, args=arguments, train_dataset=Rows(tokens), callbacks=[clock]).train()
    report(clock.ended - clock.began, clock.losses)


if __name__ == "__main__":
    main(Task.load(sys.argv[1]), sys.argv[2])
