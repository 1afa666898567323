"""The commands of the gateway: their arguments, their help, and which module does each.

Owns no behaviour. Each verb's module is imported when the verb is run, and only then: `serve` must
start its workers before anything large is loaded. Exit status: 0 done, 1 it failed, 2 the
configuration or the command line is wrong, 128 + signal when a stop was forced.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

ENVIRONMENT = """\
Each key can also come from the environment, with two underscores between its parts:
PENSTOCK_SERVER__WORKERS=2 is server.workers = 2, and PENSTOCK_MODELS__DIGITS__SLO_MS=50 is slo_ms
of the model "digits". The file comes first, then the environment, then --set."""

SERVE = f"""\
Serve until SIGTERM or SIGINT; then requests may finish for server.drain_s, and a second signal ends
them. SIGHUP reads the file again.

{ENVIRONMENT}

example:
  python -m gateway serve examples/digits/serve.toml --set server.workers=2
"""

ADMIN = """\
The gateway is found by its admin address: --admin, else --config's server.admin, else the variable
PENSTOCK_SERVER__ADMIN, else 127.0.0.1:8081. Its key comes from --key, --config or the variable
PENSTOCK_SERVER__ADMIN_KEY.
"""


def main(argv: Sequence[str]) -> int:
    arguments = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
    return run(arguments)


# ------------------------------------------------------------------------------------ the verbs


def _serve(arguments: argparse.Namespace) -> int:
    from gateway.cli_serve import serve

    return serve(arguments.file, arguments.set)


def _check(arguments: argparse.Namespace) -> int:
    from gateway.cli_check import check

    return check(arguments.file, arguments.set)


def _schema(arguments: argparse.Namespace) -> int:
    from gateway.cli_check import schema

    return schema()


def _key(arguments: argparse.Namespace) -> int:
    from gateway.cli_key import key

    return key(arguments.name, stdin=arguments.stdin)


def _compile(arguments: argparse.Namespace) -> int:
    from gateway.cli_compile import compile_hot_path

    return compile_hot_path()


def _worker(arguments: argparse.Namespace) -> int:
    from gateway.compiled import use

    use()  # before the first of the modules that it replaces
    from gateway.worker import main as work

    return work(arguments.listen_fd, arguments.control_fd)


def _operate(arguments: argparse.Namespace) -> int:
    from gateway.cli_operate import operate

    return operate(arguments)


# ------------------------------------------------------------------------------- their arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gateway",
        description="Penstock's gateway: serves models over HTTP from replicas that it watches.",
        epilog="`python -m gateway VERB --help` has an example of each.",
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    serve = _verb(verbs, "serve", "start the gateway of a configuration file", SERVE, _serve)
    _add_file(serve)
    example = "python -m gateway check examples/digits/serve.toml"
    text = f"Nothing is started.\n\n{ENVIRONMENT}\n\nexample:\n  {example}\n"
    _add_file(
        _verb(verbs, "check", "say what is wrong with a file, or what it serves", text, _check)
    )
    text = "example:\n  python -m gateway schema > serve.schema.json\n"
    _verb(verbs, "schema", "print the JSON Schema of the configuration", text, _schema)

    text = (
        "Workers then run the hot path as machine code: about a third more requests a second. A\n"
        "build belongs to the very sources it was made of; after an edit or an update, compile\n"
        "again. PENSTOCK_COMPILED=0 in the environment leaves it unused.\n\n"
        "example:\n  python -m gateway compile\n"
    )
    _verb(verbs, "compile", "build the hot path as machine code, with mypyc", text, _compile)

    text = (
        "The key is shown here and nowhere else; the configuration gets its hash.\n\n"
        "example:\n  python -m gateway key app >> serve.toml\n"
    )
    key = _verb(verbs, "key", "make an API key and the table that lets it in", text, _key)
    key.add_argument("name", help="of the key: the tenant that its requests belong to")
    key.add_argument("--stdin", action="store_true", help="hash a key that is there already")

    status = _operation(verbs, "status", "show models, replicas and counters", "status")
    status.add_argument("--json", action="store_true", help="as the admin listener gives it")
    status.add_argument("--watch", type=float, metavar="SECONDS", help="again and again")
    drain = _operation(verbs, "drain", "give a replica no new requests", "drain digits-0 --wait 30")
    _add_replica(drain)
    drain.add_argument(
        "--wait", type=float, metavar="SECONDS", help="until nothing is in flight on it, so long"
    )
    _add_replica(_operation(verbs, "undrain", "use a drained replica again", "undrain digits-0"))
    weight = _operation(verbs, "weight", "change a replica's share", "weight digits-0 0.5")
    _add_replica(weight)
    weight.add_argument("weight", type=float, help="beside the others' weights; 0: none")
    reload = _operation(verbs, "reload", "load the newest published version now", "reload digits")
    which = reload.add_mutually_exclusive_group(required=True)
    which.add_argument("model", nargs="?", help="the model whose replicas look at their channel")
    which.add_argument(
        "--file", action="store_true", help="read the gateway's own configuration file again"
    )
    replace = _operation(
        verbs, "replace", "put new processes in the replicas' places", "replace digits"
    )
    replace.add_argument("model", help="the model whose spawned replicas are replaced, one by one")
    promote = _operation(
        verbs, "promote", "serve everywhere what the canary tries", "promote digits"
    )
    promote.add_argument("model", help="the model's name")
    rollback = _operation(verbs, "rollback", "go back to the version before", "rollback digits")
    rollback.add_argument("model", help="the model's name")
    rollback.add_argument(
        "--from",
        dest="version",
        metavar="VERSION",
        help="by name or step; else the canary's, else the newest that a replica has seen",
    )

    worker = verbs.add_parser("worker")  # the supervisor starts it; not for people
    worker.add_argument("--listen-fd", type=int, required=True)
    worker.add_argument("--control-fd", type=int, required=True)
    worker.set_defaults(run=_worker)
    return parser


def _verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    epilog: str,
    run: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, verb=name)
    return parser


def _operation(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    example: str,
) -> argparse.ArgumentParser:
    """A verb that asks a running gateway."""
    epilog = f"{ADMIN}\nexample:\n  python -m gateway {example}\n"
    parser = _verb(verbs, name, summary, epilog, _operate)
    parser.add_argument("--admin", metavar="ADDRESS", help='"127.0.0.1:8081" or "unix:/path"')
    parser.add_argument("--config", type=Path, metavar="FILE", help="the gateway's configuration")
    parser.add_argument("--key", help="where the gateway has a server.admin_key")
    for flag, text in (
        ("--ca", "CAs to trust, where it has a [server.admin_tls]; else --config's certificate"),
        ("--cert", "our certificate, where it has a server.admin_tls.client_ca"),
        ("--cert-key", "the private key of --cert"),
    ):
        parser.add_argument(flag, type=Path, metavar="FILE", help=f"PEM: {text}")
    return parser


def _add_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="the configuration, TOML")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="overrides a key, such as server.workers=2 or models.digits.slo_ms=50; repeatable",
    )


def _add_replica(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("replica", help="the replica's name, as `status` shows it")
