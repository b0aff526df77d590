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
import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from stackbert.errors import UserError
from stackbert.files import sha256_of
from stackbert.randomness import I64

FORMAT = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"
SplitName = Literal["train", "validation"]
TokenIds = npt.NDArray[np.unsignedinteger[Any]]
"""uint16 where the vocabulary fits, else uint32."""
Offsets = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Source:
    """One file (or data set) the text came from."""

    name: str
    """The path or data set name as the user gave it."""
    bytes: int
    """Size of the file as stored (compressed, if it was); of the text, for a data set."""
    documents: int
    """Documents found in it, duplicates included."""


@dataclass(frozen=True)
class Shard:
    """One shard of a split; the three file names follow from its number."""

    number: int
    tokens: int
    documents: int
    """Documents that start in this shard."""
    sentences: int
    sha256: dict[str, str]
    """Checksum of each of the shard's files, by file name."""


@dataclass(frozen=True)
class Split:
    """One half of a corpus: what is trained on, or what is held out."""

    tokens: int
    """All ids of the stream, separators included."""
    documents: int
    sentences: int
    words: int
    """White-space separated words of the text."""
    unigram_entropy: float
    """Entropy in nats of this split's token frequencies, separators left out: the loss of a model
    that knows frequencies and nothing else."""
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class Manifest:
    """Everything about a corpus but its tokens; stored as manifest.json."""

    format: int
    stackbert_version: str
    sources: tuple[Source, ...]
    duplicate_documents: int
    empty_documents: int
    validation_fraction: float
    vocab_size: int
    """Rows a model's embedding needs: the tokenizer's size rounded up to a multiple of 64."""
    tokenizer_size: int
    separator_id: int
    lowercase: bool | None
    """None if the tokenizer was brought along."""
    dtype: Literal["uint16", "uint32"]
    tokenizer_sha256: str
    """Of tokenizer.json."""
    train: Split
    validation: Split

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that differ when the tokens or the tokenizer differ."""
        content = [self.tokenizer_sha256] + [
            digest
            for split in (self.train, self.validation)
            for shard in split.shards
            for _, digest in sorted(shard.sha256.items())
        ]
        return hashlib.sha256("\n".join(content).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Plain values for json.dumps; `Manifest.from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Manifest":
        """The manifest from plain values.

        Raises:
            KeyError, TypeError: a field is missing, unknown or of the wrong kind.
        """

        def split(raw: dict[str, Any]) -> Split:
            shards = tuple(Shard(**shard) for shard in raw["shards"])
            return Split(**{**raw, "shards": shards})

        sources = tuple(Source(**source) for source in value["sources"])
        both = {name: split(value[name]) for name in ("train", "validation")}
        return cls(**{**value, "sources": sources, **both})


def shard_files(number: int) -> dict[str, str]:
    """File names of shard `number`, by what they hold."""
    return {part: f"{part}-{number:05d}.npy" for part in ("tokens", "documents", "sentences")}


class TokenStream:
    """The tokens of one split as one long array, memory-mapped shard by shard."""

    def __init__(self, folder: Path, split: Split) -> None:
        self._folder = folder
        self._split = split
        starts = np.cumsum([0] + [shard.tokens for shard in split.shards])
        self._bounds = starts
        self._starts: list[int] = starts.tolist()
        self._tokens = [self._open(shard, "tokens") for shard in split.shards]

    def _open(self, shard: Shard, part: str) -> npt.NDArray[Any]:
        path = self._folder / shard_files(shard.number)[part]
        try:
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(f"The corpus file {path} cannot be read: {error}") from error
        array: npt.NDArray[Any] = np.asarray(mapped)  # a plain view: memmap's own slicing is slow
        if len(array) != getattr(shard, part):
            raise UserError(
                f"The corpus file {path} holds {len(array):,} entries where the manifest says "
                f"{getattr(shard, part):,}. The corpus is damaged: build it again."
            )
        return array

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
            return self._tokens[first][start - base : end - base]
        parts = []
        while start < end:
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
        local = [self._open(shard, part) for shard in self._split.shards]
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
    def _sentences(self) -> list[Offsets]:
        return [self._open(shard, "sentences") for shard in self._split.shards]


class Corpus:
    """An opened corpus: `manifest`, `train` and `validation` token streams, `tokenizer_folder`."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.tokenizer_folder = folder / TOKENIZER
        self.train = TokenStream(folder / "train", manifest.train)
        self.validation = TokenStream(folder / "validation", manifest.validation)

    def verify(self) -> None:
        """Read every shard and compare its checksum with the manifest's.

        Raises:
            UserError: naming the first file that is missing or differs.
        """
        for name in ("train", "validation"):
            split: Split = getattr(self.manifest, name)
            for shard in split.shards:
                for file, expected in shard.sha256.items():
                    path = self.folder / name / file
                    if not path.is_file() or sha256_of(path) != expected:
                        raise UserError(
                            f"The corpus file {path} is missing or damaged (its checksum differs "
                            "from the manifest's). Build the corpus again."
                        )


def open_corpus(folder: str | Path) -> Corpus:
    """Open a corpus that `build_corpus` made.

    Raises:
        UserError: there is no corpus, its manifest is damaged, of another format version, or a
            shard is missing or has the wrong length. Checksums are left to `Corpus.verify`.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{folder} is not a corpus: it has no {MANIFEST}. Build one with "
            f"'stackbert corpus {folder} --text YOUR_FILES'."
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw.get("format") != FORMAT:
            raise UserError(
                f"{path} has format {raw.get('format')!r}, this version of StackBERT reads format "
                f"{FORMAT}. Build the corpus again."
            )
        manifest = Manifest.from_json(raw)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}). Build the corpus again.") from error
    return Corpus(folder, manifest)


def unigram_entropy(counts: npt.NDArray[np.int64]) -> float:
    """Entropy in nats of the distribution that `counts` gives."""
    present = counts[counts > 0].astype(np.float64)
    share = present / present.sum()
    return float(-(share * np.log(share)).sum())
