"""A corpus on the disk: the format, and reading it by memory map.

    CORPUS/manifest.json          counts, sources, and a fingerprint of all that follows
    CORPUS/tokenizer/             a Hugging Face fast tokenizer
    CORPUS/train/tokens.bin       token ids, uint16 or uint32: every document, then one separator
    CORPUS/train/documents.bin    where each document starts in them, int64
    CORPUS/train/sentences.bin    where each sentence starts, int64; a document's start is one too
    CORPUS/validation/            the same for the held-out documents

The .bin files are plain little-endian arrays without a header, so they are written as the text
comes, and memory does not grow with them.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from stackbert.corpus.tokenizer import Vocabulary, load_vocabulary
from stackbert.errors import UserError
from stackbert.files import Record, reading, sha256

MANIFEST, TOKENIZER = "manifest.json", "tokenizer"
TOKENS, DOCUMENTS, SENTENCES = "tokens.bin", "documents.bin", "sentences.bin"

TokenIds = npt.NDArray[np.unsignedinteger[Any]]
"""uint16 where the vocabulary fits, else uint32."""
Offsets = npt.NDArray[np.int64]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(_Part):
    """One file or data set that the text came from."""

    name: str
    """The file's name without its folders, or the data set's name."""
    bytes: int
    """Size of the file as stored (compressed, if it was); of the text, for a data set."""
    documents: int
    """Documents found in it, empty ones and duplicates included."""


class Side(_Part):
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
    vocab_size: int
    """Rows of a model's embedding: the tokenizer's size rounded up to a multiple of 64."""
    tokenizer_size: int
    """One more than the tokenizer's highest id."""
    separator_id: int
    lowercase: bool | None
    """None if an existing tokenizer was taken."""
    dtype: Literal["uint16", "uint32"]
    fingerprint: str
    """SHA-256 over the tokens, the tokenizer and the sizes above."""
    train: Side
    validation: Side


def fingerprint(folder: Path, vocab_size: int, tokenizer_size: int, separator_id: int) -> str:
    """SHA-256 over every file of a corpus but the manifest, and over what the ids mean."""
    files = [
        path
        for part in (TOKENIZER, "train", "validation")
        for path in sorted((folder / part).iterdir())
        if not path.name.startswith(".")
    ]
    parts = [f"{path.relative_to(folder)} {sha256(path)}" for path in files]
    parts.append(f"{vocab_size} {tokenizer_size} {separator_id}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


class TokenStream:
    """The tokens of one side as one long array, memory-mapped.

    Args:
        folder: of the side.
        side: what the manifest says of it.
        dtype: of the token ids.

    Raises:
        UserError: a file is missing or has another length than the manifest says.
    """

    def __init__(self, folder: Path, side: Side, dtype: str) -> None:
        self._tokens: TokenIds = _mapped(folder / TOKENS, dtype, side.tokens)
        self.document_starts: Offsets = _mapped(folder / DOCUMENTS, "int64", side.documents)
        """Index of the first token of every document, ascending."""
        self.sentence_starts: Offsets = _mapped(folder / SENTENCES, "int64", side.sentences)
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


def _mapped(path: Path, dtype: str, length: int) -> npt.NDArray[Any]:
    with reading(path, "The corpus is damaged: build it again."):
        # As a plain array: slicing numpy's memmap class is slow.
        array = np.memmap(path, dtype, mode="r").view(np.ndarray)
    if len(array) != length:
        raise UserError(
            f"{path} holds {len(array):,} entries, the manifest says {length:,}. The corpus is "
            "damaged: build it again."
        )
    return array


@dataclass(frozen=True)
class Corpus:
    """An opened corpus."""

    folder: Path
    manifest: Manifest
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

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Sizes and special ids; loads transformers."""
        manifest = self.manifest
        return load_vocabulary(
            self.tokenizer_folder,
            size=manifest.vocab_size,
            tokenizer_size=manifest.tokenizer_size,
            separator=manifest.separator_id,
        )

    def verify(self) -> None:
        """Read every file and compare the fingerprint with the manifest's; about 1 s a gigabyte.

        Raises:
            UserError: a file was changed since the corpus was built.
        """
        m = self.manifest
        with reading(self.folder, "The corpus is damaged: build it again."):
            found = fingerprint(self.folder, m.vocab_size, m.tokenizer_size, m.separator_id)
        if found != m.fingerprint:
            raise UserError(
                f"The corpus {self.folder} was changed after it was built: its tokens or its "
                "tokenizer no longer have the fingerprint in its manifest. Build it again."
            )


def open_corpus(folder: str | Path) -> Corpus:
    """Open a corpus that `build_corpus` made.

    Raises:
        UserError: there is no corpus, its manifest is damaged or of another version, or a file is
            missing or has the wrong length. The contents are left to `Corpus.verify`.
    """
    folder = Path(folder).expanduser()
    manifest = Manifest.read(folder / MANIFEST)
    return Corpus(
        folder,
        manifest,
        TokenStream(folder / "train", manifest.train, manifest.dtype),
        TokenStream(folder / "validation", manifest.validation, manifest.dtype),
    )
