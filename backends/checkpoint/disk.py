"""Every change that this package makes to a file system, as few primitive operations.

Owns durability: what `write_file` wrote is on the disk, under its name, when it returns. Everything
else goes through one `Disk` that a `Run` carries, so that tests can fail, cut short or kill the
process at any operation. It never decides what to write.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from backends.checkpoint.errors import Busy

# What a crash may leave of `write_file`; cleaned by `retention.clean`.
TEMPORARY = ".tmp-"


class Disk:
    """The primitives. Subclass it to inject faults."""

    def create(self, path: Path) -> int:
        """A new file, open for writing; refuses to touch one that exists."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)

    def write(self, fd: int, data: memoryview) -> int:
        """Writes some of `data`; how much, like `os.write`."""
        return os.write(fd, data)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def make_folder(self, path: Path) -> None:
        os.mkdir(path)

    def rename(self, source: Path, target: Path) -> None:
        """Replaces a file `target` in one step."""
        os.rename(source, target)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def remove_folder(self, path: Path) -> None:
        os.rmdir(path)

    # What follows is made of the primitives above.

    def write_all(self, fd: int, data: memoryview) -> None:
        while data:
            written = self.write(fd, data)
            if written <= 0:
                raise OSError(errno.EIO, "the file system took no bytes")
            data = data[written:]

    def fsync_path(self, path: Path) -> None:
        """Makes a file, or a folder's list of names, durable."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.fsync(fd)
        finally:
            os.close(fd)

    def make_folders(self, path: Path) -> None:
        """`path` and its parents, durably; fine if they exist."""
        missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
        for folder in reversed(missing):
            with suppress(FileExistsError):
                self.make_folder(folder)
            self.fsync_path(folder.parent)

    def write_new(self, path: Path, data: bytes, *, durable: bool = True) -> None:
        """A new file. Its bytes are on the disk, its name is once the folder is synced."""
        fd = self.create(path)
        try:
            self.write_all(fd, memoryview(data))
            if durable:
                self.fsync(fd)
        finally:
            os.close(fd)

    def write_temporary(self, folder: Path, data: bytes, *, durable: bool = True) -> Path:
        """A new file under a name that nobody reads; `rename` it to its place."""
        path = folder / f"{TEMPORARY}{uuid.uuid4().hex}"
        try:
            self.write_new(path, data, durable=durable)
        except BaseException:
            with suppress(OSError):
                self.unlink(path)
            raise
        return path

    def write_file(self, path: Path, data: bytes, *, durable: bool = True) -> None:
        """Creates or replaces `path`: readers see the old bytes or the new ones, never a mix."""
        temporary = self.write_temporary(path.parent, data, durable=durable)
        try:
            self.rename(temporary, path)
        except BaseException:
            with suppress(OSError):
                self.unlink(temporary)
            raise
        if durable:
            self.fsync_path(path.parent)

    def remove_tree(self, path: Path) -> None:
        """Removes a folder and all in it; follows no links; fine if it is gone."""
        try:
            entries = list(os.scandir(path))
        except FileNotFoundError:
            return
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                self.remove_tree(Path(entry.path))
            else:
                with suppress(FileNotFoundError):
                    self.unlink(Path(entry.path))
        with suppress(FileNotFoundError):
            self.remove_folder(path)


def open_regular(folder: Path, relative: str) -> int:
    """A file below `folder`, open for reading; no part of `relative` may be a link.

    Raises FileNotFoundError, also for what is no regular file.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    parts = relative.split("/")
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            below = os.open(part, flags | os.O_DIRECTORY, dir_fd=at)
            os.close(at)
            at = below
        # O_NONBLOCK: opening a named pipe must not wait for its writer.
        fd = os.open(parts[-1], flags | os.O_NONBLOCK, dir_fd=at)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise FileNotFoundError(errno.ENOENT, "a link, not a file", relative) from error
        raise
    finally:
        os.close(at)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileNotFoundError(errno.ENOENT, "not a regular file", relative)
    return fd


@contextmanager
def locked(path: Path, *, timeout_s: float = 60.0) -> Iterator[None]:
    """Holds the exclusive lock of `path`, which the kernel frees when the process dies.

    Raises Busy when another process keeps it for longer than `timeout_s`.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        give_up = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= give_up:
                    raise Busy(f"{path} is locked by another process; try again") from None
                time.sleep(0.005)
        try:
            yield
        finally:
            # Not left to `close`: a child forked meanwhile holds the same lock open.
            fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)
