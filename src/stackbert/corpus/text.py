"""Text as a stream of documents: files, folders and patterns, or a Hugging Face data set.

Everything is read in bounded memory, and can be read again.
"""

import bz2
import glob
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any

from stackbert.errors import UserError
from stackbert.files import reading

MAX_DOCUMENT_BYTES = 64 << 20
"""Memory grows with the longest document, and longer is rarely text."""
_READ = 1 << 20
_BITE = 1 << 12
"""Bytes that are decompressed at once: zstd makes up to 32,768 times as many of them."""
_SURROGATE = re.compile("[\ud800-\udfff]")


class Text:
    """A .txt, .jsonl or .parquet file, the first two compressed or not.

    Attributes:
        name: the path as the user gave it.
        label: the name without the folders that lead to it.
        size: bytes as stored.
        position: how many of these bytes were read so far.
        found: how many documents were read so far.
    """

    def __init__(self, path: Path, field: str = "text") -> None:
        self.name = str(path)
        self.label = path.name.encode("utf-8", "replace").decode()  # names may be of any encoding
        self.size = path.stat().st_size
        self.position = self.found = 0
        self._path = path
        self._field = field

    def documents(self) -> Iterator[str]:
        """The documents, from the first on each time; blank ones included.

        Raises:
            UserError: the text is missing, damaged, not UTF-8, or not what its suffix says.
        """
        self.position = self.found = 0
        with reading(self.name, "If it is damaged, fetch it again or leave it out."):
            for place, text in self._records():
                if len(text) > MAX_DOCUMENT_BYTES:
                    raise self._too_long(place)
                self.found += 1
                yield text

    def _records(self) -> Iterator[tuple[str, str]]:
        """The line or row where each document starts, and its text."""
        kind, compression = _suffixes(self._path)
        with self._path.open("rb", buffering=0) as raw:
            if kind == ".parquet":
                yield from self._rows(raw)
            else:
                new = _STREAMS.get(compression)
                stream = io.BufferedReader(_Decompressed(raw, new) if new else raw, _READ)
                read = self._paragraphs if kind == ".txt" else self._objects
                for number, text in read(self._lines(stream)):
                    self.position = raw.tell()
                    yield f"line {number}", text

    def _lines(self, stream: IO[bytes]) -> Iterator[tuple[int, bytes]]:
        number = 0
        while line := stream.readline(MAX_DOCUMENT_BYTES + 3):  # "\r\n", and one to see it go on
            number += 1
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            line = line.removesuffix(b"\n").removesuffix(b"\r")
            if len(line) > MAX_DOCUMENT_BYTES:
                raise self._too_long(f"line {number}")
            yield number, line

    def _paragraphs(self, lines: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, str]]:
        """Documents of lines, with blank lines between them."""
        document, first = bytearray(), 0  # not a list of lines, which may be of two bytes each
        for number, line in chain(lines, [(0, b"")]):
            if line.strip():
                first = first or number
                document += line + b"\n"
                if len(document) > MAX_DOCUMENT_BYTES + 1:
                    raise self._too_long(f"line {first}")
            elif document:
                hint = "Convert it ('iconv -f UTF-16 -t UTF-8'), or leave it out if it is not text."
                document.pop()  # the last line's end
                with reading(f"{self.name}, the document from line {first} on,", hint):
                    text = document.decode()
                yield first, text
                document, first = bytearray(), 0

    def _objects(self, lines: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, str]]:
        """Documents of JSON objects, one a line."""
        for number, line in lines:
            if not line.strip():
                continue
            place = f"line {number}"
            with reading(f"{self.name}, {place},", "Each line must be one JSON object in UTF-8."):
                record = json.loads(line.decode())
            text = self._string(record, place)
            # Half of an emoji, cut by whoever wrote the file: not worth refusing a corpus for.
            yield number, _SURROGATE.sub("\ufffd", text) if b"\\u" in line else text

    def _rows(self, raw: io.FileIO) -> Iterator[tuple[str, str]]:
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
                yield f"row {number}", self._string(record, f"row {number}")

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

    def _too_long(self, place: str) -> UserError:
        return UserError(
            f"{self.name}, {place}: the document that starts here is longer than "
            f"{MAX_DOCUMENT_BYTES:,} bytes. Split it; a blank line in .txt does that."
        )


class DataSet(Text):
    """The training split of a data set, through the `datasets` library.

    Args:
        name: a folder that `save_to_disk` wrote, a folder of data files, or a name on the hub
            (`NAME` or `NAME:CONFIGURATION`), the only one that uses the network.
        field: the column that holds the text.

    Raises:
        UserError: `datasets` is not installed, or the data set cannot be opened.
    """

    def __init__(self, name: str, field: str = "text") -> None:
        folder = Path(name).expanduser()
        self.name = name
        self.label = folder.name if folder.exists() else name
        self.size = self.position = self.found = 0
        self._field = field
        with reading(name, "A data set is a folder, or a name on the hub (NAME:CONFIGURATION)."):
            self._split = _training_split(name, folder)

    def _records(self) -> Iterator[tuple[str, str]]:
        for number, row in enumerate(self._split, 1):
            text = self._string(row, f"row {number}")
            self.position += len(text.encode())
            yield f"row {number}", text
        self.size = self.position


def _training_split(name: str, folder: Path) -> Any:  # noqa: ANN401 (datasets is not typed)
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"Reading the data set {name} needs the 'datasets' library. "
            "Install it with: pip install 'stackbert[datasets]'"
        ) from error
    if any((folder / file).is_file() for file in ("dataset_dict.json", "state.json")):
        found = datasets.load_from_disk(str(folder))
    else:
        parts = (str(folder), "", "") if folder.exists() else name.partition(":")
        repository, _, configuration = parts
        found = datasets.load_dataset(repository, configuration or None, streaming=True)
    if not isinstance(found, dict):
        return found
    if "train" not in found and len(found) > 1:
        raise UserError(
            f"The data set {name} has no split 'train', only {', '.join(map(str, found))}. "
            "Save the one you want with save_to_disk and pass that folder."
        )
    return found.get("train", next(iter(found.values())))


def _zstd() -> Any:  # noqa: ANN401
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()


_STREAMS: dict[str | None, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".xz": lzma.LZMADecompressor,
    ".bz2": bz2.BZ2Decompressor,
    ".zst": _zstd,
}


class _Decompressed(io.RawIOBase):
    """Compressed streams, one behind the other, to the last.

    The libraries' own file objects end without a word where a stream is cut short (zstd) or where
    one behind the first is damaged (xz, bzip2); its text would be missing.
    """

    def __init__(self, raw: io.FileIO, new: Callable[[], Any]) -> None:
        self._raw = raw
        self._new = new
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


_NAME = re.compile(r".+?(?:(\.txt|\.jsonl)(\.gz|\.xz|\.bz2|\.zst)?|(\.parquet))")


def _suffixes(path: Path) -> tuple[str, str | None]:
    """The kind and the compression of a file by its name; ("", None) if it is not text."""
    match = _NAME.fullmatch(path.name.lower())
    return (match[1] or match[3], match[2]) if match else ("", None)


def open_files(text: str | Path | Sequence[str | Path], field: str = "text") -> list[Text]:
    """Find the files that `text` names; one named twice is read once.

    Args:
        text: files, folders (searched through in sorted order, hidden files left out) and glob
            patterns (`**` too); of the last two only known suffixes count.
        field: the field or column of .jsonl and .parquet files that holds the text.

    Raises:
        UserError: a path, folder or pattern gives no text.
    """
    found: dict[Path, Path] = {}
    for given in [text] if isinstance(text, str | Path) else text:
        files = _matching(Path(given).expanduser())
        if not files:
            raise UserError(
                f"There is no text at {given}. StackBERT reads regular files ending in .txt, "
                ".jsonl (each also with .gz, .xz, .bz2 or .zst behind) or .parquet, folders of "
                "such files, and quoted patterns."
            )
        for path in files:
            found.setdefault(path.resolve(), path)
    return [Text(path, field) for path in found.values()]


def _matching(path: Path) -> list[Path]:
    if path.is_dir():
        paths = sorted(path.rglob("*"))
        paths = [p for p in paths if not any(n.startswith(".") for n in p.relative_to(path).parts)]
    elif path.exists():
        paths = [path]
    else:
        paths = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
    return [each for each in paths if _suffixes(each)[0] and each.is_file()]
