"""A corpus on the disk: the format, and reading it by memory map.

    CORPUS/manifest.json          vocabulary, counts, sources, and a fingerprint of what follows
    CORPUS/tokenizer/             a Hugging Face fast tokenizer
    CORPUS/train/tokens.bin       token ids, uint16 or uint32: every document, then one separator
    CORPUS/train/sentences.bin    where each sentence starts in them, int64
    CORPUS/validation/            the same for the held-out documents

The .bin files are little-endian arrays without a header, so they can be written bit by bit.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from stackbert.corpus.tokenizer import Vocabulary
from stackbert.errors import UserError
from stackbert.files import Record, reading, sha256

MANIFEST, TOKENIZER = "manifest.json", "tokenizer"
TOKENS, SENTENCES = "tokens.bin", "sentences.bin"
_DAMAGED = "The corpus is damaged: build it again."

TokenIds = npt.NDArray[np.unsignedinteger[Any]]
"""uint16 where the vocabulary fits, else uint32."""
Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Source:
    """One file or data set that the text came from."""

    name: str
    """The file's name without its folders, or the data set's name."""
    bytes: int
    """Size of the file as stored (compressed, if it was); of the text, for a data set."""
    documents: int
    """Documents found in it, empty ones and duplicates included."""


@dataclass(frozen=True)
class Side:
    """What is trained on, or what is held out."""

    tokens: int
    """All ids of the stream, separators included."""
    documents: int
    sentences: int
    words: int
    """White-space separated words of the text."""
    unigram_entropy: float
    """Entropy in nats of this side's token frequencies, separators left out: the loss of a model
    that knows frequencies and nothing else."""


class Manifest(Record):
    """Everything about a corpus but its tokens."""

    what: ClassVar[str] = "a corpus built by 'stackbert corpus'"
    stackbert_version: str
    sources: tuple[Source, ...]
    duplicate_documents: int
    empty_documents: int
    validation_fraction: float
    vocabulary: Vocabulary
    fingerprint: str
    """SHA-256 over the tokens, the tokenizer and the vocabulary."""
    train: Side
    validation: Side


def fingerprint(folder: Path, vocabulary: Vocabulary) -> str:
    """SHA-256 over every file of a corpus but the manifest, and over what the ids mean."""
    files = [
        path
        for part in (TOKENIZER, "train", "validation")
        for path in sorted((folder / part).iterdir())
        if not path.name.startswith(".")
    ]
    parts = [f"{path.relative_to(folder)} {sha256(path)}" for path in files]
    return hashlib.sha256("\n".join([*parts, str(vocabulary)]).encode()).hexdigest()


class TokenStream:
    """The tokens of one side as one long array, memory-mapped.

    Args:
        folder: of the side.
        dtype: of the token ids.

    Raises:
        UserError: a file is missing or empty.
    """

    def __init__(self, folder: Path, dtype: str) -> None:
        self._tokens: TokenIds = _mapped(folder / TOKENS, dtype)
        self.sentence_starts: Offsets = _mapped(folder / SENTENCES, "int64")
        """Index of the first token of every sentence, ascending; documents' starts included."""

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

    @property
    def tokenizer_folder(self) -> Path:
        """A folder that `AutoTokenizer.from_pretrained` opens."""
        return self.folder / TOKENIZER

    @property
    def fingerprint(self) -> str:
        """Differs when the tokens or the tokenizer differ."""
        return self.manifest.fingerprint

    def verify(self) -> None:
        """Read every file and compare the fingerprint with the manifest's; about 1 s a gigabyte.

        Raises:
            UserError: a file was changed since the corpus was built.
        """
        with reading(self.folder, _DAMAGED):
            found = fingerprint(self.folder, self.vocabulary)
        if found != self.fingerprint:
            raise UserError(
                f"The corpus {self.folder} was changed after it was built: its tokens or its "
                "tokenizer no longer have the fingerprint in its manifest. Build it again."
            )


def open_corpus(folder: str | Path) -> Corpus:
    """Open a corpus that `build_corpus` made.

    Raises:
        UserError: there is no corpus, its manifest is damaged or of another version, or a file is
            missing. The contents are left to `Corpus.verify`.
    """
    folder = Path(folder).expanduser()
    manifest = Manifest.read(folder / MANIFEST)
    words = manifest.vocabulary
    sides = (TokenStream(folder / side, words.dtype) for side in ("train", "validation"))
    return Corpus(folder, manifest, words, *sides)
