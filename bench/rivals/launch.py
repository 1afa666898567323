"""The command of each rival, as its documentation has it, and when it is ready."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from bench.contenders import Contender
from bench.serving import ROOT, Server, free_port

HERE = Path(__file__).parent


def mosec(folder: Path, python: Path) -> Contender:
    port = free_port()
    command: list[str | Path] = [
        python,
        HERE / "mosec" / "server.py",
        "--address",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    # Its socket's folder has to be new; the default is a random one in the temporary folder.
    command += ["--path", str(folder / "mosec-sockets"), "--log-level", "warning"]
    base = f"http://127.0.0.1:{port}"
    server = Server("mosec", command, log=folder / "mosec.log")

    def ready(server: Server) -> str:
        server.wait_ready(f"{base}/")  # 503 until a worker of every stage is there
        return base

    return Contender("mosec", server, ready, path="/inference")


def triton(folder: Path, python: Path) -> Contender:
    """Its folders are laid out as Triton wants them: a backend, a repository with one version."""
    lib = python.parent.parent / "lib"
    (packages,) = lib.glob("python*/site-packages")
    home, version = packages / "pytriton" / "tritonserver", packages.parent.name
    backend, model = folder / "backends" / "python", folder / "repository" / "mlp"
    shutil.copytree(home / "backends" / "python", backend)
    stub = "triton_python_backend_stub"
    shutil.copy(home / "python_backend_stubs" / version.removeprefix("python") / stub, backend)
    shutil.copytree(HERE / "triton", model)
    (model / "1").mkdir()
    (model / "model.py").rename(model / "1" / "model.py")
    ports = {name: free_port() for name in ("http", "metrics")}
    command: list[str | Path] = [
        home / "bin" / "tritonserver",
        f"--model-repository={folder / 'repository'}",
    ]
    command += [f"--backend-directory={folder / 'backends'}", "--allow-grpc=false"]
    command += [f"--{name}-port={port}" for name, port in ports.items()]
    command += ["--http-address=127.0.0.1", "--metrics-address=127.0.0.1", "--log-info=false"]
    paths = [str(ROOT), str(packages), (packages / "penstock-packages.pth").read_text().strip()]
    env = {
        "LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs"),
        "TRITON_PYTHON_PACKAGES": os.pathsep.join(paths),
    }
    base = f"http://127.0.0.1:{ports['http']}"
    server = Server("triton", command, log=folder / "triton.log", env=env)

    def ready(server: Server) -> str:
        server.wait_ready(f"{base}/v2/health/ready")
        return base

    return Contender("triton", server, ready)
