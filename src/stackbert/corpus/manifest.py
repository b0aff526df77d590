"""What manifest.json of a corpus says: counts, sources, and a checksum for every shard."""

import hashlib
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from stackbert.stored import stored

FORMAT = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"
SplitName = Literal["train", "validation"]


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
            ValueError: a field is missing, unknown or of the wrong kind, or does not fit the rest.
        """
        manifest = stored(cls, value)
        _check_split("train", manifest.train)
        _check_split("validation", manifest.validation)
        sizes = (manifest.separator_id, manifest.tokenizer_size - 1, manifest.vocab_size - 1)
        if not 0 <= sizes[0] <= sizes[1] <= sizes[2] < np.iinfo(manifest.dtype).max + 1:
            raise ValueError("separator, tokenizer, vocabulary and dtype do not fit each other")
        return manifest


def _check_split(name: str, split: Split) -> None:
    """That its shards are numbered, have their own files alone, and add up to its counts."""
    for number, shard in enumerate(split.shards):
        if shard.number != number or sorted(shard.sha256) != sorted(shard_files(number).values()):
            raise ValueError(f"{name}.shards[{number}] is not of shard {number} and its files")
    for count in ("tokens", "documents", "sentences"):
        counts = [getattr(shard, count) for shard in split.shards]
        if min(counts, default=0) < 0 or sum(counts) != getattr(split, count):
            raise ValueError(f"the {count} of {name}'s shards do not add up to {name}.{count}")


def shard_files(number: int) -> dict[str, str]:
    """File names of shard `number`, by what they hold."""
    return {part: f"{part}-{number:05d}.npy" for part in ("tokens", "documents", "sentences")}
