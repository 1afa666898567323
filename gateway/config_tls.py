"""The keys of TLS: certificates of the listeners and of their clients, and trust in replicas.

Owns these keys, their defaults and their meaning, as `config` does the others. Files are read in
`tls`; they may be replaced while the gateway serves, and are read again then.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gateway.config_options import File, Flag, Text, option


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenTls:
    """`[server.tls]`, `[server.admin_tls]`: left out, the listener speaks plain HTTP."""

    cert: Path | None = option(  # noqa: RUF009 - a field, as the others
        File(), "PEM: our certificate, and those between it and its CA", default=None
    )
    key: Path | None = option(  # noqa: RUF009
        File(), "PEM: the certificate's private key, without a passphrase", default=None
    )
    client_ca: Path | None = option(  # noqa: RUF009
        File(),
        "PEM: clients must show a certificate that one of these CAs has signed",
        default=None,
    )

    @property
    def used(self) -> bool:
        return self.cert is not None

    def problems(self) -> Iterator[tuple[str, str]]:
        if (self.cert is None) != (self.key is None):
            missing = "key" if self.key is None else "cert"
            yield missing, 'a certificate needs both "cert" and "key"'
        elif self.cert is None and self.client_ca is not None:
            yield "client_ca", 'needs a certificate of our own: "cert" and "key"'


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaTls:
    """`[models.relay.tls]`: of replicas with https addresses. What is left out is as usual: they
    are verified against the CAs of this host."""

    ca: Path | None = option(  # noqa: RUF009
        File(),
        "PEM: the CAs that sign the replicas' certificates; left out, this host's",
        default=None,
    )
    cert: Path | None = option(  # noqa: RUF009
        File(), "PEM: the certificate that we show to replicas that ask for one", default=None
    )
    key: Path | None = option(  # noqa: RUF009
        File(), "PEM: its private key, without a passphrase", default=None
    )
    server_name: str | None = option(
        Text("a host's name", r"[A-Za-z0-9._-]{1,253}"),
        "the name in their certificates; left out, the address's",
        default=None,
    )
    verify: bool = option(
        Flag(), "false: any certificate will do, so anybody may pose as the replica", default=True
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        if (self.cert is None) != (self.key is None):
            missing = "key" if self.key is None else "cert"
            yield missing, 'a certificate needs both "cert" and "key"'
        if not self.verify and self.ca is not None:
            yield "verify", 'with verify = false nothing is checked against "ca"'
