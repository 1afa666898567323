"""`llm`: SmolLM2-135M on this machine's cores, beside rivals and the roofline (target 7).

The same weights and prompts for all, 1, 8 and 32 at once, with a prefix that they share and
without. Ours is asked through the gateway as OpenAI's clients ask; the rivals are libraries in a
process of their own, with no server before them. The roof is what the memory and the arithmetic,
measured in the same run, allow the same task. llama.cpp computes with the file's own 4 bits.
"""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import ExitStack

from bench.generators.contest import OURS, OURS_INT8, Contest
from bench.generators.field import PLANS, QUICK_PLANS, Cell, Field, Plan
from bench.generators.prompts import Prompts
from bench.generators.weights import weights
from bench.record import Goal, Record
from bench.rivals import GENERATORS, chosen
from bench.roofline import Machine, Roofline, Shape
from bench.scenarios import Options, scenario
from bench.series import MeasureFailed
from bench.serving import ROOT, environment, python

BATCHES = (1, 8, 32)
TIMES_TRANSFORMERS, OF_ROOF = 3.0, 0.5
# The words of a prompt are in no order, so that many next tokens are almost as likely as the first;
# two ways of rounding to bf16 then choose differently. A wrong computation agrees nowhere.
ALIKE = 0.5
RIVAL = "transformers"


@scenario("llm", "SmolLM2 on the CPU: tokens/s, TTFT and gaps beside rivals and the roofline")
def run(options: Options) -> Record:
    kept = weights()
    threads = len(os.sched_getaffinity(0))
    rivals = chosen(options.rivals, quick=options.quick, among=GENERATORS)
    prompts = Prompts(kept.folder, options.seed)
    plans = QUICK_PLANS if options.quick else PLANS
    field = Field(plans, BATCHES)
    probes: list[Machine] = [probe(threads)]
    with ExitStack() as stack:
        contest = Contest(options.folder, stack, kept, threads)
        with options.console.status("loading everybody's weights ..."):
            contest.start(rivals, prompts.task("warm", 8, shared=0, own=64, tokens=4))
        names = [OURS, OURS_INT8, *rivals]
        for plan in plans:
            for repetition in range(plan.repetitions):
                for batch in BATCHES:
                    _measure(options, contest, prompts, field.cell(plan, batch), repetition, names)
                probes.append(probe(threads))
    best = Machine(max(p.bytes_s for p in probes), max(p.flops for p in probes))
    shape = Shape.of(kept.folder)
    weight_bytes = {OURS_INT8: 1.0, "llama-cpp": kept.gguf.stat().st_size / shape.parameters}
    roofs = {name: Roofline(shape, best, weight_bytes.get(name, 2.0)) for name in names}
    agreement = field.agreement(prompts, OURS, RIVAL)
    if agreement is not None and agreement < ALIKE:
        raise MeasureFailed(f"only {agreement:.0%} of the answers begin as {RIVAL}'s do")
    for table in field.tables(names, roofs):
        options.console.print(table)
    if reason := contest.failures.get(OURS_INT8):
        options.console.print(f"{OURS_INT8}: {reason}", style="yellow", markup=False)
    return _record(options, field, contest, rivals, roofs, best, agreement)


def probe(threads: int) -> Machine:
    """Raises MeasureFailed."""
    command = python("-m", "bench.generators.probe", str(threads))
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    if done.returncode != 0:
        raise MeasureFailed(f"cannot measure the machine: {done.stderr.strip()[-300:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Machine(found["bytes_s"], found["flops"])


def _measure(
    options: Options,
    contest: Contest,
    prompts: Prompts,
    cell: Cell,
    repetition: int,
    names: list[str],
) -> None:
    """Everybody's turn at one task, which is a new one in each repetition."""
    plan, batch = cell.plan, cell.batch
    sizes = {"shared": plan.shared, "own": plan.own, "tokens": plan.tokens}
    task = prompts.task(f"{plan.name} {batch} {repetition}", batch, **sizes)
    for name in names:
        if name in contest.failures:
            continue
        status = f"{name}, {plan.name}, {batch} at once, repetition {repetition + 1} ..."
        try:
            with options.console.status(status):
                cell.add(name, task, contest.play(name, task))
        except MeasureFailed as error:
            contest.failures[name] = str(error)


def _record(
    options: Options,
    field: Field,
    contest: Contest,
    rivals: tuple[str, ...],
    roofs: dict[str, Roofline],
    machine: Machine,
    agreement: float | None,
) -> Record:
    plan, most = field.plans[0], BATCHES[-1]
    rate = field.cell(plan, most).rate
    rate.failures |= contest.failures
    ours, roof = rate.median(OURS), field.cell(plan, most).roof(roofs[OURS])
    return Record(
        scenario="llm",
        metric=rate.metric,
        unit=rate.unit,
        higher_is_better=True,
        seed=options.seed,
        ours=ours,
        floor=roof,
        rivals={name: rate.figure(name) for name in rivals},
        goals=_goals(field, plan, roof),
        detail={
            "machine": {"bytes_s": machine.bytes_s, "flops": machine.flops},
            "plans": [plan.to_json() for plan in field.plans],
            "cells": field.to_json(roofs),
            "first_tokens_equal_to_transformers": agreement,
            "repetitions": {cell.rate.metric: cell.rate.to_json() for cell in field.cells},
        },
        versions=contest.versions,
    )


def _goals(field: Field, plan: Plan, roof: float) -> list[Goal]:
    goals = []
    for batch in BATCHES:
        rate = field.cell(plan, batch).rate
        ours, its = rate.median(OURS), rate.median(RIVAL)
        if ours and its:
            what = f"against transformers generate, {batch} at once"
            goals.append(Goal.least(what, ours / its, TIMES_TRANSFORMERS, "×"))
    if ours := field.cell(plan, BATCHES[-1]).rate.median(OURS):
        what = f"of the roofline, {BATCHES[-1]} at once"
        goals.append(Goal.least(what, ours / roof, OF_ROOF, "of it"))
    return goals
