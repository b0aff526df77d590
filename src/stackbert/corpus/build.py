"""Building a corpus: two passes over the text, one to learn the tokenizer, one to tokenise."""

import contextlib
import errno
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np

from stackbert.corpus import store
from stackbert.corpus.encoder import Coverage, Encode, encoder_for, plain_tokenizer
from stackbert.corpus.learning import Sample, learn_bytes, learn_wordpiece
from stackbert.corpus.sentences import split_sentences
from stackbert.corpus.text import DataSet, Text, open_files
from stackbert.corpus.tokenizer import CorpusTokenizer, Vocabulary, add_tokens, load_tokenizer
from stackbert.errors import UserError
from stackbert.files import new_folder, reading, writing
from stackbert.progress import Progress

REFUSED_SHARE = 0.2  # of a side's text that no id stands for: a model of it would learn little else
_BATCH_CHARACTERS = 1 << 20
_PIECE_COST = 32  # characters that a sentence counts for besides its own, as it takes memory
_WORD = re.compile(r"\S+")
_PUNCTUATION = bytes(range(33)) + b"!\"#%&'()*,-./:;?@[\\]_{}"
# The punctuation and spaces of Latin-1, General Punctuation and CJK Symbols, in UTF-8.
_WIDE_PUNCTUATION = re.compile(rb"\xc2[\xa0-\xbf]|\xe2[\x80\x81][\x80-\xbf]|\xe3\x80[\x80-\xbf]")

Documents = Iterable[tuple[bytes, bool, str]]  # digest, whether held out, text; none is blank


def build_corpus(
    out: str | Path,
    *,
    text: str | Path | Sequence[str | Path] = (),
    suffixes: Sequence[str] = (),
    dataset: str | None = None,
    field: str = "text",
    tokenizer: str | Path | None = None,
    added_tokens: str | Path | None = None,
    vocabulary: Literal["wordpiece", "bytes"] = "wordpiece",
    vocab_size: int | None = None,
    lowercase: bool = True,
    strip_accents: bool = False,
    allow_unknown: bool = False,
    validation: float = 0.005,
    language: str = "",
    license: str = "",
    progress: Progress | None = None,
) -> store.Corpus:
    """Turn text into a corpus: a tokenizer, and memory-mapped token ids with a manifest.

    Duplicates, which differ in white space, punctuation or case at most, are dropped. A document's
    side, training or validation, depends on its text alone, so it stays when other text is added.
    The same input always gives the same corpus. Memory stays under 1 GB whatever the text; a
    document of over 16 MiB is cut.

    Args:
        out: the folder to make; it appears only once it is complete.
        text: files, folders or glob patterns of .txt (a blank line between documents, a paragraph
            a line), JSON lines and .parquet, the first two also as .gz, .xz, .bz2 or .zst. UTF-8.
            This or `dataset`, not both.
        suffixes: further suffixes to read, such as "py"; each of these files is one document.
        dataset: a folder or hub name for the `datasets` library (`NAME` or `NAME:CONFIGURATION`);
            its training split is read. Only a hub name uses the network.
        field: the field or column that holds the text; a null there is an empty document.
        tokenizer: an existing fast tokenizer: a folder with tokenizer.json, or that file. None:
            learn one from a sample of up to 48 MiB of the training documents.
        added_tokens: a text file; each of its lines becomes a token of that tokenizer, matched as a
            whole word. A model that training starts from gets rows for them.
        vocabulary: what to learn: "wordpiece", BERT's, or "bytes", a byte-level BPE that keeps
            case, white space and every character (for code, or any mix of scripts).
        vocab_size: entries of a learned tokenizer. None: 32,768 as in the paper, or what the text
            gives.
        lowercase, strip_accents: what word pieces lose; the paper's lose both.
        allow_unknown: build even if a fifth of the text, or more, is unknown to the tokenizer.
        validation: fraction of the documents held out; 0.005 is the paper's 199:1 split (Gong et
            al., "Efficient Training of BERT by Progressively Stacking", ICML 2019).
        language, license: for the cards of models, as the hub writes them ("de", "cc-by-4.0").

    Raises:
        UserError: an argument or the text is wrong; the sentence names the file and the line.
        RunError: the disk is full.
    """
    if bool(text) == (dataset is not None):
        raise UserError("Give either text (files, folders, patterns) or a data set, one of them.")
    if tokenizer is not None and (vocab_size is not None or vocabulary == "bytes" or strip_accents):
        raise UserError("Its vocabulary, size and accents are the tokenizer's own. Leave them out.")
    if added_tokens is not None and tokenizer is None:
        raise UserError("--add-tokens adds to an existing tokenizer. Give it with --tokenizer.")
    if strip_accents and vocabulary == "bytes":
        raise UserError("A byte-level vocabulary keeps accents. Leave out --strip-accents.")
    if vocab_size is not None and vocab_size < 64:
        raise UserError(f"The vocabulary must have at least 64 entries, not {vocab_size}.")
    if not 0 < validation < 1:
        raise UserError(f"The validation fraction must lie between 0 and 1, not {validation}.")
    out = Path(out).expanduser()
    progress = progress or Progress()
    with writing(f"building the corpus {out}"), new_folder(out) as folder:
        texts, left_out = (
            open_files(text, field, suffixes)
            if dataset is None
            else ([DataSet(dataset, field)], {})
        )
        if tokenizer is None:
            sample = _sample(_read(texts, validation, progress, "reading"))
            progress.say("learning the vocabulary …")
            if vocabulary == "bytes":
                chosen = learn_bytes(sample, vocab_size)
            else:
                options = {"lowercase": lowercase, "strip_accents": strip_accents}
                chosen = learn_wordpiece(sample, vocab_size, **options)
        else:
            chosen = load_tokenizer(tokenizer)
            if added_tokens is not None:
                chosen = add_tokens(chosen, added_tokens)
        chosen.save(folder / store.TOKENIZER)
        words = chosen.vocabulary
        documents = _read(texts, validation, progress, "tokenising")
        train, held_out, duplicates = _tokenise(documents, chosen, words, folder)
        found = sum(each.found for each in texts)
        manifest = store.Manifest(
            stackbert_version=version("stackbert"),
            language=language,
            license=license,
            dataset="" if dataset is None or Path(dataset).exists() else dataset.partition(":")[0],
            sources=tuple(store.Source(each.label, each.size, each.found) for each in texts),
            left_out=left_out,
            duplicate_documents=duplicates,
            empty_documents=found - duplicates - train.documents - held_out.documents,
            cuts=sum(each.cut for each in texts),
            validation_fraction=validation,
            vocabulary=words,
            tokenizer_files=store.file_digests(folder / store.TOKENIZER),
            fingerprint=store.fingerprint(folder, words),
            train=train,
            validation=held_out,
        )
        if manifest.unknown_share >= REFUSED_SHARE and not allow_unknown:
            raise UserError(
                f"The tokenizer does not know this text: {manifest.unknown()}. Learn one that "
                "knows every text (--vocabulary bytes), take another, or build the corpus all the "
                "same with --allow-unknown."
            )
        for warning in manifest.warnings():
            progress.say(warning)
        manifest.write(folder / store.MANIFEST)
    return store.open_corpus(out)


def _read(texts: Sequence[Text], validation: float, progress: Progress, phase: str) -> Documents:
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
            "hold out a larger share (--validation 0.1, say). In .txt files a blank line separates "
            "documents."
        )


def _sample(documents: Documents) -> Sample:
    sample, sides = Sample(), [0, 0]
    for digest, held_out, text in documents:
        sides[held_out] += 1
        if not held_out:
            sample.add(digest, text)
    _require(*sides)
    return sample


def _tokenise(
    documents: Documents, tokenizer: CorpusTokenizer, vocabulary: Vocabulary, folder: Path
) -> tuple[store.Side, store.Side, int]:
    """Write both sides; the two, and the number of duplicates."""
    plain = plain_tokenizer(tokenizer.tokenizer, vocabulary.special)
    encode = encoder_for(plain)
    train, validation = (
        _SideWriter(folder / side, encode, vocabulary, Coverage(plain)) for side in store.SIDES
    )
    duplicates = 0
    with _seen(folder / "seen.sqlite") as is_new:
        for digest, held_out, text in documents:
            if is_new(_content_digest(text) or digest):
                (validation if held_out else train).add(text)
            else:
                duplicates += 1
    train.flush()
    validation.flush()
    _require(train.documents, validation.documents)
    return train.describe(), validation.describe(), duplicates


def _content_digest(text: str) -> bytes:
    """Of the text without white space, punctuation and case; empty if nothing is left."""
    content = text.lower().encode().translate(None, _PUNCTUATION)
    if not text.isascii():
        content = _WIDE_PUNCTUATION.sub(b"", content)
    return content and blake2b(content, digest_size=16).digest()


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
        # Not `rowcount`: in Turkish, where I is the capital of ı, Python 3.11 knows no INSERT.
        insert = "INSERT OR IGNORE INTO seen VALUES (?) RETURNING 1"
        yield lambda digest: table.execute(insert, (digest,)).fetchone() is not None
    except sqlite3.OperationalError as error:
        raise OSError(errno.ENOSPC, str(error), str(path)) from error
    finally:
        table.close()
        path.unlink(missing_ok=True)


class _SideWriter:
    """Takes documents and writes their token ids; memory does not grow with them."""

    def __init__(
        self, folder: Path, encode: Encode, vocabulary: Vocabulary, coverage: Coverage
    ) -> None:
        folder.mkdir()
        self._folder, self._vocabulary = folder, vocabulary
        self._encode, self._coverage = encode, coverage
        self.documents = self._tokens = self._sentences = self._words = 0
        self._counts = np.zeros(vocabulary.size, np.int64)
        self._open = 0  # tokens on the disk of the document that is not at its end yet
        self._size = 0
        self._pieces: list[str] = []
        self._ends: list[int] = []  # how many pieces there were when each document ended

    def add(self, text: str) -> None:
        for piece in split_sentences(text):
            self._pieces.append(piece)
            self._size += len(piece) + _PIECE_COST
            if self._size >= _BATCH_CHARACTERS:
                self.flush()
        self._ends.append(len(self._pieces))
        # Not split(): the list of a long text takes too much memory.
        self._words += sum(1 for _ in _WORD.finditer(text))

    def flush(self) -> None:
        with reading("Text that the tokenizer does not know", "Take another tokenizer."):
            ids, lengths = self._encode(self._pieces)
        self._coverage.count(self._pieces, ids, lengths)
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        ends = bounds[np.array(self._ends, np.int64)]
        # Text of control characters alone gives no token: such a sentence or document is dropped.
        ends = ends[np.diff(ends, prepend=-self._open) > 0]
        starts = bounds[:-1][lengths > 0]
        stream = np.insert(ids.astype(self._vocabulary.dtype), ends, self._vocabulary.sep)
        starts += self._tokens + np.searchsorted(ends, starts, side="right")  # the separators
        for name, array in ((store.TOKENS, stream), (store.SENTENCES, starts)):
            with (self._folder / name).open("ab") as file:
                file.write(array.data)
        self._open = len(ids) - int(ends[-1]) if len(ends) else self._open + len(ids)
        self._counts += np.bincount(ids, minlength=len(self._counts))
        self._tokens += len(stream)
        self.documents += len(ends)
        self._sentences += len(starts)
        self._pieces, self._ends, self._size = [], [], 0

    def describe(self) -> store.Side:
        lost_characters, unknown_ids = self._coverage.lost(self._tokens)
        return store.Side(
            tokens=self._tokens,
            documents=self.documents,
            sentences=self._sentences,
            words=self._words,
            unigram_entropy=store.entropy(self._counts),
            lost_characters=lost_characters,
            unknown_ids=unknown_ids,
        )
