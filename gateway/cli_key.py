"""`python -m gateway key`: an API key for a client, and the table that lets it in.

Owns how keys look. The key goes to the terminal (standard error), the table to standard output, so
that `>> serve.toml` writes down the hash and never the key.
"""

from __future__ import annotations

import hashlib
import secrets
import sys

from gateway.config import NAME

PREFIX = "psk-"
# 256 random bits: nobody finds such a key by trying, so a quick hash protects it well enough.
RANDOM_BYTES = 32
LEAST = 16


def key(name: str, *, stdin: bool) -> int:
    try:
        NAME.read(name)
    except ValueError as error:
        print(f"name: {error}", file=sys.stderr)
        return 2
    if stdin:
        made = sys.stdin.readline().strip()
        if len(made) < LEAST or not made.isascii() or not made.isprintable() or " " in made:
            wrong = f"the key: expected at least {LEAST} printable characters without spaces"
            print(wrong, file=sys.stderr)
            return 2
    else:
        made = PREFIX + secrets.token_urlsafe(RANDOM_BYTES)
        print(f"{made}\nis the key; it is shown only this once", file=sys.stderr)
    digest = hashlib.sha256(made.encode()).hexdigest()
    print(f'\n[[keys]]\nname = "{name}"\nkey_sha256 = ["{digest}"]')
    return 0
