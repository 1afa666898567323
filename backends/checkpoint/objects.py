"""An object store, or any other file system that `fsspec` knows, as a few operations on keys.

Owns the translation of its errors, and nothing of what the keys mean. Invariant: `put_new` creates
a key with all its bytes or refuses, atomically, where the store can (S3, GCS, Azure, local files,
memory); where it cannot, it raises instead of overwriting.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backends.checkpoint.errors import BadRecord, Incomplete, Unreadable

# One request's worth: large enough for the store's latency, small enough to be hashed in passing.
BLOCK = 8 << 20


def is_url(place: str) -> bool:
    """Whether `place` names a store ("s3://bucket/runs/x") and no folder."""
    return "://" in place


class Store:
    """`options` go to the file system: endpoint, credentials, as its documentation says.

    Every method raises Unreadable when the store refuses or cannot be reached.
    """

    def __init__(self, url: str, **options: Any) -> None:
        import fsspec.core  # slow to import, and only those who use a store need it

        self.url = url.rstrip("/")
        try:
            # Listings are remembered by default: a channel that moves must be seen to move.
            self._fs, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False, **options)
        except (ImportError, ValueError) as error:
            raise BadRecord(f"{url}: {error}") from error
        self._root = root.rstrip("/")
        # A store of objects has no folders to make; a file system does.
        named = self._fs.protocol
        protocols = {named} if isinstance(named, str) else {*named}
        self._local = bool(protocols & {"file", "local"})
        self._folders = self._local or "memory" in protocols

    def put(self, key: str, data: bytes) -> None:
        with self._errors(key):
            self._make_parent(key)
            self._fs.pipe_file(self._path(key), data)

    def put_new(self, key: str, data: bytes) -> bool:
        """False when the key is there already."""
        with self._errors(key):
            self._make_parent(key)
            try:
                if self._local:
                    _create(Path(self._path(key)), data)
                else:
                    self._fs.pipe_file(self._path(key), data, mode="create")
            except FileExistsError:
                return False
            return True

    def put_file(self, key: str, file: Path) -> None:
        with self._errors(key):
            self._make_parent(key)
            self._fs.put_file(str(file), self._path(key))

    def get(self, key: str, limit: int) -> bytes | None:
        """None if there is no such key. Raises BadRecord if it holds more than `limit` bytes."""
        with self._errors(key):
            try:
                data: bytes = self._fs.cat_file(self._path(key), start=0, end=limit + 1)
            except FileNotFoundError:
                return None
        if len(data) > limit:
            raise BadRecord(f"{self.url}/{key} is larger than {limit} bytes")
        return data

    def read(self, key: str, size: int) -> Iterator[bytes]:
        """All of it, block by block. Raises Incomplete unless it has `size` bytes."""
        with self._errors(key):
            try:
                found = int(self._fs.size(self._path(key)))
            except FileNotFoundError:
                found = -1
        if found != size:
            has = "nothing" if found < 0 else f"{found} bytes"
            raise Incomplete(f"{self.url}/{key}", f"{size} bytes", has)
        for start in range(0, size, BLOCK):
            with self._errors(key):
                data = self._fs.cat_file(self._path(key), start=start, end=min(start + BLOCK, size))
            yield data

    def names(self, prefix: str) -> list[str]:
        """What lies directly below `prefix`."""
        with self._errors(prefix):
            try:
                found = self._fs.ls(self._path(prefix), detail=False)
            except FileNotFoundError:
                return []
        return sorted(str(path).rstrip("/").rpartition("/")[2] for path in found)

    def delete(self, key: str) -> None:
        """The key, or all that lies below it; fine if it is gone."""
        with self._errors(key):
            try:
                self._fs.rm(self._path(key), recursive=True)
            except FileNotFoundError:
                return

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _make_parent(self, key: str) -> None:
        if self._folders:
            self._fs.makedirs(self._path(key).rpartition("/")[0], exist_ok=True)

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each store has exceptions of its own
            raise Unreadable(f"{self.url}/{key}: {type(error).__name__}: {error}") from error


def _create(path: Path, data: bytes) -> None:
    """A name that is there has all its bytes, on the disk: half a record would be in everybody's
    way for ever. Raises FileExistsError."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
