"""A corpus on the disk: the format, and reading it by memory map.

    CORPUS/manifest.json          vocabulary, counts, sources, and a fingerprint of what follows
    CORPUS/tokenizer/             a Hugging Face fast tokenizer
    CORPUS/train/tokens.bin       token ids, uint16 or uint32: every document, then one separator
    CORPUS/train/sentences.bin    where each sentence starts in them, int64
    CORPUS/validation/            the same for the held-out documents

The .bin files are little-endian arrays without a header, so they can be written bit by bit.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from stackbert.corpus.tokenizer import Vocabulary
from stackbert.errors import UserError
from stackbert.files import Record, reading, sha256
from stackbert.units import counted

MANIFEST, TOKENIZER, SIDES = "manifest.json", "tokenizer", ("train", "validation")
TOKENS, SENTENCES = "tokens.bin", "sentences.bin"
MANY_UNKNOWN = 0.01  # share of a side's text that no id stands for, from which on a user is warned
FEW_DOCUMENTS, FEW_TOKENS = 50, 20_000  # held out: fewer say little of a model
_DAMAGED = "The corpus is damaged: build it again."

TokenIds = npt.NDArray[np.unsignedinteger[Any]]  # uint16 where the vocabulary fits, else uint32
Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Source:
    """One file or data set that the text came from."""

    name: str
    bytes: int  # as stored (compressed, if it was); of a data set, of the text
    documents: int  # empty ones and duplicates included


@dataclass(frozen=True)
class Side:
    """What is trained on, or what is held out."""

    tokens: int  # separators included
    documents: int
    sentences: int
    words: int  # white-space separated words of the text
    unigram_entropy: float  # nats, without separators: the loss of who knows frequencies alone
    lost_characters: float = 0.0  # share, white space aside, with no id but the unknown one
    unknown_ids: float = 0.0  # share of the tokens


def entropy(counts: npt.NDArray[np.int64]) -> float:
    """Of frequencies, in nats."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())


class Manifest(Record):
    """Everything about a corpus but its tokens."""

    what: ClassVar[str] = "a corpus built by 'stackbert corpus'"
    stackbert_version: str
    language: str = ""  # with commas; for model cards, like license and dataset, a name on the hub
    license: str = ""
    dataset: str = ""
    sources: tuple[Source, ...]
    left_out: Mapping[str, int] = Field(default_factory=dict)  # files that are not read, by suffix
    duplicate_documents: int
    empty_documents: int
    cuts: int = 0  # in documents over the limit
    validation_fraction: float
    vocabulary: Vocabulary
    fingerprint: str  # SHA-256 over the tokens, the tokenizer and the vocabulary
    tokenizer_files: Mapping[str, str] = Field(default_factory=dict)  # SHA-256 of each
    train: Side
    validation: Side

    def summary(self) -> str:
        """What the corpus holds, what was left out, and what its ids do not stand for."""
        train, held_out = self.train, self.validation
        suffixes = ", ".join(f"{number:,} {suffix}" for suffix, number in self.left_out.items())
        return (
            f"{train.documents:,} documents and {train.tokens:,} tokens for training, "
            f"{held_out.documents:,} and {held_out.tokens:,} held out; dropped "
            f"{self.duplicate_documents:,} duplicates and {self.empty_documents:,} empty ones; "
            + (f"{self.cuts:,} cuts in documents over the limit; " if self.cuts else "")
            + (f"files not read: {suffixes}; " if suffixes else "")
            + f"vocabulary {self.vocabulary.tokenizer_size:,}; unigram entropy of the held-out "
            f"text {held_out.unigram_entropy:.3f} nats; {self.unknown()}."
        )

    def unknown(self) -> str:
        """How much of each side no id stands for."""
        return "; ".join(
            f"of the {name} text {side.lost_characters:.2%} of the characters are lost and "
            f"{side.unknown_ids:.2%} of the ids unknown"
            for name, side in (("training", self.train), ("held-out", self.validation))
        )

    @property
    def unknown_share(self) -> float:
        """Of the characters or of the ids, on either side: the largest."""
        return max(max(s.lost_characters, s.unknown_ids) for s in (self.train, self.validation))

    def warnings(self) -> list[str]:
        """What makes losses on this corpus mean less than they seem to, a sentence each."""
        documents, tokens = self.validation.documents, self.validation.tokens
        found = []
        if self.unknown_share >= MANY_UNKNOWN:
            found.append(f"Warning: {self.unknown()}; --vocabulary bytes loses nothing.")
        if documents < FEW_DOCUMENTS or tokens < FEW_TOKENS:
            found.append(
                f"Warning: only {counted(documents, 'document')} and {counted(tokens, 'token')} "
                "are held out, so validation losses are noisy (corpus --validation)."
            )
        return found


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder, hidden ones left out."""
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return {path.name: sha256(path) for path in paths}


def fingerprint(folder: Path, vocabulary: Vocabulary) -> str:
    """SHA-256 over every file of a corpus but the manifest, and over what the ids mean."""
    parts = [
        f"{part}/{name} {digest}"
        for part in (TOKENIZER, *SIDES)
        for name, digest in file_digests(folder / part).items()
    ]
    return hashlib.sha256("\n".join([*parts, str(vocabulary)]).encode()).hexdigest()


class TokenStream:
    """The tokens of one side as one long array, memory-mapped."""

    def __init__(self, folder: Path, dtype: str) -> None:
        self._tokens: TokenIds = _mapped(folder / TOKENS, dtype)
        self.sentence_starts: Offsets = _mapped(folder / SENTENCES, "int64")
        """Indices of the first tokens, ascending; documents' starts included."""

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self._tokens)

    def read(self, start: int, length: int) -> TokenIds:
        """Tokens start … start + length - 1, as a view into the file."""
        return self._tokens[start : start + length]

    def read_many(self, starts: Offsets, lengths: Offsets) -> TokenIds:
        """Several ranges, one after the other in one new array; starts and lengths (N,)."""
        tokens = self._tokens
        ranges = zip(starts.tolist(), (starts + lengths).tolist(), strict=True)
        return np.concatenate([tokens[:0], *(tokens[start:end] for start, end in ranges)])

    def sentence_starts_within(self, starts: Offsets, lengths: Offsets) -> tuple[Offsets, Offsets]:
        """Sentence starts within the tokens of several ranges; starts and lengths (N,).

        Returns:
            The sentence starts, ascending within each range, and for each the range it is of.
        """
        low = self.sentence_starts.searchsorted(starts)
        counts = self.sentence_starts.searchsorted(starts + lengths) - low
        owner = np.repeat(np.arange(len(starts)), counts)
        place = np.arange(len(owner)) + (low - np.cumsum(counts) + counts)[owner]
        return self.sentence_starts[place], owner


def _mapped(path: Path, dtype: str) -> npt.NDArray[Any]:
    with reading(path, _DAMAGED):
        # As a plain array: slicing numpy's memmap class is slow.
        return np.memmap(path, dtype, mode="r").view(np.ndarray)


@dataclass(frozen=True)
class Corpus:
    """An opened corpus."""

    folder: Path
    manifest: Manifest
    vocabulary: Vocabulary
    train: TokenStream
    validation: TokenStream
    stamps: Mapping[Path, int]  # when the streams' files had been changed, as they were opened

    @property
    def tokenizer_folder(self) -> Path:
        """A folder that `AutoTokenizer.from_pretrained` opens."""
        return self.folder / TOKENIZER

    @property
    def fingerprint(self) -> str:
        """The manifest's."""
        return self.manifest.fingerprint

    def verify_if_touched(self) -> None:
        """`verify`, if tokens were written since they were opened; what is removed stays open."""
        if not _stamps(self.folder).items() <= self.stamps.items():
            self.verify()

    def verify(self) -> None:
        """Read every file and compare the fingerprint with the manifest's; about 1 s a gigabyte."""
        with reading(self.folder, _DAMAGED):
            found = fingerprint(self.folder, self.vocabulary)
        if found != self.fingerprint:
            raise UserError(
                f"The corpus {self.folder} was changed after it was built: it no longer has the "
                "fingerprint in its manifest. Build it again."
            )


def open_corpus(folder: str | Path) -> Corpus:
    """Open a corpus that `build_corpus` made.

    Raises:
        UserError: there is no corpus, its manifest is damaged or of another version, or a file is
            missing. The contents are left to `Corpus.verify`.
    """
    folder = Path(folder).expanduser()
    manifest = Manifest.read(folder / MANIFEST)
    words, stamps = manifest.vocabulary, _stamps(folder)
    train, validation = (TokenStream(folder / side, words.dtype) for side in SIDES)
    return Corpus(folder, manifest, words, train, validation, stamps)


def _stamps(folder: Path) -> dict[Path, int]:
    paths = (folder / side / name for side in SIDES for name in (TOKENS, SENTENCES))
    return {path: path.stat().st_mtime_ns for path in paths if path.exists()}
