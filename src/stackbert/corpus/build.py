"""Building a corpus: two passes over the text, one to learn the tokenizer, one to tokenise."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal

import numpy as np

from stackbert import __version__
from stackbert.corpus.documents import Document, Documents, Progress, Seen
from stackbert.corpus.encoder import Encoder, encoder_for
from stackbert.corpus.manifest import FORMAT, MANIFEST, TOKENIZER, Manifest, Split, SplitName
from stackbert.corpus.readers import MAX_DOCUMENT_BYTES, Input, open_files
from stackbert.corpus.sentences import split_sentences
from stackbert.corpus.shards import SplitWriter
from stackbert.corpus.store import Corpus, open_corpus
from stackbert.corpus.tokenizer import CorpusTokenizer, Sample, learn_tokenizer, load_tokenizer
from stackbert.errors import UserError
from stackbert.files import (
    explaining_os_errors,
    folder_made_whole,
    sha256_of,
    write_json_atomically,
)

VALIDATION_FRACTION = 0.005
"""One document in 200: the paper's 199:1 split (Gong et al., ICML 2019)."""
_BATCH_CHARACTERS = 1 << 20


def build_corpus(
    out: str | Path,
    *,
    text: Sequence[str | Path] = (),
    dataset: str | None = None,
    field: str = "text",
    tokenizer: str | Path | None = None,
    vocab_size: int | None = None,
    lowercase: bool = True,
    validation: float = VALIDATION_FRACTION,
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
    on_progress: Progress | None = None,
) -> Corpus:
    """Turn text into a corpus: a tokenizer, and memory-mapped token shards with a manifest.

    Exact duplicates (of the text without white space at its ends) are dropped. A document's side,
    training or validation, depends on its text alone, so it stays when other text is added. The
    same input always gives the same corpus. Memory stays under 1 GB whatever the size of the text.

    Args:
        out: the folder to make; it must not exist. It appears only once it is complete.
        text: files, folders or glob patterns of .txt (a blank line between documents, a paragraph
            a line), .jsonl and .parquet, the first two also as .gz, .xz, .bz2 or .zst. UTF-8. This
            or `dataset`, not both.
        dataset: a folder or hub name for the `datasets` library (`NAME` or `NAME:CONFIGURATION`);
            its training split is read. Only a hub name uses the network.
        field: the field or column that holds the text, where there are several. A null there
            counts as an empty document.
        tokenizer: an existing fast tokenizer (a folder with tokenizer.json, or that file) to use.
            None: learn a WordPiece one from a sample of up to 48 MiB of the training documents.
        vocab_size: entries of a learned tokenizer. None: 32,768 as in the paper, or what the text
            gives.
        lowercase: whether a learned tokenizer lower-cases, as the paper's does.
        validation: fraction of the documents held out; 0.005 is the paper's 199:1 split (Gong et
            al., "Efficient Training of BERT by Progressively Stacking", ICML 2019).
        max_document_bytes: a longer document is refused, as memory grows with the longest one.
        on_progress: called about twice a megabyte with the phase and the bytes done and in all.

    Returns:
        The corpus, opened.

    Raises:
        UserError: an argument or the text is wrong; the sentence names the file and the line.
        RunError: the disk is full.
    """
    out = Path(out).expanduser()
    if out.exists():
        raise UserError(f"{out} exists already. Remove it or choose another folder.")
    _check(text, dataset, tokenizer, vocab_size, validation, max_document_bytes)
    inputs: Sequence[Input]
    if dataset is not None:
        from stackbert.corpus.dataset import DatasetInput

        inputs = [DatasetInput(dataset, field, max_document_bytes)]
    else:
        inputs = open_files(text, field, max_document_bytes)
    brought = None if tokenizer is None else load_tokenizer(tokenizer)
    documents = Documents(inputs, validation, on_progress or (lambda *_: None))
    with explaining_os_errors(f"building the corpus {out}"), folder_made_whole(out) as partial:
        chosen = brought or _learn(documents, vocab_size, lowercase=lowercase)
        chosen.save(partial / TOKENIZER)
        manifest = _tokenise(documents, chosen, partial)
        write_json_atomically(partial / MANIFEST, manifest.to_json())
    return open_corpus(out)


def _check(
    text: Sequence[str | Path],
    dataset: str | None,
    tokenizer: str | Path | None,
    vocab_size: int | None,
    validation: float,
    max_document_bytes: int,
) -> None:
    if isinstance(text, str | Path):
        raise UserError("text must be a list of paths, not a single one. Write text=[path].")
    if bool(text) == (dataset is not None):
        raise UserError("Give either text (files, folders, patterns) or a data set, one of them.")
    if tokenizer is not None and vocab_size is not None:
        raise UserError(
            "A vocabulary size goes with a tokenizer that is learned. Leave out one of the two."
        )
    if vocab_size is not None and vocab_size < 64:
        raise UserError(f"The vocabulary must have at least 64 entries, not {vocab_size}.")
    if not 0 < validation < 1:
        raise UserError(
            f"The validation fraction must lie between 0 and 1, not {validation}. "
            "Both sides need a document."
        )
    if max_document_bytes < 1:
        raise UserError(f"max_document_bytes must be at least 1, not {max_document_bytes}.")


def _learn(documents: Documents, vocab_size: int | None, *, lowercase: bool) -> CorpusTokenizer:
    sample = Sample()
    sides = [0, 0]
    for document in documents.read("reading"):
        sides[document.held_out] += 1
        if not document.held_out:
            sample.add(document.digest, document.data)
    documents.require(*sides)
    documents.announce("learning")
    return learn_tokenizer(sample, vocab_size, lowercase=lowercase)


def _tokenise(documents: Documents, tokenizer: CorpusTokenizer, folder: Path) -> Manifest:
    dtype: Literal["uint16", "uint32"] = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
    encoder, separator = encoder_for(tokenizer.tokenizer), tokenizer.separator_id
    names: tuple[SplitName, SplitName] = ("train", "validation")
    sides = [
        _Side(encoder, SplitWriter(folder / name, dtype, tokenizer.vocab_size), separator)
        for name in names
    ]
    duplicates = 0
    with closing(Seen(folder / "seen.sqlite")) as seen:
        for document in documents.read("tokenising"):
            if seen.add(document.digest):
                sides[document.held_out].add(document)
            else:
                duplicates += 1
    train, held_out = (side.finish() for side in sides)
    documents.empty += sum(side.empty for side in sides)
    documents.require(train.documents, held_out.documents)
    return Manifest(
        format=FORMAT,
        stackbert_version=__version__,
        sources=documents.sources(),
        duplicate_documents=duplicates,
        empty_documents=documents.empty,
        validation_fraction=documents.validation,
        vocab_size=tokenizer.vocab_size,
        tokenizer_size=tokenizer.size,
        separator_id=tokenizer.separator_id,
        lowercase=tokenizer.lowercase,
        dtype=dtype,
        tokenizer_sha256=sha256_of(folder / TOKENIZER / "tokenizer.json"),
        train=train,
        validation=held_out,
    )


class _Side:
    """Gathers one split's sentences until there are enough of them to encode at a stretch."""

    def __init__(self, encoder: Encoder, writer: SplitWriter, separator: int) -> None:
        self._encoder = encoder
        self._writer = writer
        self._separator = separator
        self.empty = 0
        self._clear()

    def _clear(self) -> None:
        self._pieces: list[str] = []
        self._pieces_a_document: list[int] = []
        self._words: list[int] = []
        self._characters = 0

    def add(self, document: Document) -> None:
        before = len(self._pieces)
        self._pieces += split_sentences(document.text)
        self._pieces_a_document.append(len(self._pieces) - before)
        self._words.append(document.words())
        self._characters += len(document.text)
        if self._characters >= _BATCH_CHARACTERS:
            self._flush()

    def finish(self) -> Split:
        if self._pieces:
            self._flush()
        return self._writer.finish()

    def _flush(self) -> None:
        ids, lengths = self._encoder.encode(self._pieces)
        piece_ends = np.cumsum(lengths)
        ends = piece_ends[np.cumsum(self._pieces_a_document) - 1]
        # Text of control characters alone gives no token: such a sentence or document is dropped.
        kept = np.diff(ends, prepend=0) > 0
        self.empty += int((~kept).sum())
        self._writer.add(
            ids,
            ends[kept],
            (piece_ends - lengths)[lengths > 0],
            self._separator,
            int(np.array(self._words)[kept].sum()),
        )
        self._clear()
