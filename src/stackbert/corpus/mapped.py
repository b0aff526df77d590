"""A shard's file in memory, and whether it is still what was mapped.

A run reads its corpus for days. What was cut off a mapped file cannot be read: the system ends the
process (SIGBUS). What was written into it would be trained on without a word.
"""

import mmap
import os
import re
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stackbert.errors import UserError

_HEADER = re.compile(
    rb"\{'descr': '<(u2|u4|i8)', 'fortran_order': False, 'shape': \((\d{1,18}),\), \} *\n"
)
_OTHER_FILES = 256
"""Descriptors that a process needs beside its corpus: libraries, sockets, a checkpoint's files."""


@dataclass(frozen=True)
class MappedFile:
    """One array of a shard."""

    path: Path
    array: npt.NDArray[Any]
    memory: mmap.mmap
    stamp: tuple[int, int, int, int]
    """Device, inode, size and time of the last change, when it was mapped."""

    def check_length(self) -> None:
        """To be called before reading; a microsecond.

        Raises:
            UserError: the file is shorter than it was.
        """
        if self.memory.size() < len(self.memory):
            raise _changed(self.path)

    def check_unchanged(self) -> None:
        """Compare the file with what was mapped, by size and time.

        A file that is gone, or another in its place, changes nothing of what was mapped.

        Raises:
            UserError: somebody wrote into it.
        """
        try:
            now = _stamp(self.path.stat())
        except OSError:
            return
        if now[:2] == self.stamp[:2] and now != self.stamp:
            raise _changed(self.path)


def map_file(path: Path, kinds: tuple[str, ...]) -> MappedFile:
    """Map a .npy file of one dimension, as `shards` writes it.

    numpy's own reader takes every kind of array, archives too, and evaluates the header.

    Args:
        path: the file.
        kinds: of its entries: "u2", "u4", "i8".

    Raises:
        OSError, ValueError: it is missing or something else.
    """
    with path.open("rb") as file:
        beginning = file.read(10)
        header = file.read(int.from_bytes(beginning[8:], "little"))
        found = _HEADER.fullmatch(header)
        if beginning[:8] != b"\x93NUMPY\x01\0" or not found or found[1].decode() not in kinds:
            raise ValueError("it is no array of this kind")
        start, status = file.tell(), os.fstat(file.fileno())
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    dtype, entries = np.dtype(f"<{found[1].decode()}"), int(found[2])
    if len(memory) != start + entries * dtype.itemsize:
        raise ValueError(f"it has {len(memory):,} bytes for {entries:,} entries")
    # A plain array: the slicing of numpy's own memmap is slow.
    array = np.frombuffer(memory, dtype, entries, start)
    return MappedFile(path, array, memory, _stamp(status))


def allow_files(count: int) -> None:
    """Let this process have `count` files open beside its others, as far as the system lets it.

    A map holds its file open; by default many systems allow 1,024, some 8 billion tokens' shards.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _OTHER_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _stamp(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _changed(path: Path) -> UserError:
    return UserError(
        f"The corpus file {path} was changed while a run read it. Put the corpus back as it was "
        "(or build it again from the same text) and run the same command again: the run goes on "
        "from its last checkpoint."
    )
