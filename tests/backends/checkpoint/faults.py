"""Disks that fail, cut short, kill the process or remember what a power loss would leave."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

from backends.checkpoint import Disk, Host
from backends.checkpoint.liveness import Life

PRIMITIVES = ("create", "write", "fsync", "make_folder", "rename", "unlink", "remove_folder")


class CountingDisk(Disk):
    """Calls `before(number, name, arguments)` ahead of every primitive operation."""

    def __init__(self) -> None:
        self.count = 0
        self.names: list[str] = []

    def before(self, number: int, name: str, arguments: tuple) -> None:
        pass

    def after(self, name: str, arguments: tuple, result: object) -> None:
        pass


def _counted(name: str):
    def operation(self, *arguments):
        number, self.count = self.count, self.count + 1
        self.names.append(name)
        self.before(number, name, arguments)
        result = getattr(Disk, name)(self, *arguments)
        self.after(name, arguments, result)
        return result

    return operation


for _name in PRIMITIVES:
    setattr(CountingDisk, _name, _counted(_name))


class FailingDisk(CountingDisk):
    """Operation `at` fails, and all after it unless `once`. A write first takes half of its
    bytes."""

    def __init__(self, at: int, code: int = errno.ENOSPC, *, once: bool = False) -> None:
        super().__init__()
        self.at, self.code, self.once = at, code, once

    def before(self, number, name, arguments):
        if number == self.at or (number > self.at and not self.once):
            if name == "write" and number == self.at:
                fd, data = arguments
                os.write(fd, data[: len(data) // 2])
            raise OSError(self.code, os.strerror(self.code))


class KillingDisk(CountingDisk):
    """The process is killed at operation `at`; a write first takes half of its bytes."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def before(self, number, name, arguments):
        if number == self.at:
            if name == "write":
                fd, data = arguments
                os.write(fd, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)


class ShortDisk(Disk):
    """Takes at most seven bytes a call."""

    def write(self, fd: int, data: memoryview) -> int:
        return super().write(fd, data[:7])


class FullDisk(Disk):
    """Takes `room` bytes in all, then nothing."""

    def __init__(self, room: int, code: int = errno.ENOSPC) -> None:
        self.room, self.code = room, code

    def write(self, fd: int, data: memoryview) -> int:
        if not self.room:
            if not self.code:
                return 0
            raise OSError(self.code, os.strerror(self.code))
        written = super().write(fd, data[: self.room])
        self.room -= written
        return written


class VolatileDisk(CountingDisk):
    """Remembers, after each operation, what a power loss there would leave.

    Two adversaries: the lazy one keeps a folder's names only when the folder was synced, the eager
    one writes names at once; both keep bytes only of files that were synced.
    """

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root
        self.bytes: dict[int, bytes] = {}
        self.lists: dict[int, dict[str, int]] = {}
        self.folders: set[int] = set()
        self.states: list[tuple[dict, dict, dict]] = []
        for path in (root, *root.rglob("*")):
            if path.is_dir():
                self._sync_folder(path)
            else:
                self.bytes[path.stat().st_ino] = path.read_bytes()

    def after(self, name, arguments, result):
        if name == "create":
            self.bytes.pop(os.fstat(result).st_ino, None)
        elif name == "fsync":
            path = Path(os.readlink(f"/proc/self/fd/{arguments[0]}"))
            if path.is_dir():
                self._sync_folder(path)
            else:
                self.bytes[path.stat().st_ino] = path.read_bytes()
        eager = {}
        for path in (self.root, *self.root.rglob("*")):
            if path.is_dir():
                self.folders.add(path.stat().st_ino)
                eager[path.stat().st_ino] = self._names(path)
        self.states.append((dict(self.bytes), dict(self.lists), eager))

    def _sync_folder(self, path: Path) -> None:
        self.folders.add(path.stat().st_ino)
        self.lists[path.stat().st_ino] = self._names(path)

    @staticmethod
    def _names(path: Path) -> dict[str, int]:
        return {entry.name: entry.inode() for entry in os.scandir(path)}

    def restore(self, state: tuple[dict, dict, dict], target: Path, *, eager: bool) -> None:
        contents, lazy_lists, eager_lists = state
        lists = eager_lists if eager else lazy_lists

        def build(inode: int, place: Path) -> None:
            place.mkdir()
            for name, below in lists.get(inode, {}).items():
                if below in self.folders:
                    build(below, place / name)
                else:
                    (place / name).write_bytes(contents.get(below, b""))

        build(self.root.stat().st_ino, target)


class World:
    """Clocks and processes that tests set; shared by the hosts that live in it."""

    def __init__(self) -> None:
        self.seconds, self.offset = 1000.0, 0.0
        self.dead: set[int] = set()


class FakeHost(Host):
    """A process of its own, on the machine `boot`, in the container `space`."""

    def __init__(self, world: World, pid: int, boot: str = "boot-a", space: str = "pid:1") -> None:
        self.world, self.pid, self.at_boot, self.space = world, pid, boot, space

    def life(self) -> Life:
        return Life("machine", self.at_boot, self.space, self.pid, 1)

    def boot(self) -> str:
        return self.at_boot

    def namespace(self) -> str:
        return self.space

    def uptime(self) -> float:
        return self.world.seconds

    def wall(self) -> float:
        return self.world.seconds + self.world.offset

    def alive(self, life: Life) -> bool | None:
        if (life.boot, life.namespace) != (self.at_boot, self.space):
            return None
        return life.pid not in self.world.dead
