"""The command of each rival, as its documentation has it, and when it is ready."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from bench.bodies import rows_answer, rows_request
from bench.contenders import Contender
from bench.rivals.rival import Rival
from bench.serving import ROOT, Server, free_port

HERE = Path(__file__).parent


def mosec(folder: Path, rival: Rival) -> Contender:
    port = free_port()
    command: list[str | Path] = [
        rival.python,
        HERE / "mosec" / "server.py",
        "--address",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    # Its socket's folder has to be new; the default is a random one in the temporary folder.
    command += ["--path", str(folder / "mosec-sockets"), "--log-level", "warning"]
    server = Server("mosec", command, log=folder / "mosec.log")
    # "/" says 503 until there is a worker of every stage.
    return Contender("mosec", server, _ready_at(port, "/"), path="/inference")


def triton(folder: Path, rival: Rival) -> Contender:
    """Its folders are laid out as Triton wants them: a backend, a repository with one version."""
    model = folder / "repository" / "mlp"
    shutil.copytree(HERE / "triton", model)
    (model / "1").mkdir()
    (model / "model.py").rename(model / "1" / "model.py")
    return _tritonserver(folder, rival)


def triton_reload(folder: Path, rival: Rival) -> Contender:
    """Its repository's model has no version yet; what is loaded, and when, it is told."""
    shutil.copytree(HERE / "triton_reload", folder / "repository" / "reload")
    return _tritonserver(folder, rival, "--model-control-mode=explicit")


def _tritonserver(folder: Path, rival: Rival, *flags: str) -> Contender:
    lib = rival.python.parent.parent / "lib"
    (packages,) = lib.glob("python*/site-packages")
    home, version = packages / "pytriton" / "tritonserver", packages.parent.name
    backend = folder / "backends" / "python"
    shutil.copytree(home / "backends" / "python", backend)
    stub = "triton_python_backend_stub"
    shutil.copy(home / "python_backend_stubs" / version.removeprefix("python") / stub, backend)
    ports = {name: free_port() for name in ("http", "metrics")}
    command: list[str | Path] = [
        home / "bin" / "tritonserver",
        f"--model-repository={folder / 'repository'}",
        *flags,
    ]
    command += [f"--backend-directory={folder / 'backends'}", "--allow-grpc=false"]
    command += [f"--{name}-port={port}" for name, port in ports.items()]
    command += ["--http-address=127.0.0.1", "--metrics-address=127.0.0.1", "--log-info=false"]
    paths = [str(ROOT), str(packages), (packages / "penstock-packages.pth").read_text().strip()]
    env = {
        "LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs"),
        "TRITON_PYTHON_PACKAGES": os.pathsep.join(paths),
    }
    server = Server("triton", command, log=folder / "triton.log", env=env)
    return Contender("triton", server, _ready_at(ports["http"], "/v2/health/ready"))


def litserve(folder: Path, rival: Rival) -> Contender:
    port = free_port()
    command: list[str | Path] = [rival.python, HERE / "litserve" / "server.py", "--port", str(port)]
    server = Server("litserve", command, log=folder / "litserve.log")
    return Contender("litserve", server, _ready_at(port, "/health"))


def bentoml(folder: Path, rival: Rival) -> Contender:
    port = free_port()
    command: list[str | Path] = [
        rival.python,
        "-m",
        "bentoml",
        "serve",
        "service:Network",
        "--host",
        "127.0.0.1",
    ]
    command += ["--working-dir", HERE / "bentoml", "--port", str(port), "--quiet"]
    env = {"BENTOML_HOME": str(folder / "home"), "BENTOML_DO_NOT_TRACK": "True"}
    server = Server("bentoml", command, log=folder / "bentoml.log", env=env)
    ready = _ready_at(port, "/readyz")
    return Contender(
        "bentoml", server, ready, path="/infer", request=rows_request, answer=rows_answer
    )


def ray(folder: Path, rival: Rival) -> Contender:
    port = free_port()
    command: list[str | Path] = [rival.python, HERE / "ray" / "server.py", "--port", str(port)]
    command += ["--temp", str(folder / "ray")]
    # As its guide to high throughput has it; HAProxy in front is ten times its own proxy.
    env = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1"}
    env["RAY_USAGE_STATS_ENABLED"] = "0"
    server = Server("ray", command, log=folder / "ray.log", env=env)

    def ready(server: Server) -> str:
        server.wait_said("serving", 120)
        return f"http://127.0.0.1:{port}"

    return Contender("ray", server, ready)


def _ready_at(port: int, path: str) -> Callable[[Server], str]:
    base = f"http://127.0.0.1:{port}"

    def ready(server: Server) -> str:
        server.wait_ready(base + path)
        return base

    return ready
