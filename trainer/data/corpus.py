"""Texts as one stream of tokens on disk: tokenised once, in the background, and kept.

Owns the documents' order, their split (by content, so a duplicate never is in both parts) and the
cache. A document ends with the vocabulary's end token. Invariant: a folder of the cache is whole or
not there; its name says which files, of which size and time, and which tokenizer it is made from.
"""

from __future__ import annotations

import codecs
import fcntl
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson
import xxhash
from numpy.typing import NDArray

from trainer.data.tokenizer import BPE, FILES, Vocabulary, folder_of, open_vocabulary, read_files
from trainer.errors import BadPlugin

Tokens = NDArray[np.unsignedinteger[Any]]
PARTS = ("train", "held_out")
# Texts that are tokenised together: enough for all cores, and little to hold in memory.
GROUP_BYTES = 4 << 20
# Whoever waits longer than this at the start is told what for.
PATIENCE_S = 3.0
# Of the format below; another one makes every cache anew.
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Streams:
    """Token streams on disk, and the files of the tokenizer that made them."""

    parts: Mapping[str, Tokens]
    files: Mapping[str, bytes]
    vocabulary: int
    fingerprint: str


class Corpus:
    """Tokenises in a thread from construction on; `streams` waits for it."""

    def __init__(self, files: Sequence[Path], tokenizer: str, held_out: float, cache: Path) -> None:
        self._files, self._tokenizer, self._share = tuple(files), tokenizer, held_out
        self._folder = cache / _key(self._files, tokenizer, held_out)
        self._done: Streams | None = None
        self._failed: Exception | None = None
        self._progress = ""
        self._thread = threading.Thread(target=self._work, name="tokenise", daemon=True)
        self._thread.start()

    @property
    def own(self) -> bool:
        """Whether the tokenizer is made of these texts."""
        return self._tokenizer == "bytes" or BPE.fullmatch(self._tokenizer) is not None

    def streams(self) -> Streams:
        """Raises BadPlugin when the texts or the cache cannot be read or written."""
        told = time.monotonic() + PATIENCE_S
        while self._thread.is_alive():
            self._thread.join(max(0.05, told - time.monotonic()))
            if time.monotonic() >= told and self._progress:
                print(f"tokenising: {self._progress}", file=sys.stderr, flush=True)
                told = time.monotonic() + PATIENCE_S
        if self._failed is not None:
            raise BadPlugin(f"data.config: {self._failed}") from self._failed
        assert self._done is not None
        return self._done

    def _work(self) -> None:
        try:
            if not self._whole():
                self._fill()
            self._done = _open(self._folder)
        except Exception as error:
            self._failed = error

    def _whole(self) -> bool:
        return (self._folder / "meta.json").is_file()

    def _fill(self) -> None:
        """One process does it, the others wait for its lock and find it done."""
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        with (self._folder.parent / f"{self._folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self._whole():
                return
            work = self._folder.with_name(f".{self._folder.name}-{os.getpid()}")
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            try:
                self._tokenise(work)
                shutil.rmtree(self._folder, ignore_errors=True)
                work.rename(self._folder)
            finally:
                shutil.rmtree(work, ignore_errors=True)

    def _tokenise(self, work: Path) -> None:
        trained_on = (text for text in documents(self._files) if self._part(text) == PARTS[0])
        self._progress = "reading the texts"
        vocabulary = open_vocabulary(self._tokenizer, trained_on)
        for name, content in vocabulary.files.items():
            (work / name).write_bytes(content)
        kind = np.uint16 if vocabulary.size <= 2**16 else np.uint32
        total, done = sum(file.stat().st_size for file in self._files), 0
        digests = {part: xxhash.xxh3_128() for part in PARTS}
        outs = {part: (work / f"{part}.bin").open("wb") for part in PARTS}
        try:
            for group in _groups(documents(self._files)):
                self._write(group, vocabulary, kind, outs, digests)
                done += sum(map(len, group))
                self._progress = f"{done / 2**20:.0f} of {total / 2**20:.0f} MiB"
        finally:
            for out in outs.values():
                out.close()
        meta = {
            "dtype": np.dtype(kind).name,
            "vocabulary": vocabulary.size,
            "fingerprint": "-".join(digests[part].hexdigest()[:16] for part in PARTS),
        }
        (work / "meta.json").write_bytes(orjson.dumps(meta))

    def _write(
        self,
        group: Sequence[str],
        vocabulary: Vocabulary,
        kind: type[np.unsignedinteger[Any]],
        outs: Mapping[str, IO[bytes]],
        digests: Mapping[str, Any],
    ) -> None:
        encoded = vocabulary.tokenizer.encode_batch_fast(list(group), add_special_tokens=False)
        for text, encoding in zip(group, encoded, strict=True):
            data = np.asarray([*encoding.ids, vocabulary.end], kind).tobytes()
            part = self._part(text)
            outs[part].write(data)
            digests[part].update(data)

    def _part(self, text: str) -> str:
        draw = xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")) / 2**64
        return PARTS[draw < self._share]


def documents(files: Sequence[Path]) -> Iterator[str]:
    """In order: each file is one, but a .jsonl file has one in the "text" of each line.

    Raises BadPlugin for lines that have none.
    """
    for file in files:
        if file.suffix != ".jsonl":
            text = file.read_text(encoding="utf-8", errors="replace")
            if text.strip():
                yield text
            continue
        yield from (line for line in jsonl(file, _text))


def _text(line: Any) -> str | None:
    text = line.get("text") if isinstance(line, dict) else None
    return text if isinstance(text, str) else None


def jsonl(file: Path, read: Callable[[Any], Any]) -> Iterator[Any]:
    """What `read` makes of each line; None where a line is not what it should be.

    Raises BadPlugin, naming the line.
    """
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)  # as editors on Windows write it
            if not line.strip():
                continue
            try:
                found = read(orjson.loads(line))
            except orjson.JSONDecodeError as error:
                raise BadPlugin(f"{file}:{number}: is no JSON: {error}") from error
            if found is None:
                raise BadPlugin(f"{file}:{number}: lacks what is needed of each line")
            yield found


def matching(patterns: Sequence[str], what: str = "files") -> list[Path]:
    """The files that patterns ("texts/**/*.txt") name, sorted, each once. Raises BadPlugin for a
    pattern that names none."""
    from glob import glob

    listed = isinstance(patterns, (list, tuple)) and all(isinstance(p, str) for p in patterns)
    if not patterns or not listed:
        raise BadPlugin(f'data.config.{what}: expected patterns such as ["texts/**/*.txt"]')
    found: set[Path] = set()
    for pattern in patterns:
        here = {Path(path) for path in glob(os.path.expanduser(pattern), recursive=True)}
        files = {path for path in here if path.is_file()}
        if not files:
            raise BadPlugin(f"data.config.{what}: no file matches {pattern!r}")
        found |= files
    return sorted(found)


def _groups(texts: Iterator[str]) -> Iterator[list[str]]:
    group, size = list[str](), 0
    for text in texts:
        group.append(text)
        size += len(text)
        if size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _key(files: Sequence[Path], tokenizer: str, share: float) -> str:
    seen = xxhash.xxh3_128()
    for file in files:
        stat = file.stat()
        seen.update(f"{file.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    seen.update(f"{tokenizer}\0{share!r}\0{FORMAT}".encode())
    if tokenizer != "bytes" and not BPE.fullmatch(tokenizer):
        for name, content in read_files(folder_of(tokenizer)).items():
            seen.update(name.encode() + content)
    return seen.hexdigest()


def _open(folder: Path) -> Streams:
    meta = orjson.loads((folder / "meta.json").read_bytes())
    kind = np.dtype(meta["dtype"])
    parts: dict[str, Tokens] = {}
    for part in PARTS:
        file = folder / f"{part}.bin"
        # An empty file cannot be mapped.
        empty = not file.stat().st_size
        parts[part] = np.empty(0, kind) if empty else np.memmap(file, kind, "r")
    files = {name: content for name, content in read_files(folder).items() if name in FILES}
    return Streams(parts, files, meta["vocabulary"], meta["fingerprint"])
