"""The floor of `train` and `train-gpu`: the least loop that trains, in plain PyTorch.

`python -m bench.floors.train_loop TASK`. Fused AdamW on all parameters, clipping, no checkpoint,
no evaluation, no log; a loss is read every step, as a person would want to see it. On a GPU it says
which one it is and how many products a second its maker gives it.
"""

from __future__ import annotations

import sys
import time

import torch

from backends.models.decoder import Decoder
from bench.trainers import Task, report
from bench.trainers.data import HELD_OUT, sequences
from trainer.speed import peak


def main(task: Task) -> None:
    device = torch.device(task.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device that torch can use")
    torch.manual_seed(task.seed)
    model = Decoder(**task.model).to(device)
    count = task.steps * task.sequences
    tokens = sequences(count + HELD_OUT, task.length, task.vocabulary, task.seed)[HELD_OUT:]
    wide = [p for p in model.parameters() if p.ndim > 1]
    flat = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": wide}, {"params": flat, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        groups, task.lr, betas=(0.9, 0.95), weight_decay=task.weight_decay, fused=True
    )
    half = torch.autocast(device.type, torch.bfloat16, enabled=task.precision == "bf16")
    measure = torch.compile(model.loss) if task.compile else model.loss
    losses: list[float] = []
    began = time.monotonic()
    for step in range(task.steps):
        if step == task.warm:
            began = time.monotonic()
        batch = tokens[step * task.sequences : (step + 1) * task.sequences].to(device)
        with half:
            loss, _ = measure({"tokens": batch})
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), task.clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    seconds = time.monotonic() - began
    report(seconds, losses, **(_about(device) if device.type == "cuda" else {}))


def _about(device: torch.device) -> dict[str, object]:
    return {"device": torch.cuda.get_device_name(device), "peak": peak(device, torch.bfloat16)}


if __name__ == "__main__":
    main(Task.load(sys.argv[1]))
