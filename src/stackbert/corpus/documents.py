"""Documents ready for a corpus: stripped, with the digest that decides what becomes of each."""

import contextlib
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from errno import EIO, ENOSPC
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from stackbert.corpus.manifest import Source
from stackbert.corpus.readers import Input
from stackbert.errors import UserError, shown

Progress = Callable[[str, int, int], None]
"""Called with the phase ("reading", "learning", "tokenising"), the bytes of the sources read so far
in it, and the bytes there are (0 where that is unknown)."""
_REPORT_BYTES = 1 << 19
_WORD = re.compile(r"\S+")


class Document(NamedTuple):
    """One document that is not blank."""

    text: str
    data: bytes
    """The text in UTF-8."""
    digest: bytes
    """BLAKE2b of `data`, 16 bytes."""
    held_out: bool
    """Whether it belongs to the validation side."""

    def words(self) -> int:
        """How many white-space separated words it has."""
        if len(self.text) < 1 << 20:
            return len(self.text.split())
        return sum(1 for _ in _WORD.finditer(self.text))  # slower, but without a list of them all


class Documents:
    """The documents of all inputs; can be gone through again.

    Args:
        inputs: where they come from.
        validation: fraction held out. A document's digest alone decides, so it stays on its side
            when other text is added.
        progress: called about twice a megabyte.

    Attributes:
        found: documents in each input, of the latest reading, blank and duplicate ones included.
        empty: blank documents of the latest reading.
    """

    def __init__(self, inputs: Sequence[Input], validation: float, progress: Progress) -> None:
        self._inputs = inputs
        self.validation = validation
        self._below = int(validation * 2**64)
        self._progress = progress
        self.found = [0] * len(inputs)
        self.empty = 0

    def read(self, phase: str) -> Iterator[Document]:
        """All documents that are not blank, duplicates included."""
        self.found = [0] * len(self._inputs)
        self.empty = 0
        before = unreported = 0
        total = sum(one.size for one in self._inputs)
        self._progress(phase, 0, total)
        for index, one in enumerate(self._inputs):
            for raw in one.documents():
                self.found[index] += 1
                text = raw.replace("\r\n", "\n").strip()
                if not text:
                    self.empty += 1
                    continue
                data = text.encode()
                digest = blake2b(data, digest_size=16).digest()
                yield Document(text, data, digest, int.from_bytes(digest[:8]) < self._below)
                unreported += len(data)
                if unreported >= _REPORT_BYTES:
                    unreported = 0
                    self._progress(phase, before + one.position, total)
            before += one.size
        self._progress(phase, before, total)

    def announce(self, phase: str) -> None:
        """Report a phase that reads nothing."""
        self._progress(phase, 0, 0)

    def sources(self) -> tuple[Source, ...]:
        """What the manifest says of the inputs."""
        return tuple(
            # A file name in another encoding goes into JSON, model cards and pages as it is shown.
            Source(name=shown(one.name), bytes=one.size, documents=found)
            for one, found in zip(self._inputs, self.found, strict=True)
        )

    def require(self, training: int, held_out: int) -> None:
        """Both sides need a document, else a `UserError` says what to do."""
        if training + held_out == 0:
            names = ", ".join(one.name for one in self._inputs[:3])
            more = f" and {len(self._inputs) - 3} more" if len(self._inputs) > 3 else ""
            what = "only documents without any text" if sum(self.found) else "no document"
            raise UserError(f"{names}{more}: {what} in there. Give text to build a corpus from.")
        if not held_out or not training:
            side, change = ("validation", "raise") if training else ("training", "lower")
            raise UserError(
                f"Of {training + held_out:,} documents none falls to the {side} side: {change} the "
                "validation fraction (--validation) or give more text. "
                "In .txt files a blank line separates documents."
            )


class Seen:
    """The digests met so far, in a table on the disk, as there may be more than memory holds.

    Args:
        path: the table's file, made here and removed by `close`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with _disk_errors(path):
            self._table = sqlite3.connect(path, isolation_level=None)
            # It never outlives the build, so nothing needs to be safe; 64 MiB of it stay in memory.
            for setting in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-65536"):
                self._table.execute(f"PRAGMA {setting}")
            self._table.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID")
            self._table.execute("BEGIN")

    def add(self, digest: bytes) -> bool:
        """Remember a digest; whether it is new."""
        with _disk_errors(self._path):
            added = self._table.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,))
        return added.rowcount > 0

    def close(self) -> None:
        """Remove the table."""
        self._table.close()
        self._path.unlink(missing_ok=True)


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """SQLite's errors as the `OSError` they stem from, which others know how to explain."""
    try:
        yield
    except sqlite3.OperationalError as error:
        full = error.sqlite_errorcode == sqlite3.SQLITE_FULL
        raise OSError(ENOSPC if full else EIO, str(error), str(path)) from error
