"""`bench load`: a load on any HTTP or WebSocket server, watched while it runs."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from urllib.parse import urlsplit

from rich.console import Console
from rich.live import Live

from bench.cli.load_screen import Screen, figures, show
from bench.cli.ramp import climb
from bench.load import generator, trace
from bench.load.presets import JSON, PRESETS, as_message, chat, with_preset
from bench.load.spec import LoadReport, LoadSpec
from bench.record import rounded

CHAT = "/v1/chat/completions"
# Of the last answers of a trace, whose own length is the time of its last request.
TRACE_MARGIN_S = 0.001


def main(args: argparse.Namespace) -> int:
    try:
        spec = _spec(args)
        if args.ramp is not None:
            return climb(spec, args.ramp, args.processes, as_json=args.json)
        report = watched(spec, args.processes)
    except (ValueError, OSError, generator.LoadFailed) as error:
        print(f"bench load: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(rounded(figures(spec, report))))
    else:
        show(spec, report, Console(highlight=False))
    return 0 if report.ok else 1


def watched(spec: LoadSpec, processes: int) -> LoadReport:
    """Run it with a line on the screen. Raises LoadFailed."""
    screen = Screen(spec)
    console = Console(highlight=False, stderr=True)
    with Live(screen.table(), console=console, transient=True, auto_refresh=False) as live:
        screen.live = live
        return generator.run(spec, processes=processes, progress=screen.update)


def _spec(args: argparse.Namespace) -> LoadSpec:
    """Raises ValueError, OSError."""
    if not 1 <= args.processes <= args.connections:
        raise ValueError(f"--processes: expected 1 to {args.connections}, got {args.processes}")
    headers = {}
    for text in args.header:
        name, colon, value = text.partition(":")
        if not colon:
            raise ValueError(f'expected a header such as "x-priority: 1", got {text!r}')
        headers[name.strip()] = value.strip()
    spec = LoadSpec(
        # A preset is made for HTTP, and then put into a message.
        url=args.url.replace("ws", "http", 1) if _preset_on_socket(args) else args.url,
        method=args.method or "GET",
        headers=headers,
        connections=args.connections,
        rate=args.rate,
        arrivals=args.arrivals,
        seconds=args.seconds,
        warmup_s=args.warmup,
        timeout_s=args.timeout,
        timing=args.timing,
        seed=args.seed,
        mode="http" if _preset_on_socket(args) else args.mode,
        trace=None if args.trace is None else str(args.trace),
        speed=args.speed,
    )
    return _timed(_with_body(spec, args), args)


def _preset_on_socket(args: argparse.Namespace) -> bool:
    return bool(args.mode == "ws" and args.preset is not None)


def _with_body(spec: LoadSpec, args: argparse.Namespace) -> LoadSpec:
    if args.preset is not None:
        spec = with_preset(spec, PRESETS[args.preset])
        return as_message(spec) if args.mode == "ws" else spec
    body = None
    if args.body is not None:
        body = sys.stdin.buffer.read() if str(args.body) == "-" else args.body.read_bytes()
    elif args.mode == "openai":
        if args.model is None:
            raise ValueError("--model: expected the model's name, with --mode openai")
        body = chat(args.model, args.prompt, args.max_tokens, stream=not args.whole)
    elif args.mode == "ws":
        raise ValueError("--body: expected a file with the message, or --preset, with --mode ws")
    if args.mode == "openai" and urlsplit(spec.url).path in ("", "/"):
        spec = replace(spec, url=spec.url.rstrip("/") + CHAT)
    if body is None and spec.trace is None:
        return spec
    headers = spec.headers if args.mode == "ws" else {**JSON, **spec.headers}
    return replace(spec, body=body or b"", method=args.method or "POST", headers=headers)


def _timed(spec: LoadSpec, args: argparse.Namespace) -> LoadSpec:
    """A trace lasts as long as it does; its errors are told before anything is started."""
    if spec.trace is None:
        return spec
    last = trace.read(args.trace)[-1].at / spec.speed
    return replace(spec, seconds=last + TRACE_MARGIN_S)
