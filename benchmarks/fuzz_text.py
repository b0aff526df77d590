"""Readers of text and of tokenizers, each beside a second, slow and simple way to read the same."""

import bz2
import gzip
import io
import itertools
import json
import lzma
import random
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import fuzz_damage as damage
import fuzz_structure as structure
from fuzz_cases import Reader, WrongResult
from stackbert.corpus.build import build_corpus
from stackbert.corpus.readers import open_files
from stackbert.corpus.sentences import LONGEST
from stackbert.corpus.store import Corpus
from stackbert.corpus.tokenizer import load_tokenizer
from stackbert.errors import StackBertError

DOCUMENTS = (
    "The river rose in spring.\nIt fell again by June, and the mill stood still.",
    "One.",
    "Ça va? Naïve café, 東京は大きい。 Привет, мир! 한국어 문장입니다.",
    'He said "no", (twice); then — nothing… 3.14 % of 1,000.',
    "\u202eright to left\u202c and שלום עולם مرحبا",
    "emoji 🙂👩‍👩‍👧 and e\u0301 combining",
    *(f"Document {n} speaks of the number {n * n} and of no other." for n in range(12)),
)


def _expect(
    got: Callable[[], Sequence[str]], wanted: Sequence[str] | None, what: str = "documents"
) -> None:
    """That a reader gives `wanted`, or refuses where that is None."""
    try:
        found = got()
    except StackBertError as error:
        if wanted is not None:
            raise WrongResult(f"it refuses {what} that are right ({error})") from error
        raise
    if wanted is None:
        raise WrongResult(f"it reads {what} that are damaged: {str(found)[:80]!r}")
    if list(found) != list(wanted):
        raise WrongResult(f"other {what}: {str(found)[:80]!r} for {str(wanted)[:80]!r}")


def _read(path: Path) -> list[str]:
    return [text for one in open_files([path]) for text in one.documents()]


def documents_of_text(data: bytes) -> list[str] | None:
    """The documents of a .txt file; None if it is not UTF-8."""
    groups: list[list[bytes]] = [[]]
    for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        if line.removesuffix(b"\r").strip():
            groups[-1].append(line.removesuffix(b"\r"))
        elif groups[-1]:
            groups.append([])
    try:
        return [b"\n".join(group).decode("utf-8") for group in groups if group]
    except UnicodeDecodeError:
        return None


def documents_of_json_lines(data: bytes) -> list[str] | None:
    """The documents of a .jsonl file; None if a line is no object with a text."""
    documents = []
    for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        if not line.removesuffix(b"\r").strip():
            continue
        try:
            value = json.loads(line.removesuffix(b"\r").decode("utf-8"))
        except (ValueError, RecursionError):
            return None
        text = value.get("text", 0) if isinstance(value, dict) else 0
        if not (text is None or isinstance(text, str)):
            return None
        documents.append("".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text or ""))
    return documents


class Text(Reader):
    """Corpus text."""

    name = "text"
    reads = "corpus text, .txt"
    damages: ClassVar = {"all.txt": damage.of_bytes}

    def prepare(self, folder: Path) -> None:
        """Some documents of several scripts."""
        (folder / "all.txt").write_bytes("\n\n".join(DOCUMENTS).encode())

    def read(self, folder: Path, damaged: str) -> None:
        """By lines, and once more by splitting the whole."""
        path = folder / damaged
        _expect(lambda: _read(path), documents_of_text(path.read_bytes()))


class JsonLines(Reader):
    """Corpus text as JSON."""

    name = "jsonl"
    reads = "corpus text, .jsonl"
    damages: ClassVar = {"all.jsonl": structure.of_json_lines}

    def prepare(self, folder: Path) -> None:
        """The same documents with another field beside."""
        rows = [json.dumps({"id": n, "text": text}) for n, text in enumerate(DOCUMENTS)]
        (folder / "all.jsonl").write_bytes(("\n".join(rows) + "\n").encode())

    def read(self, folder: Path, damaged: str) -> None:
        """By lines, and once more by splitting the whole."""
        path = folder / damaged
        _expect(lambda: _read(path), documents_of_json_lines(path.read_bytes()))


class Compressed(Reader):
    """Corpus text behind a compression."""

    name = "compressed"
    reads = "corpus text, .gz .xz .bz2 .zst"
    damages: ClassVar = {
        f"all.txt.{kind}": damage.of_bytes for kind in ("gz", "xz", "bz2", "zst")
    } | {"all.jsonl.gz": damage.of_bytes}

    def prepare(self, folder: Path) -> None:
        """In two members, one behind the other."""
        import zstandard

        halves = ["\n\n".join(half).encode() for half in (DOCUMENTS[:9], ("", *DOCUMENTS[9:]))]
        squeeze: dict[str, Callable[[bytes], bytes]] = {
            "gz": lambda data: gzip.compress(data, mtime=0),
            "xz": lzma.compress,
            "bz2": bz2.compress,
            "zst": zstandard.ZstdCompressor(write_checksum=True).compress,
        }
        for kind, compress in squeeze.items():
            (folder / f"all.txt.{kind}").write_bytes(b"".join(map(compress, halves)))
        rows = "".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS)
        (folder / "all.jsonl.gz").write_bytes(squeeze["gz"](rows.encode()))

    def read(self, folder: Path, damaged: str) -> None:
        """As a stream, and once more member by member."""
        path = folder / damaged
        data = _decompressed(path.read_bytes(), path.suffix)
        parse = documents_of_json_lines if ".jsonl" in damaged else documents_of_text
        _expect(lambda: _read(path), None if data is None else parse(data))


def _decompressed(data: bytes, suffix: str) -> bytes | None:
    """All members; None if one is damaged or something else follows."""
    import zstandard

    if suffix == ".gz":
        try:
            return gzip.decompress(data)
        except (OSError, EOFError, zlib.error):
            return None
    new: dict[str, Callable[[], Any]] = {
        ".xz": lambda: lzma.LZMADecompressor(memlimit=1 << 29),
        ".bz2": bz2.BZ2Decompressor,
        ".zst": lambda: zstandard.ZstdDecompressor().decompressobj(),
    }
    whole = io.BytesIO()
    while data:
        member = new[suffix]()
        try:
            whole.write(member.decompress(data))
        except (OSError, lzma.LZMAError, zstandard.ZstdError):
            return None
        if not member.eof:
            return None
        data = member.unused_data
        if suffix == ".xz":
            data = data.lstrip(b"\0")  # padding, which the format allows
    return whole.getvalue()


class Parquet(Reader):
    """Corpus text as a column."""

    name = "parquet"
    reads = "corpus text, .parquet"
    damages: ClassVar = {"all.parquet": damage.of_bytes, "odd.parquet": damage.of_bytes}

    def prepare(self, folder: Path) -> None:
        """With checksums of pages, and without."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        texts = [None, *DOCUMENTS] * 3
        table = pa.table({"id": list(range(len(texts))), "text": texts})
        pq.write_table(table, folder / "all.parquet", row_group_size=20, compression="snappy")
        # A column of strings that repeat is stored as another kind of page.
        kind = pa.dictionary(pa.int32(), pa.large_string())
        odd = pa.table({"text": pa.array(texts).cast(kind)})
        pq.write_table(odd, folder / "odd.parquet", compression="zstd", data_page_version="2.0")

    def read(self, folder: Path, damaged: str) -> None:
        """Pages have no checksums, so a changed text is one; but a string it must be."""
        for text in _read(folder / damaged):
            if not isinstance(text, str):
                raise WrongResult(f"a {type(text).__name__}")
            text.encode("utf-8")


class Build(Reader):
    """A corpus from text."""

    name = "corpus"
    reads = "text to a corpus, built and verified"
    damages: ClassVar = {"text/all.txt": damage.of_bytes, "text/all.jsonl": structure.of_json_lines}
    named = ("text", "corpus")

    def prepare(self, folder: Path) -> None:
        """The tokenizer is learned once; a few documents, as building takes its time."""
        (folder / "text").mkdir()
        (folder / "first.txt").write_bytes("\n\n".join(DOCUMENTS * 2).encode())
        build_corpus(folder / "first", text=[folder / "first.txt"], validation=0.4)
        half = len(DOCUMENTS) // 2
        (folder / "text" / "all.txt").write_bytes("\n\n".join(DOCUMENTS[:half]).encode())
        rows = "".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS[half:])
        (folder / "text" / "all.jsonl").write_bytes(rows.encode())

    def read(self, folder: Path, damaged: str) -> None:
        """Every document must be there once, as the tokenizer's own ids."""
        out, tokenizer = folder / "built", folder / "first" / "tokenizer"
        parts = (
            documents_of_text((folder / "text" / "all.txt").read_bytes()),
            documents_of_json_lines((folder / "text" / "all.jsonl").read_bytes()),
        )
        try:
            corpus = build_corpus(out, text=[folder / "text"], tokenizer=tokenizer, validation=0.4)
            if parts[0] is None or parts[1] is None:
                raise WrongResult("a corpus of text that is damaged")
            corpus.verify()
            _check_corpus(corpus, [*parts[1], *parts[0]], tokenizer)
        finally:
            if out.exists():
                shutil.rmtree(out)


def _check_corpus(corpus: Corpus, documents: Sequence[str], tokenizer: Path) -> None:
    plain = load_tokenizer(tokenizer).tokenizer
    plain.no_truncation()
    plain.encode_special_tokens = True
    texts = dict.fromkeys(text.replace("\r\n", "\n").strip() for text in documents)
    if max(map(len, texts)) > LONGEST:
        return  # such a one is cut, if need be within a word
    wanted = [plain.encode(text, add_special_tokens=False).ids for text in texts]
    wanted = sorted(ids for ids in wanted if ids)
    separator, found = corpus.manifest.separator_id, []
    for split in (corpus.train, corpus.validation):
        starts = [*split.document_starts.tolist(), len(split)]
        for start, end in itertools.pairwise(starts):
            *ids, last = split.read(start, end - start).tolist()
            if last != separator:
                raise WrongResult("a document without a separator behind")
            found.append(ids)
    if sorted(found) != wanted:
        raise WrongResult(f"{len(found)} documents for {len(wanted)}, or other tokens")
    counted = corpus.manifest.train.documents + corpus.manifest.validation.documents
    if counted != len(found):
        raise WrongResult(f"the manifest counts {counted} documents of {len(found)}")


class TokenizerFile(Reader):
    """A tokenizer that was brought along."""

    name = "tokenizer"
    reads = "a user's tokenizer folder"
    damages: ClassVar = {
        "tokenizer/tokenizer.json": structure.of_json,
        "tokenizer/tokenizer_config.json": structure.of_json,
        "tokenizer/special_tokens_map.json": structure.of_json,
    }

    def prepare(self, folder: Path) -> None:
        """A learned one."""
        (folder / "first.txt").write_bytes("\n\n".join(DOCUMENTS * 2).encode())
        build_corpus(folder / "first", text=[folder / "first.txt"], validation=0.4)
        shutil.copytree(folder / "first" / "tokenizer", folder / "tokenizer")
        names = json.dumps({"mask_token": "[MASK]", "pad_token": {"content": "[PAD]"}})
        (folder / "tokenizer" / "special_tokens_map.json").write_text(names, encoding="utf-8")

    def read(self, folder: Path, damaged: str) -> None:
        """Every special token it names has the id that it says, and it encodes."""
        loaded = load_tokenizer(folder / "tokenizer")
        if "auto_map" in loaded.config:
            raise WrongResult("code of others is asked for")
        if not 0 <= loaded.separator_id < loaded.size <= loaded.vocab_size:
            raise WrongResult(f"separator {loaded.separator_id} of {loaded.size}")
        ids = loaded.tokenizer.encode(random.Random(0).choice(DOCUMENTS)).ids
        if ids and max(ids) >= loaded.size:
            raise WrongResult(f"an id {max(ids)} of {loaded.size}")
