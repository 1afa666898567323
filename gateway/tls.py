"""TLS contexts from configured files, and when they are to be made anew.

Owns the reading of certificates and what is said of bad ones. Knows no socket. Invariant: a context
that exists is complete; files that do not fit together make none.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from pathlib import Path

from gateway.config_tls import ListenTls, ReplicaTls

# Bounds what a client that says nothing, or never goes, can cost.
HANDSHAKE_S = 10.0
SHUTDOWN_S = 5.0
# How often a worker looks whether certificates have been replaced.
LOOK_S = 2.0


class BadCertificate(Exception):
    """`key`: the configuration's, of the file at fault."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key, self.message = key, message


def for_listener(config: ListenTls) -> ssl.SSLContext:
    """Raises BadCertificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    assert config.cert is not None and config.key is not None
    _load_pair(context, config.cert, config.key)
    if config.client_ca is not None:
        _load_cas(context, config.client_ca, "client_ca")
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def for_replicas(config: ReplicaTls) -> ssl.SSLContext:
    """Raises BadCertificate."""
    if config.ca is None:
        context = ssl.create_default_context()
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _load_cas(context, config.ca, "ca")
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not config.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if config.cert is not None and config.key is not None:
        _load_pair(context, config.cert, config.key)
    return context


def wrong_files(config: ListenTls | ReplicaTls) -> Iterator[tuple[str, str]]:
    """(key, what is wrong) of the files that it names."""
    try:
        if isinstance(config, ReplicaTls):
            for_replicas(config)
        elif config.used:
            for_listener(config)
    except BadCertificate as error:
        yield error.key, error.message


def stamp(config: ListenTls | ReplicaTls) -> tuple[object, ...]:
    """Another one when a file has been replaced."""
    third = config.ca if isinstance(config, ReplicaTls) else config.client_ca
    return tuple(_stamp(path) for path in (config.cert, config.key, third))


def _stamp(path: Path | None) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path) if path is not None else None
    except OSError:
        return None
    return None if found is None else (found.st_mtime_ns, found.st_size, found.st_ino)


def _load_pair(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    try:
        # The empty passphrase: else OpenSSL would ask for one at a terminal.
        context.load_cert_chain(cert, key, password=lambda: b"")
    except ssl.SSLError as error:
        if "KEY_VALUES_MISMATCH" in str(error):
            raise BadCertificate("key", "is not the key of the certificate in cert") from error
        raise BadCertificate(
            "cert", f"cert and key must be PEM, the key without a passphrase: {_said(error)}"
        ) from error
    except OSError as error:
        raise BadCertificate("cert", f"cannot read it or its key: {error.strerror}") from error


def _load_cas(context: ssl.SSLContext, path: Path, key: str) -> None:
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise BadCertificate(key, f"expected certificates in PEM: {_said(error)}") from error
    except OSError as error:
        raise BadCertificate(key, f"cannot read it: {error.strerror}") from error


def _said(error: ssl.SSLError) -> str:
    return error.reason or str(error)
