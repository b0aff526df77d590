"""Building a corpus: two passes over the text, one to learn the tokenizer, one to tokenise."""

import contextlib
import errno
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple

from stackbert.corpus.encoder import encoder_for
from stackbert.corpus.store import (
    MANIFEST,
    TOKENIZER,
    Corpus,
    Manifest,
    Source,
    fingerprint,
    open_corpus,
)
from stackbert.corpus.text import MAX_DOCUMENT_BYTES, DataSet, Text, open_files
from stackbert.corpus.tokenizer import CorpusTokenizer, Sample, learn_tokenizer, load_tokenizer
from stackbert.corpus.writer import SideWriter
from stackbert.errors import UserError
from stackbert.files import new_folder, writing
from stackbert.progress import Progress

VALIDATION_FRACTION = 0.005
"""One document in 200: the paper's 199:1 split (Gong et al., ICML 2019)."""
_REPORT_BYTES = 1 << 19


def build_corpus(
    out: str | Path,
    *,
    text: str | Path | Sequence[str | Path] = (),
    dataset: str | None = None,
    field: str = "text",
    tokenizer: str | Path | None = None,
    vocab_size: int | None = None,
    lowercase: bool = True,
    validation: float = VALIDATION_FRACTION,
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
    progress: Progress | None = None,
) -> Corpus:
    """Turn text into a corpus: a tokenizer, and memory-mapped token ids with a manifest.

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
        progress: hears of the phases, and of the megabytes read.

    Returns:
        The corpus, opened.

    Raises:
        UserError: an argument or the text is wrong; the sentence names the file and the line.
        RunError: the disk is full.
    """
    out = Path(out).expanduser()
    if out.exists():
        raise UserError(f"{out} exists already. Remove it or choose another folder.")
    _check(text, dataset, tokenizer, vocab_size, validation)
    texts: Sequence[Text]
    if dataset is None:
        texts = open_files(text, field, max_document_bytes)
    else:
        texts = [DataSet(dataset, field, max_document_bytes)]
    existing = None if tokenizer is None else load_tokenizer(tokenizer)
    documents = _Documents(texts, validation, progress or Progress())
    with writing(f"building the corpus {out}"), new_folder(out) as partial:
        chosen = existing or _learn(documents, vocab_size, lowercase=lowercase)
        chosen.save(partial / TOKENIZER)
        _tokenise(documents, chosen, partial).write(partial / MANIFEST)
    return open_corpus(out)


def _check(
    text: str | Path | Sequence[str | Path],
    dataset: str | None,
    tokenizer: str | Path | None,
    vocab_size: int | None,
    validation: float,
) -> None:
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


class _Document(NamedTuple):
    """One document that is not blank."""

    text: str
    data: bytes
    """The text in UTF-8."""
    digest: bytes
    """BLAKE2b of `data`, 16 bytes."""
    held_out: bool
    """Whether it belongs to the validation side."""


class _Documents:
    """The documents of all texts; can be read again.

    Attributes:
        found: documents in each text, of the latest reading, blank and duplicate ones included.
        empty: blank documents of the latest reading.
    """

    def __init__(self, texts: Sequence[Text], validation: float, progress: Progress) -> None:
        self._texts = texts
        self.validation = validation
        self._below = int(validation * 2**64)
        self.progress = progress
        self.found = [0] * len(texts)
        self.empty = 0

    def read(self, phase: str) -> Iterator[_Document]:
        """All documents that are not blank, duplicates included."""
        self.found = [0] * len(self._texts)
        self.empty = 0
        before = unreported = 0
        total = sum(each.size for each in self._texts)
        self.progress.say(f"{phase} …")
        for index, each in enumerate(self._texts):
            for raw in each.documents():
                self.found[index] += 1
                text = raw.replace("\r\n", "\n").strip()
                if not text:
                    self.empty += 1
                    continue
                data = text.encode()
                digest = blake2b(data, digest_size=16).digest()
                yield _Document(text, data, digest, int.from_bytes(digest[:8]) < self._below)
                unreported += len(data)
                if unreported >= _REPORT_BYTES:
                    unreported = 0
                    self._report(before + each.position, total, phase)
            before += each.size
        self._report(before, total, phase)

    def _report(self, done: int, total: int, phase: str) -> None:
        self.progress.step(done >> 20, max(1, total >> 20), f"MB, {phase}")

    def sources(self) -> tuple[Source, ...]:
        """What the manifest says of the texts."""
        return tuple(
            Source(name=each.label, bytes=each.size, documents=found)
            for each, found in zip(self._texts, self.found, strict=True)
        )

    def require(self, training: int, held_out: int) -> None:
        """Both sides need a document, else a `UserError` says what to do."""
        if training + held_out == 0:
            names = ", ".join(each.name for each in self._texts[:3])
            more = f" and {len(self._texts) - 3} more" if len(self._texts) > 3 else ""
            what = "hold only documents without text" if sum(self.found) else "hold no document"
            raise UserError(f"{names}{more} {what}. Give text to build a corpus from.")
        if not held_out or not training:
            side, change = ("validation", "raise") if training else ("training", "lower")
            raise UserError(
                f"Of {training + held_out:,} documents none falls to the {side} side: {change} the "
                "validation fraction (--validation) or give more text. "
                "In .txt files a blank line separates documents."
            )


def _learn(documents: _Documents, vocab_size: int | None, *, lowercase: bool) -> CorpusTokenizer:
    sample = Sample()
    sides = [0, 0]
    for document in documents.read("reading"):
        sides[document.held_out] += 1
        if not document.held_out:
            sample.add(document.digest, document.data)
    documents.require(*sides)
    documents.progress.say("learning the vocabulary …")
    return learn_tokenizer(sample, vocab_size, lowercase=lowercase)


def _tokenise(documents: _Documents, tokenizer: CorpusTokenizer, folder: Path) -> Manifest:
    dtype: Literal["uint16", "uint32"] = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
    encode = encoder_for(tokenizer.tokenizer)
    writers = [
        SideWriter(
            folder / name,
            encode,
            vocab_size=tokenizer.vocab_size,
            separator=tokenizer.separator_id,
            dtype=dtype,
        )
        for name in ("train", "validation")
    ]
    duplicates = 0
    with _seen(folder / "seen.sqlite") as is_new:
        for document in documents.read("tokenising"):
            if is_new(document.digest):
                writers[document.held_out].add(document.text)
            else:
                duplicates += 1
    train, held_out = (writer.finish() for writer in writers)
    documents.require(train.documents, held_out.documents)
    return Manifest(
        stackbert_version=version("stackbert"),
        sources=documents.sources(),
        duplicate_documents=duplicates,
        empty_documents=documents.empty + sum(writer.empty for writer in writers),
        validation_fraction=documents.validation,
        vocab_size=tokenizer.vocab_size,
        tokenizer_size=tokenizer.size,
        separator_id=tokenizer.separator_id,
        lowercase=tokenizer.lowercase,
        dtype=dtype,
        fingerprint=fingerprint(
            folder, tokenizer.vocab_size, tokenizer.size, tokenizer.separator_id
        ),
        train=train,
        validation=held_out,
    )


@contextlib.contextmanager
def _seen(path: Path) -> Iterator[Callable[[bytes], bool]]:
    """A test whether a digest is new, over a table on the disk: memory may not hold them all."""
    table = sqlite3.connect(path, isolation_level=None)

    def is_new(digest: bytes) -> bool:
        return table.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,)).rowcount > 0

    try:
        # It never outlives the build, so nothing needs to be safe; 64 MiB of it stay in memory.
        for setting in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-65536"):
            table.execute(f"PRAGMA {setting}")
        table.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID")
        table.execute("BEGIN")
        yield is_new
    except sqlite3.OperationalError as error:
        raise OSError(errno.ENOSPC, str(error), str(path)) from error
    finally:
        table.close()
        path.unlink(missing_ok=True)
