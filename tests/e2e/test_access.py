"""A whole gateway with keys and TLS, as processes: clients, operators, new certificates, a stop."""

from __future__ import annotations

import hashlib
import signal
import socket
import ssl
import subprocess
import sys

import pytest
import requests

from tests.e2e.fleet import ROOT, free_port, wait_until
from tests.gateway.certificates import Authority

KEY, ADMIN = "the-key-of-the-client", "the-key-of-the-operator"


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def gateway(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "gateway", *arguments]


class Site:
    def __init__(self, folder) -> None:
        self.ca = Authority(folder)
        self.ca.issue("server", "127.0.0.1")
        self.ca.issue("admin", "admin.example")
        self.port, self.admin_port = free_port(), free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        (folder / "hello.txt").write_text("hello")
        self.file = folder / "serve.toml"
        self.file.write_text(f"""
[server]
listen = "127.0.0.1:{self.port}"
admin = "127.0.0.1:{self.admin_port}"
admin_key_sha256 = "{digest(ADMIN)}"
tls = {{ cert = "server.pem", key = "server.key" }}
admin_tls = {{ cert = "admin.pem", key = "admin.key" }}
[[models]]
name = "files"
relay = {{ api = "web" }}
[[models.replicas]]
name = "files"
kind = "http"
command = ["{{python}}", "-m", "http.server", "{{port}}", "--bind", "127.0.0.1"]
[[routes]]
path = "/files"
model = "files"
strip_prefix = true
[[keys]]
name = "client"
key_sha256 = ["{digest(KEY)}"]
requests_per_s = 1000
""")
        self.log = (folder / "log").open("w+")
        self.process = subprocess.Popen(
            gateway("serve", str(self.file)), cwd=ROOT, stdout=self.log, stderr=self.log
        )

    def get(self, path, key=None):
        with requests.Session() as session:
            session.verify, session.trust_env = str(self.ca.pem), False
            headers = {"authorization": f"Bearer {key}"} if key else {}
            return session.get(self.url + path, headers=headers, timeout=5)

    def ready(self) -> bool:
        assert self.process.poll() is None
        try:
            return self.get("/readyz").status_code == 200
        except requests.ConnectionError:
            return False

    def serial(self) -> str:
        context = ssl.create_default_context(cafile=str(self.ca.pem))
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
        ):
            return secure.getpeercert()["serialNumber"]

    def operate(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = gateway(*arguments, "--config", str(self.file))
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path)
    try:
        wait_until("the gateway is ready", made.ready)
        yield made
    except BaseException:
        made.log.seek(0)
        print(made.log.read())
        raise
    finally:
        made.process.kill()
        made.process.wait()
        made.log.close()


def test_keys_and_tls_from_the_first_byte_to_the_last(site):
    assert site.get("/files/hello.txt").status_code == 401
    answer = site.get("/files/hello.txt", KEY)
    assert (answer.status_code, answer.text) == (200, "hello")
    assert site.get("/metrics").status_code == 401
    metrics = site.get("/metrics", KEY).text
    assert 'penstock_tenant_requests_total{tenant="client"} 1.0' in metrics

    refused = site.operate("status")
    assert refused.returncode == 1 and "admin_key" in refused.stderr
    shown = site.operate("status", "--key", ADMIN)
    assert shown.returncode == 0 and "files" in shown.stdout, shown.stderr

    first = site.serial()
    site.ca.issue("server", "127.0.0.1")
    wait_until("the new certificate is used", lambda: site.serial() != first)
    assert site.get("/files/hello.txt", KEY).text == "hello"

    site.process.send_signal(signal.SIGTERM)
    assert site.process.wait(30) == 0
