"""The command of each relay, as its documentation has it, and when it is ready.

`upstreams` are ports on this host; `core` is the only one that the relay may use, so each is told
to use one thread. Its configuration is the file in its folder, with marks (@PORT@) filled in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from bench.contenders import Contender
from bench.rivals.debian import DebianRival
from bench.rivals.rival import HERE, Rival
from bench.serving import Server, free_port

ONE_THREAD = {"TOKIO_WORKER_THREADS": "1", "RAYON_NUM_THREADS": "1"}
PATH = "/v1/chat/completions"


def haproxy(
    folder: Path, rival: DebianRival, upstreams: Sequence[int], core: int | None
) -> Contender:
    port = free_port()
    servers = [f"    server s{i} 127.0.0.1:{up} check" for i, up in enumerate(upstreams)]
    config = _fill(folder, "haproxy/haproxy.cfg", servers, port)
    command: list[str | Path] = [rival.program, "-f", config]
    return _relay(folder, rival, command, port, core, env=rival.env)


def nginx(
    folder: Path, rival: DebianRival, upstreams: Sequence[int], core: int | None
) -> Contender:
    port = free_port()
    # One lost request takes an upstream out for a second.
    servers = [f"        server 127.0.0.1:{up} max_fails=1 fail_timeout=1s;" for up in upstreams]
    config = _fill(folder, "nginx/nginx.conf", servers, port)
    command: list[str | Path] = [rival.program, "-p", folder, "-c", config, "-e", "stderr"]
    return _relay(folder, rival, command, port, core, env=rival.env)


def envoy(folder: Path, rival: Rival, upstreams: Sequence[int], core: int | None) -> Contender:
    port = free_port()
    place = "        - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: @}}}"
    servers = [place.replace("@", str(up)) for up in upstreams]
    config = _fill(folder, "envoy/envoy.yaml", servers, port)
    program = rival.environment / "bin" / "envoy"
    command: list[str | Path] = [
        program,
        "-c",
        config,
        "--concurrency",
        "1",
        "--log-level",
        "error",
    ]
    command += ["--disable-hot-restart"]
    return _relay(folder, rival, command, port, core)


def vllm_router(
    folder: Path, rival: Rival, upstreams: Sequence[int], core: int | None
) -> Contender:
    program = rival.environment / "bin" / "vllm-router"
    return _engine_router(folder, rival, [program], upstreams, core)


def sglang_router(
    folder: Path, rival: Rival, upstreams: Sequence[int], core: int | None
) -> Contender:
    program = rival.environment / "bin" / "smg"
    return _engine_router(folder, rival, [program, "launch"], upstreams, core)


def _engine_router(
    folder: Path,
    rival: Rival,
    command: list[Path | str],
    upstreams: Sequence[int],
    core: int | None,
) -> Contender:
    """The two have one ancestor and its flags. Power of two is their policy of least load."""
    port, metrics = free_port(), free_port()
    urls = [f"http://127.0.0.1:{up}" for up in upstreams]
    command = [*command, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--policy", "power_of_two", "--log-level", "error"]
    command += ["--prometheus-port", str(metrics), "--health-check-interval-secs", "1"]
    # A minute by default; the others look again after a second too.
    command += ["--cb-timeout-duration-secs", "1", "--worker-urls", *urls]
    return _relay(folder, rival, command, port, core, env=ONE_THREAD)


def litellm(folder: Path, rival: Rival, upstreams: Sequence[int], core: int | None) -> Contender:
    port = free_port()
    servers = [
        "- {model_name: scripted, litellm_params: {model: openai/scripted, api_key: none, "
        f"api_base: 'http://127.0.0.1:{up}/v1'}}}}"
        for up in upstreams
    ]
    config = _fill(folder, "litellm/config.yaml", servers, port)
    program = rival.environment / "bin" / "litellm"
    command: list[str | Path] = [
        program,
        "--config",
        config,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    command += ["--num_workers", "1", "--telemetry", "False"]
    env = {
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_MODE": "PRODUCTION",
    }
    return _relay(folder, rival, command, port, core, env=env, path="/health/liveliness")


def _fill(folder: Path, name: str, servers: Sequence[str], port: int) -> Path:
    """The configuration with its marks filled in."""
    folder.mkdir(parents=True, exist_ok=True)
    text = (HERE / name).read_text()
    marks = {"@PORT@": str(port), "@FOLDER@": str(folder), "@SERVERS@": "\n".join(servers)}
    for mark, value in marks.items():
        text = text.replace(mark, value)
    filled = folder / Path(name).name
    filled.write_text(text)
    return filled


def _relay(
    folder: Path,
    rival: Rival,
    command: Sequence[str | Path],
    port: int,
    core: int | None,
    *,
    env: dict[str, str] | None = None,
    path: str = "/v1/models",
) -> Contender:
    """Ready when its own listener answers `path` well."""
    server = Server(rival.name, command, log=folder / f"{rival.name}.log", env=env, core=core)
    return Contender(rival.name, server, _ready_at(port, path), path=PATH)


def _ready_at(port: int, path: str) -> Callable[[Server], str]:
    base = f"http://127.0.0.1:{port}"

    def ready(server: Server) -> str:
        server.wait_ready(base + path)
        return base

    return ready
