"""The options of `bench load` as what is to be sent.

Owns their checks: one that would be ignored beside the others, or that cannot be, is BadOptions
with the option's name and what to do instead. Nothing is started here but the trace is read.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace
from urllib.parse import urlsplit

from bench.load import trace
from bench.load.knee import rates
from bench.load.presets import JSON, PRESETS, as_message, chat, with_preset
from bench.load.spec import LoadSpec

CHAT = "/v1/chat/completions"
# Of the last answers of a trace, whose own length is the time of its last request.
TRACE_MARGIN_S = 0.001
PROMPT, MAX_TOKENS, SECONDS = "Write a short story.", 128, 10.0


class BadOptions(Exception):
    """The message begins with the option's name."""


def spec_of(args: argparse.Namespace) -> LoadSpec:
    """Raises BadOptions, OSError."""
    _check_numbers(args)
    _check_together(args)
    try:
        spec = LoadSpec(
            # A preset is made for HTTP, and then put into a message.
            url=args.url.replace("ws", "http", 1) if _preset_on_socket(args) else args.url,
            method=args.method or "GET",
            headers=_headers(args.header),
            connections=args.connections,
            rate=args.rate,
            arrivals=args.arrivals or "poisson",
            seconds=SECONDS if args.seconds is None else args.seconds,
            warmup_s=args.warmup,
            timeout_s=args.timeout,
            timing=args.timing,
            seed=args.seed,
            mode="http" if _preset_on_socket(args) else args.mode,
            trace=None if args.trace is None else str(args.trace),
            speed=1.0 if args.speed is None else args.speed,
            insecure=args.insecure,
        )
        return _timed(_with_body(spec, args), args)
    except trace.BadTrace as error:
        raise BadOptions(f"--trace: {error}") from error
    except ValueError as error:
        raise BadOptions(str(error)) from error


def _check_numbers(args: argparse.Namespace) -> None:
    """Raises BadOptions."""
    for name in ("rate", "seconds", "timeout", "speed"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise BadOptions(f"--{name}: expected a number above 0, got {value:g}")
    if not 0 <= args.warmup < math.inf:
        raise BadOptions(f"--warmup: expected seconds from 0 on, got {args.warmup:g}")
    if args.connections < 1:
        raise BadOptions(f"--connections: expected at least 1, got {args.connections}")
    if not 1 <= args.processes <= args.connections:
        raise BadOptions(
            f"--processes: expected 1 to {args.connections}, as many as there are connections, "
            f"got {args.processes}"
        )
    if args.max_tokens is not None and args.max_tokens < 1:
        raise BadOptions(f"--max-tokens: expected at least 1, got {args.max_tokens}")


def _check_together(args: argparse.Namespace) -> None:
    """Raises BadOptions for what would be ignored."""
    given = {name for name, value in vars(args).items() if value not in (None, False, [])}
    openai = given.intersection(("model", "prompt", "max_tokens", "whole"))
    wrong: dict[str, str | bool | None] = {
        "arrivals": "rate" not in given and "ramp" not in given and "they need --rate or --ramp",
        "speed": "trace" not in given and "it needs --trace",
        "rate": "trace" in given and "a trace has its own times: leave one of the two out",
        "ramp": bool({"rate", "trace"} & given)
        and "it has its own rates: leave --rate and --trace out",
        "timing": args.mode != "http" and "it needs --mode http",
        "insecure": not args.url.startswith(("https:", "wss:")) and "it needs https:// or wss://",
        "preset": _preset_clash(args, given),
        "method": _method_clash(args, given),
    }
    for option in openai:
        if args.mode != "openai":
            wrong[option] = "it needs --mode openai"
        elif "body" in given:
            wrong[option] = "--body has the whole request: leave one of the two out"
    if "trace" in given and args.warmup:
        raise BadOptions("--warmup: a trace has its own times: leave it out")
    for name, reason in wrong.items():
        if name in given and reason:
            raise BadOptions(f"--{name.replace('_', '-')}: {reason}")
    if args.ramp is not None:
        try:
            rates(args.ramp)
        except ValueError as error:
            raise BadOptions(str(error)) from error


def _preset_clash(args: argparse.Namespace, given: set[str]) -> str | None:
    if "body" in given:
        return "--body has the request: leave one of the two out"
    if args.mode in ("sse", "openai"):
        return f"no preset is for --mode {args.mode}: use --body"
    if args.mode == "ws" and args.preset == "image":
        return "image is binary: choose mlp or digits for --mode ws"
    return None


def _method_clash(args: argparse.Namespace, given: set[str]) -> str | None:
    if "trace" in given:
        return "a trace's lines have their own `method`: leave it out"
    if args.mode in ("openai", "ws") or "preset" in given:
        return "it is given by --mode or --preset: leave it out"
    return None


def _headers(texts: list[str]) -> dict[str, str]:
    """Raises BadOptions."""
    headers = {}
    for text in texts:
        name, colon, value = text.partition(":")
        if not colon or not name.strip():
            raise BadOptions(f'--header: expected one such as "x-priority: 1", got {text!r}')
        headers[name.strip()] = value.strip()
    return headers


def _preset_on_socket(args: argparse.Namespace) -> bool:
    return bool(args.mode == "ws" and args.preset is not None)


def _with_body(spec: LoadSpec, args: argparse.Namespace) -> LoadSpec:
    """Raises BadOptions, ValueError, OSError."""
    if args.preset is not None:
        made = with_preset(spec, PRESETS[args.preset])
        return as_message(made, spec.headers) if args.mode == "ws" else made
    body = None
    if args.body is not None:
        body = sys.stdin.buffer.read() if str(args.body) == "-" else args.body.read_bytes()
    elif args.mode == "openai" and (args.trace is None or args.model is not None):
        if args.model is None:
            raise BadOptions("--model: expected the model's name, with --mode openai")
        prompt, most = args.prompt or PROMPT, args.max_tokens or MAX_TOKENS
        body = chat(args.model, prompt, most, stream=not args.whole)
    elif args.mode == "ws" and args.trace is None:
        raise BadOptions("--body: expected a file with the message, or --preset, with --mode ws")
    if args.mode == "openai" and urlsplit(spec.url).path in ("", "/"):
        spec = replace(spec, url=spec.url.rstrip("/") + CHAT)
    json = JSON if args.mode != "ws" and (body is not None or spec.trace is not None) else {}
    method = args.method or ("GET" if body is None else "POST")
    return replace(spec, body=body or b"", method=method, headers={**json, **spec.headers})


def _timed(spec: LoadSpec, args: argparse.Namespace) -> LoadSpec:
    """A trace lasts as long as it does, or as --seconds says; its errors are told before anything
    is started. Raises BadOptions, BadTrace, OSError."""
    if spec.trace is None:
        return spec
    requests = trace.read(args.trace)
    if spec.mode == "ws" and any(one.path or one.headers or one.method for one in requests):
        raise BadOptions("--trace: of --mode ws, a line has but `at` and a body")
    last = requests[-1].at / spec.speed + TRACE_MARGIN_S
    return replace(spec, seconds=min(last, spec.seconds) if args.seconds is not None else last)
