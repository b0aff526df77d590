"""Building a corpus: two passes over the text, one to learn the tokenizer, one to tokenise."""

import contextlib
import errno
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stackbert.corpus.encoder import Encode, encoder_for
from stackbert.corpus.sentences import split_sentences
from stackbert.corpus.store import (
    MANIFEST,
    SENTENCES,
    TOKENIZER,
    TOKENS,
    Corpus,
    Manifest,
    Side,
    Source,
    fingerprint,
    open_corpus,
)
from stackbert.corpus.text import DataSet, Text, open_files
from stackbert.corpus.tokenizer import (
    CorpusTokenizer,
    Sample,
    Vocabulary,
    learn_tokenizer,
    load_tokenizer,
)
from stackbert.errors import UserError
from stackbert.files import new_folder, writing
from stackbert.progress import Progress

_BATCH_CHARACTERS = 1 << 20
_PIECE_COST = 32
"""Characters that a sentence counts for besides its own: many short ones need memory as well."""
_WORD = re.compile(r"\S+")

Read = Callable[[str], Iterator[tuple[bytes, bool, str]]]
"""From the name of a phase to what `_read` gives."""


def build_corpus(
    out: str | Path,
    *,
    text: str | Path | Sequence[str | Path] = (),
    dataset: str | None = None,
    field: str = "text",
    tokenizer: str | Path | None = None,
    vocab_size: int | None = None,
    lowercase: bool = True,
    validation: float = 0.005,
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
            or `dataset`, not both. A document has at most 64 MiB.
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
        progress: hears of the phases, and of the megabytes read.

    Raises:
        UserError: an argument or the text is wrong; the sentence names the file and the line.
        RunError: the disk is full.
    """
    if bool(text) == (dataset is not None):
        raise UserError("Give either text (files, folders, patterns) or a data set, one of them.")
    if tokenizer is not None and vocab_size is not None:
        raise UserError(
            "A vocabulary size goes with a tokenizer that is learned. Leave out one of the two."
        )
    if vocab_size is not None and vocab_size < 64:
        raise UserError(f"The vocabulary must have at least 64 entries, not {vocab_size}.")
    if not 0 < validation < 1:
        raise UserError(f"The validation fraction must lie between 0 and 1, not {validation}.")
    out = Path(out).expanduser()
    with writing(f"building the corpus {out}"), new_folder(out) as folder:
        texts = open_files(text, field) if dataset is None else [DataSet(dataset, field)]
        progress = progress or Progress()
        read = partial(_read, texts, validation, progress)
        if tokenizer is None:
            sample = _sample(read)
            progress.say("learning the vocabulary …")
            chosen = learn_tokenizer(sample, vocab_size, lowercase=lowercase)
        else:
            chosen = load_tokenizer(tokenizer)
        vocabulary = chosen.save(folder / TOKENIZER)
        train, held_out, duplicates = _tokenise(read, chosen, vocabulary, folder)
        found = sum(each.found for each in texts)
        Manifest(
            stackbert_version=version("stackbert"),
            sources=tuple(
                Source(name=each.label, bytes=each.size, documents=each.found) for each in texts
            ),
            duplicate_documents=duplicates,
            empty_documents=found - duplicates - train.documents - held_out.documents,
            validation_fraction=validation,
            vocabulary=vocabulary,
            fingerprint=fingerprint(folder, vocabulary),
            train=train,
            validation=held_out,
        ).write(folder / MANIFEST)
    return open_corpus(out)


def _read(
    texts: Sequence[Text], validation: float, progress: Progress, phase: str
) -> Iterator[tuple[bytes, bool, str]]:
    """Digest, whether it is held out, and text of each document that is not blank."""
    progress.say(f"{phase} …")
    total = sum(each.size for each in texts)
    before = reported = 0
    for each in texts:
        for raw in each.documents():
            text = raw.replace("\r\n", "\n").strip()
            if text:
                digest = blake2b(text.encode(), digest_size=16).digest()
                yield digest, int.from_bytes(digest[:8]) < int(validation * 2**64), text
            done = (before + each.position) >> 20
            if done > reported:
                reported = done
                progress.step(done, max(done, total >> 20), f"MB, {phase}")
        before += each.size


def _require(training: int, held_out: int) -> None:
    if not training or not held_out:
        raise UserError(
            f"Of the text's {training + held_out:,} documents {training:,} fall to the training "
            f"side and {held_out:,} to the validation side, and both need one. Give more text or "
            "change the validation fraction (--validation). In .txt files a blank line separates "
            "documents."
        )


def _sample(read: Read) -> Sample:
    sample = Sample()
    sides = [0, 0]
    for digest, held_out, text in read("reading"):
        sides[held_out] += 1
        if not held_out:
            sample.add(digest, text.encode())
    _require(*sides)
    return sample


def _tokenise(
    read: Read, tokenizer: CorpusTokenizer, vocabulary: Vocabulary, folder: Path
) -> tuple[Side, Side, int]:
    """Write both sides; the two, and the number of duplicates."""
    encode = encoder_for(tokenizer.tokenizer)
    train = SideWriter(folder / "train", encode, vocabulary)
    validation = SideWriter(folder / "validation", encode, vocabulary)
    duplicates = 0
    with _seen(folder / "seen.sqlite") as is_new:
        for digest, held_out, text in read("tokenising"):
            if is_new(digest):
                (validation if held_out else train).add(text)
            else:
                duplicates += 1
    train.flush()
    validation.flush()
    _require(train.documents, validation.documents)
    return train.describe(), validation.describe(), duplicates


@contextlib.contextmanager
def _seen(path: Path) -> Iterator[Callable[[bytes], bool]]:
    """A test whether a digest is new, over a table on the disk: memory may not hold them all."""
    table = sqlite3.connect(path, isolation_level=None)
    try:
        # It never outlives the build, so nothing needs to be safe; 64 MiB of it stay in memory.
        table.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-65536;"
            "CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID; BEGIN;"
        )
        insert = "INSERT OR IGNORE INTO seen VALUES (?)"
        yield lambda digest: table.execute(insert, (digest,)).rowcount > 0
    except sqlite3.OperationalError as error:
        raise OSError(errno.ENOSPC, str(error), str(path)) from error
    finally:
        table.close()
        path.unlink(missing_ok=True)


class SideWriter:
    """Takes documents and writes their token ids; memory does not grow with them.

    Args:
        folder: of the side, made here.
        encode: from sentences to ids.
        vocabulary: of these ids.
    """

    def __init__(self, folder: Path, encode: Encode, vocabulary: Vocabulary) -> None:
        folder.mkdir()
        self.documents = 0
        self._tokens = self._sentences = self._words = 0
        self._folder = folder
        self._encode = encode
        self._vocabulary = vocabulary
        self._counts = np.zeros(vocabulary.size, np.int64)
        self._open = 0
        """Tokens on the disk of the document that is not at its end yet."""
        self._clear()

    def _clear(self) -> None:
        self._pieces: list[str] = []
        self._ends: list[int] = []
        """How many of the pieces there were when each document ended."""
        self._size = 0

    def add(self, text: str) -> None:
        """Append a document that is not blank."""
        for piece in split_sentences(text):
            self._pieces.append(piece)
            self._size += len(piece) + _PIECE_COST
            if self._size >= _BATCH_CHARACTERS:
                self.flush()
        self._ends.append(len(self._pieces))
        # Not split(): the list of a long text takes too much memory.
        self._words += sum(1 for _ in _WORD.finditer(text))

    def flush(self) -> None:
        """Write what was added so far."""
        ids, lengths = self._encode(self._pieces)
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        ends = bounds[np.array(self._ends, np.int64)]
        # Text of control characters alone gives no token: such a sentence or document is dropped.
        ends = ends[np.diff(ends, prepend=-self._open) > 0]
        starts = bounds[:-1][lengths > 0]
        stream = np.insert(ids.astype(self._vocabulary.dtype), ends, self._vocabulary.sep)
        self._append(TOKENS, stream)
        starts += self._tokens + np.searchsorted(ends, starts, side="right")  # the separators
        self._append(SENTENCES, starts)
        self._open = len(ids) - int(ends[-1]) if len(ends) else self._open + len(ids)
        self._counts += np.bincount(ids, minlength=len(self._counts))
        self._tokens += len(stream)
        self.documents += len(ends)
        self._sentences += len(starts)
        self._clear()

    def _append(self, name: str, array: npt.NDArray[Any]) -> None:
        with (self._folder / name).open("ab") as file:
            file.write(array.data)

    def describe(self) -> Side:
        """What the manifest says of the side."""
        share = self._counts[self._counts > 0] / self._counts.sum()
        return Side(
            tokens=self._tokens,
            documents=self.documents,
            sentences=self._sentences,
            words=self._words,
            unigram_entropy=float(-(share * np.log(share)).sum()),
        )
