"""The verbs that ask a running gateway, through its admin listener.

Owns finding it, asking it and what is said when it refuses; what is shown of a status is in
`status_table`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import ssl
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gateway import config
from gateway.config import ConfigError, split_listen

DEFAULT = "127.0.0.1:8081"
PATIENCE_S = 60.0


class Refused(Exception):
    """The gateway said no, or did not say anything; the message is for the operator."""


def operate(arguments: argparse.Namespace) -> int:
    try:
        admin = AdminClient.find(arguments)
        _VERBS[arguments.verb](admin, arguments)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except Refused as error:
        print(f"{arguments.verb}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # how one ends --watch
        return 130
    return 0


class AdminClient:
    """One gateway's admin listener at "host:port" or "unix:/path"."""

    def __init__(self, address: str, key: str | None, tls: ssl.SSLContext | None = None) -> None:
        self.patience_s: float | None = PATIENCE_S
        if address.startswith("https://") and tls is None:
            tls = ssl.create_default_context()
        self._tls = tls
        plain = address.removeprefix("https://").removeprefix("http://").rstrip("/")
        try:
            self._target = split_listen(plain)
        except ValueError as error:
            raise Refused(f"--admin: {error}; expected host:port or unix:/path") from error
        self._address, self._key = address, key

    @classmethod
    def find(cls, arguments: argparse.Namespace) -> AdminClient:
        address, key, pinned = arguments.admin, arguments.key, None
        if arguments.config is not None:
            text = config.read(arguments.config)
            server = config.parse(text, arguments.config, os.environ).server
            address, key = address or server.admin, key or server.admin_key
            pinned = server.admin_tls.cert
        address = address or os.environ.get("PENSTOCK_SERVER__ADMIN") or DEFAULT
        return cls(
            address,
            key or os.environ.get("PENSTOCK_SERVER__ADMIN_KEY"),
            _trust(pinned, arguments.ca, arguments.cert, arguments.cert_key),
        )

    def get(self, path: str) -> Any:
        return self._ask("GET", path, None)

    def post(self, path: str, body: Any = None) -> Any:
        return self._ask("POST", path, body)

    def _ask(self, method: str, path: str, body: Any) -> Any:
        headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
        connection = _connection(self._target, self.patience_s, self._tls)
        try:
            connection.request(
                method, path, None if body is None else json.dumps(body).encode(), headers
            )
            reply = connection.getresponse()
            text = reply.read()
        except (OSError, http.client.HTTPException) as error:
            raise Refused(
                f"no gateway answers at {self._address} ({error}); is it running? "
                "--admin ADDRESS or --config FILE says where"
            ) from error
        finally:
            connection.close()
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise Refused(f"{self._address} is no gateway's admin listener")
        if reply.status >= 400:
            raise Refused(str(answer.get("error", f"status {reply.status}")))
        return answer


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _trust(
    pinned: Path | None, ca: Path | None, cert: Path | None, cert_key: Path | None
) -> ssl.SSLContext | None:
    """None: plain HTTP, unless the address says otherwise. `pinned`: the very certificate that the
    gateway's configuration names, whatever host it was made for."""
    if pinned is None and ca is None and cert is None:
        return None
    context = ssl.create_default_context()
    try:
        if ca is not None:
            context.load_verify_locations(ca)
        elif pinned is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            context.load_verify_locations(pinned)
        if cert is not None:
            context.load_cert_chain(cert, cert_key)
    except OSError as error:  # SSLError is one
        raise Refused(f"--ca, --cert: {error.strerror or error}") from error
    return context


def _connection(
    target: tuple[str, int] | str, timeout: float | None, tls: ssl.SSLContext | None
) -> http.client.HTTPConnection:
    if isinstance(target, str):
        return _UnixConnection(target, timeout)
    if tls is not None:
        return http.client.HTTPSConnection(*target, timeout=timeout, context=tls)
    return http.client.HTTPConnection(*target, timeout=timeout)


# ------------------------------------------------------------------------------------ the verbs


def _status(admin: AdminClient, arguments: argparse.Namespace) -> None:
    status = admin.get("/status")
    if arguments.json:
        print(json.dumps(status, indent=2))
        return
    from gateway.status_table import show, watch

    if arguments.watch is not None:
        watch(lambda: admin.get("/status"), max(arguments.watch, 0.1))
    else:
        show(status)


def _drain(admin: AdminClient, arguments: argparse.Namespace) -> None:
    name = arguments.replica
    admin.post(f"/replicas/{quote(name, safe='')}/drain")
    print(f"{name} is drained: it gets nothing new")
    if arguments.wait is None:
        return
    end = time.monotonic() + arguments.wait
    while in_flight := _in_flight(admin, name):
        if time.monotonic() > end:
            raise Refused(f"{name} still has {in_flight} in flight after {arguments.wait:g} s")
        time.sleep(0.1)
    print(f"{name} has nothing in flight")


def _in_flight(admin: AdminClient, name: str) -> int:
    models = admin.get("/status")["models"]
    replicas = [replica for model in models for replica in model["replicas"]]
    return sum(replica["in_flight"] for replica in replicas if replica["name"] == name)


def _undrain(admin: AdminClient, arguments: argparse.Namespace) -> None:
    admin.post(f"/replicas/{quote(arguments.replica, safe='')}/undrain")
    print(f"{arguments.replica} is used again")


def _weight(admin: AdminClient, arguments: argparse.Namespace) -> None:
    body = {"weight": arguments.weight}
    answer = admin.post(f"/replicas/{quote(arguments.replica, safe='')}/weight", body)
    print(f"{answer['replica']} has weight {answer['weight']:g}")


def _reload(admin: AdminClient, arguments: argparse.Namespace) -> None:
    if arguments.file:
        admin.patience_s = None  # new replicas load their models first
        changed = admin.post("/config/reload")["changed"]
        print("\n".join(changed) or "read again; nothing has changed")
    else:
        _show_replies(admin.post(f"/models/{quote(arguments.model, safe='')}/reload"))


def _replace(admin: AdminClient, arguments: argparse.Namespace) -> None:
    admin.patience_s = None  # each new process loads its model first
    for name in admin.post(f"/models/{quote(arguments.model, safe='')}/replace")["replaced"]:
        print(f"{name} has a new process")


def _rollback(admin: AdminClient, arguments: argparse.Namespace) -> None:
    body = {"version": arguments.version} if arguments.version else None
    _show_replies(admin.post(f"/models/{quote(arguments.model, safe='')}/rollback", body))


def _promote(admin: AdminClient, arguments: argparse.Namespace) -> None:
    admin.patience_s = None  # every byte of the version is read first
    _show_replies(admin.post(f"/models/{quote(arguments.model, safe='')}/promote"))


def _show_replies(answer: dict[str, Any]) -> None:
    """Each replica's state at this moment, or where a channel went; `status` shows the rest."""
    if moved := answer.get("moved"):
        done = {"promote": "promoted", "rollback": "rolled back"}[answer["decision"]]
        where = f"channel {moved['channel']} is at {moved['version']}"
        print(f"{answer['version']} is {done}: {where} (generation {moved['generation']})")
        return
    if bad := answer.get("from"):
        print(f"{answer['model']} goes back from {bad}")
    for name, reply in answer["replicas"].items():
        if error := reply.get("error"):
            print(f"{name}: {error} (it is told again)")
            continue
        target = f" → {reply['reload_to']}" if reply.get("reload_to") else ""
        print(f"{name}: asked; serves {reply['version'] or 'nothing'}, {reply['reload']}{target}")


_VERBS = {
    "status": _status,
    "drain": _drain,
    "undrain": _undrain,
    "weight": _weight,
    "reload": _reload,
    "replace": _replace,
    "promote": _promote,
    "rollback": _rollback,
}
