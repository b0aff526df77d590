"""Writing a split's token stream as .npy shards, each on the disk as soon as it is full."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stackbert.corpus.manifest import Shard, Split, shard_files
from stackbert.corpus.store import Offsets, TokenIds, unigram_entropy

SHARD_TOKENS = 1 << 24
"""Tokens a shard: 32 MB of uint16, small enough to hold one per split in memory while it fills."""


class SplitWriter:
    """Takes one split's stream piece by piece and writes its shards.

    Args:
        folder: the split's folder, made here.
        dtype: of the token ids, "uint16" or "uint32".
        vocab_size: ids are below it.
    """

    def __init__(self, folder: Path, dtype: str, vocab_size: int) -> None:
        folder.mkdir()
        self.folder = folder
        self.words = 0
        self._counts = np.zeros(vocab_size, np.int64)
        self._buffer = np.empty(SHARD_TOKENS, dtype)
        self._fill = 0
        self._documents: list[Offsets] = []
        self._sentences: list[Offsets] = []
        self._shards: list[Shard] = []

    def add(
        self, ids: TokenIds, ends: Offsets, sentences: Offsets, separator: int, words: int
    ) -> None:
        """Append whole documents.

        Args:
            ids: their token ids, without separators.
            ends: where each document ends, as an index into `ids`; ascending, no document empty.
            sentences: where each sentence starts, likewise; none empty.
            separator: the id put behind every document.
            words: how many white-space separated words their text has.
        """
        self.words += words
        self._counts += np.bincount(ids, minlength=len(self._counts))
        stream = np.insert(ids.astype(self._buffer.dtype), ends, separator)
        starts = np.concatenate(([0], ends[:-1])) + np.arange(len(ends))
        sentences = sentences + np.searchsorted(ends, sentences, side="right")
        done = 0
        while done < len(stream):
            part = stream[done : done + len(self._buffer) - self._fill]
            shift, stop = self._fill - done, done + len(part)
            self._buffer[self._fill : self._fill + len(part)] = part
            for found, into in ((starts, self._documents), (sentences, self._sentences)):
                low, high = np.searchsorted(found, [done, stop])
                into.append(found[low:high] + shift)
            self._fill += len(part)
            done = stop
            if self._fill == len(self._buffer):
                self._write()

    def finish(self) -> Split:
        """Write what is left and describe the split."""
        if self._fill:
            self._write()
        return Split(
            tokens=sum(shard.tokens for shard in self._shards),
            documents=sum(shard.documents for shard in self._shards),
            sentences=sum(shard.sentences for shard in self._shards),
            words=self.words,
            unigram_entropy=unigram_entropy(self._counts),
            shards=tuple(self._shards),
        )

    def _write(self) -> None:
        number = len(self._shards)
        parts: dict[str, npt.NDArray[Any]] = {
            "tokens": self._buffer[: self._fill],
            # int64, so that a search in the memory-mapped file does not convert, and so read, all
            # of it.
            "documents": np.concatenate(self._documents).astype(np.int64),
            "sentences": np.concatenate(self._sentences).astype(np.int64),
        }
        names = shard_files(number)
        digests = {names[part]: _save(self.folder / names[part], parts[part]) for part in parts}
        lengths = {part: len(array) for part, array in parts.items()}
        self._shards.append(Shard(number=number, sha256=digests, **lengths))
        self._documents, self._sentences, self._fill = [], [], 0


def _save(path: Path, array: npt.NDArray[Any]) -> str:
    """Write a .npy file; its SHA-256. Unlike numpy.save, a full disk is reported as such."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    data = np.ascontiguousarray(array).data
    digest = hashlib.sha256(header.getvalue())
    digest.update(data)
    with path.open("wb") as file:
        file.write(header.getvalue())
        file.write(data)
    return digest.hexdigest()
