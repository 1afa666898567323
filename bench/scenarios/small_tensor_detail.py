"""More of `small-tensor`, for ours alone: open-loop latency, many connections, large tensors, more
workers.

The gateway that was measured beside the rivals goes on; only the one with more workers is new.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from bench.asking import post
from bench.bodies import oip_request
from bench.contenders import JSON, Contender, launch_penstock
from bench.load import generator
from bench.load.burst import Generator
from bench.load.knee import Point
from bench.load.presets import binary
from bench.load.spec import LoadReport, LoadSpec
from bench.models import image, mlp
from bench.scenarios import Options
from bench.series import MeasureFailed
from bench.serving import ServerFailed
from bench.tables import number

OURS = "penstock"
CONNECTIONS = 64
LOADS = (0.3, 0.6, 0.9)
# Of the capacity, on so many keep-alive connections, which take turns.
MANY_LOAD, MANY, QUICK_MANY = 0.6, (64, 1_000, 10_000), (10_000,)
WORKERS = 4
OPEN_CONNECTIONS = 256
IMAGE_CONNECTIONS = 8


def detail(options: Options, ours: Contender) -> dict[str, Any]:
    """The record's further figures. A part that fails says so in its place."""
    rng = np.random.default_rng(options.seed)
    body = oip_request(rng.normal(size=(1, mlp.INPUTS)).astype(np.float32))
    spec = _spec(options, ours, body)
    with options.console.status("capacity, closed loop ..."):
        capacity = generator.run(spec).rate
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "open_loop": lambda: _open_loop(options, spec, capacity),
        "many_connections": lambda: _many(options, spec, MANY_LOAD * capacity),
        "images": lambda: _images(options, ours),
        "workers": lambda: _workers(options, ours, body),
    }
    found: dict[str, Any] = {}
    for name, part in parts.items():
        try:
            found[name] = part()
        except (ServerFailed, MeasureFailed, generator.LoadFailed) as error:
            found[name] = f"unavailable: {error}"
            options.console.print(f"{name}: {found[name]}", style="yellow", markup=False)
    if isinstance(found["open_loop"], dict):
        found["curve"] = {OURS: found["open_loop"].pop("points")}
        found["batches"] = found["open_loop"].pop("batches")
    return found


# ------------------------------------------------------------------------------------- open loop


def _spec(options: Options, ours: Contender, body: bytes) -> LoadSpec:
    seconds, warmup = (1.0, 0.3) if options.quick else (10.0, 1.0)
    return LoadSpec(
        url=ours.url,
        headers=JSON,
        body=body,
        connections=CONNECTIONS,
        seconds=seconds,
        warmup_s=warmup,
        timeout_s=5.0,
        seed=options.seed,
    )


def _open_loop(options: Options, spec: LoadSpec, capacity: float) -> dict[str, Any]:
    """Poisson arrivals at shares of the capacity, which the same generator measured: it takes
    processor time too, and on two cores that is a good part of what there is."""
    table = Table(title="penstock, Poisson arrivals, from the intended time", title_justify="left")
    for column in ("load", "req/s", "p50", "p99", "p99.9", "failed"):
        table.add_column(column, justify="right")
    found: dict[str, Any] = {"capacity": capacity, "loads": {}, "points": [], "batches": []}
    for load in LOADS:
        with options.console.status(f"open loop at {load:.0%} ..."):
            rate = load * capacity
            report = generator.run(replace(spec, connections=OPEN_CONNECTIONS, rate=rate))
        found["loads"][f"{load:g}"] = _latencies(report)
        found["points"].append(Point.of(rate, report).to_json())
        found["batches"].append({"load": load, "mean_batch": _mean_batch(spec, rate)})
        cells = [report.latency.percentile(p) * 1e3 for p in (50, 99, 99.9)]
        table.add_row(
            f"{load:.0%}",
            number(report.rate),
            *(f"{cell:.2f} ms" for cell in cells),
            str(report.failed),
        )
        if report.limit is not None:
            table.caption = f"at {load:.0%}, {report.limit}"
    options.console.print(table)
    return found


def _mean_batch(spec: LoadSpec, rate: float) -> float | None:
    """Of a load of its own: the answers that tell it are longer."""
    asking = replace(spec, connections=OPEN_CONNECTIONS, rate=rate, timing=True)
    return generator.run(replace(asking, seconds=spec.seconds / 4)).mean_batch


def _many(options: Options, spec: LoadSpec, rate: float) -> dict[str, Any]:
    """The same rate on few and on many keep-alive connections."""
    table = Table(title=f"penstock, {number(rate)} req/s on keep-alive connections")
    for column in ("connections", "req/s", "p50", "p99", "failed"):
        table.add_column(column, justify="right")
    found: dict[str, Any] = {}
    for count in QUICK_MANY if options.quick else MANY:
        with options.console.status(f"{count:,} connections ..."):
            report = generator.run(replace(spec, connections=count, rate=rate))
        found[str(count)] = _latencies(report)
        cells = [f"{report.latency.percentile(p) * 1e3:.2f} ms" for p in (50, 99)]
        table.add_row(f"{count:,}", number(report.rate), *cells, str(report.failed))
    options.console.print(table)
    return found


def _latencies(report: LoadReport) -> dict[str, Any]:
    return {
        "rate": report.rate,
        "failed": report.failed,
        **report.latency.milliseconds(50, 99, 99.9),
        "generator_late_p99_ms": report.late.percentile(99) * 1e3,
        "generator_limit": report.limit,
    }


# --------------------------------------------------------------------------------------- workers


def _workers(options: Options, ours: Contender, body: bytes) -> dict[str, Any]:
    """More gateway workers before one replica: batches must not become smaller."""
    seconds = 1 if options.quick else 5
    found: dict[str, Any] = {"1": _saturated(options, ours, body, seconds)}
    ours.server.stop()
    name = f"penstock-{WORKERS}"
    more = launch_penstock(options.folder / name, workers=WORKERS, name=name)
    with more.server:
        more.ready()
        found[str(WORKERS)] = _saturated(options, more, body, seconds)
    table = Table(title="penstock at saturation, one replica", title_justify="left")
    for column in ("workers", "good answers/s", "mean batch"):
        table.add_column(column, justify="right")
    for workers, figures in found.items():
        table.add_row(
            workers, number(figures["goodput"]), number(figures["mean_batch"] or float("nan"))
        )
    options.console.print(table)
    return found


def _saturated(
    options: Options, contender: Contender, body: bytes, seconds: int
) -> dict[str, float | None]:
    """Good answers a second, and the mean of the rows that the device executed together, which a
    second load asks for: the answers that tell it are longer."""
    with options.console.status(f"{contender.name} at saturation ..."):
        load = Generator()
        if contender.name != OURS:  # which has been busy all the time
            load.burst(contender.url, body, JSON, connections=CONNECTIONS, seconds=1)
        burst = load.burst(contender.url, body, JSON, connections=CONNECTIONS, seconds=seconds)
        asking = LoadSpec(
            url=contender.url,
            headers=JSON,
            body=body,
            connections=CONNECTIONS,
            seconds=seconds / 2,
            warmup_s=0.2,
            timing=True,
        )
        report = generator.run(asking)
    return {"goodput": burst.rate, "mean_batch": report.mean_batch}


# ---------------------------------------------------------------------------------------- images


def _images(options: Options, ours: Contender) -> dict[str, Any]:
    """600 KB tensors in binary, against what this machine's memory copies."""
    url = f"{ours.base}/v2/models/image/infer"
    rng = np.random.default_rng(options.seed)
    pixels_CHW = rng.random(image.SHAPE, dtype=np.float32)
    shape, values = [1, *image.SHAPE], pixels_CHW.tobytes()
    _check_image(url, *binary("image", shape, values, binary_answer=False), pixels_CHW)
    body, headers = binary("image", shape, values)
    load, seconds = Generator(), 1 if options.quick else 5
    with options.console.status("images ..."):
        load.burst(url, body, headers, connections=IMAGE_CONNECTIONS, seconds=1)
        burst = load.burst(url, body, headers, connections=IMAGE_CONNECTIONS, seconds=seconds)
        copied, served = _memcpy_speed(), burst.rate * image.BYTES
    options.console.print(
        f"images of 600 KB: {number(burst.rate)}/s, {served / 1e9:.2f} GB/s, "
        f"{served / copied:.1%} of memcpy ({copied / 1e9:.1f} GB/s)"
    )
    return {
        "images_per_second": burst.rate,
        "gb_per_second": served / 1e9,
        "memcpy_gb_per_second": copied / 1e9,
        "share_of_memcpy": served / copied,
        "p50_ms": burst.p50 * 1e3,
    }


def _check_image(
    url: str, body: bytes, headers: Mapping[str, str], pixels_CHW: NDArray[np.float32]
) -> None:
    """Raises MeasureFailed."""
    answer = json.loads(post(url, body, headers))["outputs"][0]["data"][0]
    expected = image.reference(pixels_CHW)
    if not np.isclose(answer, expected, rtol=1e-4):
        raise MeasureFailed(f"the image model answered {answer}, not {expected}")


def _memcpy_speed() -> float:
    """Bytes a second that one thread copies in memory, far beyond the caches: the best of five."""
    source = np.ones(2**26, np.uint8)
    target = np.empty_like(source)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - start)
    return source.nbytes / best
