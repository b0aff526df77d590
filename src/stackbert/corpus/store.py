"""A corpus on disk: its manifest, its token shards, and reading them by memory map.

    CORPUS/manifest.json             what is here, where it came from, a checksum for every file
    CORPUS/tokenizer/                a Hugging Face fast tokenizer
    CORPUS/train/tokens-00000.npy    token ids, one stream: every document, then one separator
    CORPUS/train/documents-00000.npy  where a document starts, as an index into the same shard
    CORPUS/train/sentences-00000.npy  where a sentence starts, likewise
    CORPUS/validation/               the same for the held-out documents

A split is the concatenation of its shards. A document or sentence may run on into the next shard.
"""

import bisect
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stackbert.corpus.manifest import (
    FORMAT,
    MANIFEST,
    TOKENIZER,
    Manifest,
    Shard,
    Split,
    shard_files,
)
from stackbert.corpus.mapped import MappedFile, allow_files, map_file
from stackbert.errors import UserError
from stackbert.files import sha256_of
from stackbert.randomness import I64
from stackbert.stored import parse_json

TokenIds = npt.NDArray[np.unsignedinteger[Any]]
"""uint16 where the vocabulary fits, else uint32."""
Offsets = npt.NDArray[np.integer[Any]]


class TokenStream:
    """The tokens of one split as one long array, memory-mapped shard by shard."""

    def __init__(self, folder: Path, split: Split) -> None:
        self._folder = folder
        self._split = split
        starts = np.cumsum([0] + [shard.tokens for shard in split.shards])
        self._bounds = starts
        self._starts: list[int] = starts.tolist()
        self._files = [self._open(shard, "tokens") for shard in split.shards]
        self._tokens = [file.array for file in self._files]

    def _open(self, shard: Shard, part: str) -> MappedFile:
        path = self._folder / shard_files(shard.number)[part]
        try:
            mapped = map_file(path, ("u2", "u4") if part == "tokens" else ("i8",))
        except (OSError, ValueError) as error:
            raise UserError(
                f"The corpus file {path} cannot be read ({error}). The corpus is damaged: build it "
                "again."
            ) from error
        if len(mapped.array) != getattr(shard, part):
            raise UserError(
                f"The corpus file {path} holds {len(mapped.array):,} entries where the manifest "
                f"says {getattr(shard, part):,}. The corpus is damaged: build it again."
            )
        return mapped

    def __len__(self) -> int:
        """Number of tokens."""
        return self._split.tokens

    def read(self, start: int, length: int) -> TokenIds:
        """Tokens start … start + length − 1 of the split; a view where one shard holds them.

        Raises:
            IndexError: the range reaches outside the split.
        """
        end = start + length
        if start < 0 or length < 0 or end > self._starts[-1]:
            raise IndexError(f"tokens {start} to {end} of a split of {len(self)} tokens")
        first = bisect.bisect_right(self._starts, start, hi=len(self._tokens)) - 1
        base = self._starts[first]
        if end <= self._starts[first + 1]:
            self._files[first].check_length()
            return self._tokens[first][start - base : end - base]
        parts = []
        while start < end:
            self._files[first].check_length()
            base, stop = self._starts[first], min(end, self._starts[first + 1])
            parts.append(self._tokens[first][start - base : stop - base])
            start, first = stop, first + 1
        return np.concatenate(parts)

    def read_many(self, starts: I64, lengths: I64) -> TokenIds:
        """Several ranges, one after the other in one new array; starts and lengths (N,).

        Raises:
            IndexError: a range reaches outside the split.
        """
        shards, low, high, _ = self._in_shards(starts, lengths)
        for shard in np.unique(shards):
            self._files[shard].check_length()
        places = zip(shards.tolist(), low.tolist(), high.tolist(), strict=True)
        tokens = self._tokens
        parts = [tokens[shard][start:end] for shard, start, end in places]
        return np.concatenate(parts) if parts else np.empty(0, np.uint16)

    def _in_shards(self, starts: I64, lengths: I64) -> tuple[I64, I64, I64, I64]:
        """Ranges, cut where a shard ends: shards, the bounds within them, and whose piece it is."""
        bounds, ends = self._bounds, starts + lengths
        if len(starts) and (starts.min() < 0 or ends.max() > bounds[-1]):
            raise IndexError(f"a range reaches outside a split of {len(self)} tokens")
        owner = np.arange(len(starts))
        shard = bounds.searchsorted(starts, side="right") - 1
        last = bounds.searchsorted(ends, side="left") - 1
        if (shard != last).any():
            counts = last - shard + 1  # 0 for an empty range where a shard begins
            owner = np.repeat(owner, counts)
            shard = np.arange(len(owner)) + (shard - np.cumsum(counts) + counts)[owner]
            starts = np.maximum(starts[owner], bounds[shard])
            ends = np.minimum(ends[owner], bounds[shard + 1])
        base = bounds[shard]
        return shard, starts - base, ends - base, owner

    def _global_offsets(self, part: str) -> Offsets:
        """All of a part's offsets, from shard-local to split-wide."""
        local = [self._open(shard, part).array for shard in self._split.shards]
        return np.concatenate(
            [a.astype(np.int64) + base for a, base in zip(local, self._starts, strict=False)]
            or [np.empty(0, np.int64)]
        )

    @cached_property
    def document_starts(self) -> Offsets:
        """Split-wide index of the first token of every document, ascending (int64, in memory)."""
        return self._global_offsets("documents")

    def sentence_starts(self, start: int, length: int) -> Offsets:
        """Sentence starts within tokens start … start + length − 1, as split-wide indices.

        Document starts count as sentence starts. Reads only the pages it needs.
        """
        return self.sentence_starts_within(np.array([start]), np.array([length]))[0]

    def sentence_starts_within(self, starts: I64, lengths: I64) -> tuple[Offsets, Offsets]:
        """The same for many ranges at once.

        Returns:
            The sentence starts, ascending within each range, and for each the range it is of.
        """
        shards, *edges, owner = self._in_shards(starts, lengths)
        order = np.argsort(shards, kind="stable")
        places, done = np.array(edges)[:, order], 0
        for shard, count in sorted(Counter(shards.tolist()).items()):
            here = places[:, done : done + count]
            self._sentence_files[shard].check_length()
            here[:] = self._sentences[shard].searchsorted(here)
            done += count
        shards, counts = shards[order], places[1] - places[0]
        pieces = zip(shards.tolist(), *places.tolist(), strict=True)
        found = [self._sentences[shard][low:high] for shard, low, high in pieces]
        found.append(np.empty(0, np.int64))  # concatenate wants at least one
        return (
            np.concatenate(found) + np.repeat(self._bounds[shards], counts),
            np.repeat(owner[order], counts),
        )

    @cached_property
    def _sentence_files(self) -> list[MappedFile]:
        return [self._open(shard, "sentences") for shard in self._split.shards]

    @cached_property
    def _sentences(self) -> list[Offsets]:
        return [file.array for file in self._sentence_files]

    def check_unchanged(self) -> None:
        """See that nobody wrote into the files that are read here.

        Raises:
            UserError: somebody did; it names the file.
        """
        for file in [*self._files, *self.__dict__.get("_sentence_files", ())]:
            file.check_unchanged()


class Corpus:
    """An opened corpus: `manifest`, `train` and `validation` token streams, `tokenizer_folder`."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.tokenizer_folder = folder / TOKENIZER
        allow_files(2 * (len(manifest.train.shards) + len(manifest.validation.shards)))
        self.train = TokenStream(folder / "train", manifest.train)
        self.validation = TokenStream(folder / "validation", manifest.validation)

    def verify(self, share: int = 0, of: int = 1) -> None:
        """Read every shard and compare its checksum with the manifest's; some 1 s a gigabyte.

        Args:
            share: of several processes that do it together, the place of this one.
            of: how many they are.

        Raises:
            UserError: naming the first file that is missing or differs.
        """
        sides = {"train": self.manifest.train, "validation": self.manifest.validation}
        files = [
            (self.folder / name / file, expected)
            for name, split in sides.items()
            for shard in split.shards
            for file, expected in shard.sha256.items()
        ]
        for path, expected in files[share::of]:
            _check_sum(path, expected)

    def check_unchanged(self) -> None:
        """See that nobody wrote into the shards since they were opened, by their size and time.

        Raises:
            UserError: somebody did; it names the file.
        """
        self.train.check_unchanged()
        self.validation.check_unchanged()


def _check_sum(path: Path, expected: str) -> None:
    if not path.is_file() or sha256_of(path) != expected:
        raise UserError(
            f"The corpus file {path} is missing or damaged (its checksum differs from the "
            "manifest's). Build the corpus again."
        )


def open_corpus(folder: str | Path) -> Corpus:
    """Open a corpus that `build_corpus` made.

    Raises:
        UserError: there is no corpus, its manifest is damaged, of another format version, a shard
            is missing or has the wrong length, or the tokenizer is not the one it was built with.
            The shards' checksums are left to `Corpus.verify`.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{folder} is not a corpus: it has no {MANIFEST}. Build one with "
            f"'stackbert corpus {folder} --text YOUR_FILES'."
        )
    try:
        raw = parse_json(path.read_bytes())
        if raw.get("format") != FORMAT:
            raise UserError(
                f"{path} has format {raw.get('format')!r}, this version of StackBERT reads format "
                f"{FORMAT}. Build the corpus again."
            )
        manifest = Manifest.from_json(raw)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}). Build the corpus again.") from error
    _check_tokenizer(folder / TOKENIZER, manifest)
    return Corpus(folder, manifest)


def _check_tokenizer(folder: Path, manifest: Manifest) -> None:
    """That its ids are the shards' ids, and that its files are files.

    They are copied into every model that is made; a link would put what it leads to in there.

    Raises:
        UserError: it is another tokenizer, or a file of it is a link.
    """
    _check_sum(folder / "tokenizer.json", manifest.tokenizer_sha256)
    links = sorted(path for path in folder.iterdir() if path.is_symlink())
    if links:
        raise UserError(
            f"The corpus file {links[0]} is a symbolic link to {links[0].resolve()}. Its files are "
            "copied into models, so put the file itself there."
        )


def unigram_entropy(counts: npt.NDArray[np.int64]) -> float:
    """Entropy in nats of the distribution that `counts` gives."""
    present = counts[counts > 0].astype(np.float64)
    share = present / present.sum()
    return float(-(share * np.log(share)).sum())
