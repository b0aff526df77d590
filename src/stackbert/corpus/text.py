"""Text as a stream of documents: files, folders and patterns, or a Hugging Face data set.

Everything is read in bounded memory, and can be read again.
"""

import bz2
import codecs
import glob
import io
import json
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any

import zstandard

from stackbert.errors import UserError, need
from stackbert.files import reading

MAX_LINE_BYTES = 64 << 20  # of a line of JSON, which is parsed in one piece
PART = 16 << 20  # bytes (.txt) or characters at which a document is cut, as memory grows with it
_READ = 1 << 20
_BITE = 1 << 12  # bytes decompressed at once: zstd makes up to 32,768 times as many
_JSON_LINES = (".jsonl", ".ndjson", ".jl", ".jsonlines", ".ldjson")
_SURROGATE = re.compile("[\ud800-\udfff]")
_INVISIBLE = [*filter(str.isspace, map(chr, range(0x3001))), *"\u200b\u200c\u200d\u2060\ufeff"]
_BLANK = re.compile(b"(?:%s)*" % b"|".join(re.escape(each.encode()) for each in _INVISIBLE))


class Text:
    """A text file, a file of JSON lines or a parquet file, the first two compressed or not.

    Attributes:
        name: the path as the user gave it; `label` is its last part.
        size: bytes as stored, of which `position` were read so far.
        found: documents read so far; each part of one that was cut counts.
        cut: how many times a document was cut.
    """

    def __init__(self, path: Path, field: str = "text", kind: str = "") -> None:
        self.name = str(path)
        self.label = path.name.encode("utf-8", "replace").decode()  # names may be of any encoding
        self.size = path.stat().st_size
        self.position = self.found = self.cut = 0
        self._path, self._field, self._kind = path, field, kind or _kind(path)

    def documents(self) -> Iterator[str]:
        """The documents, from the first on each time; blank ones included."""
        self.position = self.found = self.cut = 0
        hint = "Rename it if its suffix is wrong; if it is damaged, fetch it again or leave it out."
        with reading(self.name, hint):
            for text in self._texts():
                for start in range(0, len(text) or 1, PART):
                    self.found += 1
                    self.cut += start > 0
                    yield text[start : start + PART]

    def is_json_lines(self) -> bool:
        """Whether the first line is a JSON object with a text: .json may be anything."""
        try:
            return next(self.documents(), None) is not None
        except UserError:
            return False

    def _texts(self) -> Iterator[str]:
        with self._path.open("rb", buffering=0) as raw:
            if self._kind == "parquet":
                yield from self._rows(raw)
            else:
                new = _STREAMS.get(self._path.suffix.lower())
                stream = io.BufferedReader(_Decompressed(raw, new) if new else raw, _READ)
                for text in (self._objects if self._kind == "json" else self._paragraphs)(stream):
                    self.position = raw.tell()
                    yield text

    def _paragraphs(self, stream: IO[bytes]) -> Iterator[str]:
        """Documents of lines, with blank lines between them; of another suffix, the whole file."""
        hint = "Convert it ('iconv -f UTF-16 -t UTF-8'), or leave it out if it is not text."
        decoder = codecs.getincrementaldecoder("utf-8")()  # a cut may go through a character
        document, first = bytearray(), 0  # not a list of lines, which may be of two bytes each
        is_part = False  # of a document whose beginning was given already
        for number, line in chain(_lines(stream, PART), [(0, b"")]):
            ends = not number or (self._kind == "text" and _BLANK.fullmatch(line) is not None)
            if not ends:
                first = first or number
                document += line
            if document and (ends or len(document) >= PART):
                with reading(f"{self.name}, the document from line {first} on,", hint):
                    text = decoder.decode(document, final=ends)
                self.cut += is_part
                document, first = bytearray(), 0
                yield text.removesuffix("\n")
                is_part = True
            is_part = is_part and not ends

    def _objects(self, stream: IO[bytes]) -> Iterator[str]:
        """Documents of JSON objects, one a line."""
        for number, line in _lines(stream, MAX_LINE_BYTES + 1):
            if _BLANK.fullmatch(line):
                continue
            place = f"line {number}"
            if len(line) > MAX_LINE_BYTES:
                raise UserError(
                    f"{self.name}, {place} is longer than {MAX_LINE_BYTES:,} bytes. Split its text."
                )
            with reading(f"{self.name}, {place},", "Each line must be one JSON object in UTF-8."):
                record = json.loads(line.decode())
            text = self._string(record, place)
            # Half of an emoji, cut by whoever wrote the file: not worth refusing a corpus for.
            yield _SURROGATE.sub("\ufffd", text) if b"\\u" in line else text

    def _rows(self, raw: io.FileIO) -> Iterator[str]:
        """Documents of a parquet column, row by row."""
        import pyarrow.parquet as pq

        # Buffered, not the whole row group at once.
        with pq.ParquetFile(raw, pre_buffer=False, buffer_size=_READ) as file:
            known = self._field in file.schema_arrow.names
            columns = [self._field] if known else None  # all of them, for the error to name
            batches = file.iter_batches(batch_size=64, columns=columns)
            records = (record for batch in batches for record in batch.to_pylist())
            for number, record in enumerate(records, 1):
                self.position = raw.tell()
                yield self._string(record, f"row {number}")

    def _string(self, record: Any, place: str) -> str:  # noqa: ANN401 (any JSON)
        """The text of a record; null counts as an empty document."""
        fields = record if isinstance(record, dict) else {}
        text = fields.get(self._field, 0)
        text = "" if text is None else text
        if not isinstance(text, str):
            kinds = [f"{name} ({type(value).__name__})" for name, value in fields.items()]
            raise UserError(
                f"{self.name}, {place} has no string in a field '{self._field}'. Its fields are: "
                f"{', '.join(kinds) or 'none'}. Name the one that holds the text with --field."
            )
        return text


def _lines(stream: IO[bytes], limit: int) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers; all but a last one, or a piece of `limit` bytes, end in \\n."""
    number = 0
    while data := stream.readline(limit):
        number += 1
        data = data.removeprefix(codecs.BOM_UTF8) if number == 1 else data
        lines = [data]
        if b"\r" in data:  # before \n, or alone, as old Macs have it
            lines = re.sub(rb"\r+\n", b"\n", data).replace(b"\r", b"\n").splitlines(keepends=True)
        yield from ((number, line) for line in lines)


class DataSet(Text):
    """The training split of a data set: a folder, or a name on the hub (`NAME:CONFIGURATION`)."""

    def __init__(self, name: str, field: str = "text") -> None:
        folder = Path(name).expanduser()
        self.name = name
        self.label = folder.name if folder.exists() else name
        self.size = self.position = self.found = self.cut = 0
        self._field = field
        with reading(name, "A data set is a folder, or a name on the hub (NAME:CONFIGURATION)."):
            self._split = _training_split(name, folder)

    def _texts(self) -> Iterator[str]:
        for number, row in enumerate(self._split, 1):
            text = self._string(row, f"row {number}")
            self.position += len(text.encode())
            yield text
        self.size = self.position


def _training_split(name: str, folder: Path) -> Any:  # noqa: ANN401 (datasets is not typed)
    need("datasets", "datasets", to=f"Reading the data set {name}")
    import datasets

    if any((folder / file).is_file() for file in ("dataset_dict.json", "state.json")):
        found = datasets.load_from_disk(str(folder))
    else:
        place, _, configuration = (str(folder), "", "") if folder.exists() else name.partition(":")
        found = datasets.load_dataset(place, configuration or None, streaming=True)
    if not isinstance(found, dict):
        return found
    if "train" not in found:
        raise UserError(
            f"The data set {name} has no split 'train', only {', '.join(map(str, found))}. "
            "Save the one you want with save_to_disk and pass that folder."
        )
    return found["train"]


_STREAMS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".xz": lzma.LZMADecompressor,
    ".bz2": bz2.BZ2Decompressor,
    ".zst": lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj(),
}


class _Decompressed(io.RawIOBase):
    """Compressed streams, one behind the other, to the last.

    The libraries' own file objects end without a word where a stream is cut short (zstd) or where
    one behind the first is damaged (xz, bzip2).
    """

    def __init__(self, raw: io.FileIO, new: Callable[[], Any]) -> None:
        self._raw, self._new = raw, new
        self._stream: Any = None
        self._input = self._output = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401
        while not self._output:
            data = self._input or self._raw.read(_BITE)
            if not data:
                if self._stream is not None:
                    raise EOFError("its compressed data is cut short")
                return 0
            self._stream = self._stream or self._new()
            self._output, self._input = self._stream.decompress(data), b""
            if self._stream.eof:
                self._input, self._stream = self._stream.unused_data, None
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count


def _suffixes(path: Path) -> tuple[str, str]:
    """The suffix and that of a compression behind it, in lower case; "" where there is none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes.pop() if suffixes and suffixes[-1] in _STREAMS else ""
    return (suffixes[-1] if suffixes else ""), packed


def _kind(path: Path, suffixes: Sequence[str] = ()) -> str:
    """How a file is read: as text, json, parquet or (of `suffixes`) whole; "" if not at all."""
    suffix, packed = _suffixes(path)
    if suffix in (".txt", ".json", *_JSON_LINES):
        return "text" if suffix == ".txt" else "json"
    if suffix == ".parquet" and not packed:
        return "parquet"
    return "whole" if suffix in {f".{each.lower().removeprefix('.')}" for each in suffixes} else ""


def open_files(
    text: str | Path | Sequence[str | Path], field: str = "text", suffixes: Sequence[str] = ()
) -> tuple[list[Text], Counter[str]]:
    """Find the files that `text` names, and how many of which suffix were left out.

    Args:
        text: files, folders (searched through in sorted order, hidden files left out) and glob
            patterns (`**` too); of the last two only known suffixes count. One named twice is read
            once.
        field, suffixes: as of `build_corpus`.
    """
    found: dict[Path, Text] = {}
    left_out: Counter[str] = Counter()
    for given in [text] if isinstance(text, str | Path) else text:
        is_empty = True
        for path in _matching(Path(given).expanduser()):
            kind = _kind(path, suffixes) if path.is_file() else ""
            opened = Text(path, field, kind) if kind else None
            is_named = path == Path(given).expanduser()
            if opened and (is_named or ".json" not in _suffixes(path) or opened.is_json_lines()):
                found.setdefault(path.resolve(), opened)
                is_empty = False
            elif not path.is_dir():
                left_out["".join(_suffixes(path)) or "no suffix"] += 1
            elif path.is_symlink():
                left_out["linked folder"] += 1
        if is_empty:
            raise UserError(
                f"There is no text at {given}. StackBERT reads regular files ending in .txt or "
                f"{', '.join(_JSON_LINES)} (each also with .gz, .xz, .bz2 or .zst behind) or "
                ".parquet, folders of such files, and quoted patterns; others with --suffix py,md."
            )
    return list(found.values()), left_out


def _matching(path: Path) -> list[Path]:
    if path.is_dir():
        paths = sorted(path.rglob("*"))
        return [p for p in paths if not any(n.startswith(".") for n in p.relative_to(path).parts)]
    if path.exists():
        return [path]
    return [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
