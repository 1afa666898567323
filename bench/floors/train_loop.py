"""The floor of `train`: the least loop that trains, in plain PyTorch.

`python -m bench.floors.train_loop TASK`. Fused AdamW on all parameters, clipping, no checkpoint,
no evaluation, no log; a loss is read every step, as a person would want to see it.
"""

from __future__ import annotations

import sys
import time

import torch

from backends.models.decoder import Decoder
from bench.trainers import Task, report
from bench.trainers.data import HELD_OUT, sequences


def main(task: Task) -> None:
    torch.manual_seed(task.seed)
    model = Decoder(**task.model)
    count = task.steps * task.sequences
    tokens = sequences(count + HELD_OUT, task.length, task.vocabulary, task.seed)[HELD_OUT:]
    wide = [p for p in model.parameters() if p.ndim > 1]
    flat = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": wide}, {"params": flat, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        groups, task.lr, betas=(0.9, 0.95), weight_decay=task.weight_decay, fused=True
    )
    half = torch.autocast("cpu", torch.bfloat16, enabled=task.precision == "bf16")
    losses: list[float] = []
    began = time.monotonic()
    for step in range(task.steps):
        if step == task.warm:
            began = time.monotonic()
        batch = tokens[step * task.sequences : (step + 1) * task.sequences]
        with half:
            loss, _ = model.loss({"tokens": batch})
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), task.clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    report(time.monotonic() - began, losses)


if __name__ == "__main__":
    main(Task.load(sys.argv[1]))
