"""Text as a stream of documents: files, folders and patterns, or a Hugging Face data set.

Everything is read in bounded memory, and can be read again. What cannot be read is one sentence
with the file and, where it has lines or rows, their number.
"""

import bz2
import glob
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from stackbert.errors import UserError
from stackbert.files import reading, reason

MAX_DOCUMENT_BYTES = 64 << 20
"""Longest document by default; longer is rarely text, mostly a file without blank lines."""
_READ = 1 << 20
_BITE = 1 << 12
"""Bytes that are decompressed at once: zstd makes up to 32,768 times as many of them."""
_ROWS = 64
_SURROGATE = re.compile("[\ud800-\udfff]")


class Text:
    """One file or data set that documents come from.

    Attributes:
        name: as the user gave it.
        label: the name without the folders that lead to it.
        size: bytes as stored; 0 while unknown.
        position: how many of these bytes were read so far.
    """

    def __init__(self, name: str, label: str, size: int, field: str, limit: int) -> None:
        self.name = name
        self.label = label.encode("utf-8", "replace").decode()  # file names may be of any encoding
        self.size = size
        self.position = 0
        self._field = field
        self._limit = limit

    def documents(self) -> Iterator[str]:
        """The documents, from the first on each time; blank ones included.

        Raises:
            UserError: the text is missing, damaged, not UTF-8, or not what its suffix says.
        """
        raise NotImplementedError

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
        if len(text) * 4 > self._limit and len(text.encode("utf-8", "replace")) > self._limit:
            raise self._too_long(place)
        return text

    def _too_long(self, place: str) -> UserError:
        return UserError(
            f"{self.name}, {place}: the document that starts here is longer than "
            f"{self._limit:,} bytes. Split it (in .txt files a blank line separates documents), or "
            "allow longer ones (max_document_bytes)."
        )


class TextFile(Text):
    """A .txt, .jsonl or .parquet file, the first two compressed or not.

    Args:
        path: the file.
        field: the field or column that holds the text, where there are several.
        limit: a document of more bytes is refused.
    """

    def __init__(self, path: Path, field: str = "text", limit: int = MAX_DOCUMENT_BYTES) -> None:
        super().__init__(str(path), path.name, path.stat().st_size, field, limit)
        self._path = path
        self._kind, self._compression = _suffixes(path)

    def documents(self) -> Iterator[str]:
        """See `Text.documents`."""
        self.position = 0
        with reading(self.name, "If it is damaged, fetch it again or leave it out."):
            if self.size and self._kind == ".parquet":
                yield from self._rows()
            else:
                read = self._paragraphs if self._kind == ".txt" else self._objects
                with self._path.open("rb", buffering=0) as raw, self._stream(raw) as stream:
                    for document in read(self._lines(stream)):
                        self.position = raw.tell()
                        yield document
        self.position = self.size

    def _stream(self, raw: io.FileIO) -> IO[bytes]:
        new = _STREAMS.get(self._compression)
        return io.BufferedReader(_Decompressed(raw, new) if new else raw, _READ)

    def _lines(self, stream: IO[bytes]) -> Iterator[tuple[int, bytes]]:
        """Line numbers, from 1, and lines without their end."""
        number = 0
        while line := stream.readline(self._limit + 3):  # with "\r\n", and one to see it is longer
            number += 1
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            line = line.removesuffix(b"\n").removesuffix(b"\r")
            if len(line) > self._limit:
                raise self._too_long(f"line {number}")
            yield number, line

    def _paragraphs(self, lines: Iterator[tuple[int, bytes]]) -> Iterator[str]:
        """Documents of lines, with blank lines between them."""
        document, first = bytearray(), 0  # not a list of lines, which may be of two bytes each
        for number, line in lines:
            if line.strip():
                if document:
                    document += b"\n"
                else:
                    first = number
                document += line
                if len(document) > self._limit:
                    raise self._too_long(f"line {first}")
            elif document:
                yield self._decoded(document, first)
                document = bytearray()
        if document:
            yield self._decoded(document, first)

    def _decoded(self, document: bytearray, first: int) -> str:
        try:
            return document.decode()
        except UnicodeDecodeError as error:
            line = first + document.count(b"\n", 0, error.start)
            raise UserError(
                f"{self.name}, line {line} is not UTF-8 text: {reason(error)}. Convert it "
                "('iconv -f UTF-16 -t UTF-8'), or leave it out if it is not text."
            ) from None

    def _objects(self, lines: Iterator[tuple[int, bytes]]) -> Iterator[str]:
        """Documents of JSON objects, one a line."""
        for number, line in lines:
            if not line.strip():
                continue
            place = f"line {number}"
            with reading(f"{self.name}, {place},", "Each line must be one JSON object in UTF-8."):
                record = json.loads(line.decode())
            text = self._string(record, place)
            # Half of an emoji, cut by whoever wrote the file: not worth refusing a corpus for.
            yield _SURROGATE.sub("\ufffd", text) if b"\\u" in line else text

    def _rows(self) -> Iterator[str]:
        """Documents of a parquet column, row by row."""
        import pyarrow.parquet as pq

        # Buffered, not the whole row group at once.
        with pq.ParquetFile(self._path, pre_buffer=False, buffer_size=_READ) as file:
            known = self._field in file.schema_arrow.names
            columns = [self._field] if known else None  # all of them, for the error to name
            row, rows = 0, max(1, file.metadata.num_rows)
            for batch in file.iter_batches(batch_size=_ROWS, columns=columns):
                for record in batch.to_pylist():
                    row += 1
                    yield self._string(record, f"row {row}")
                self.position = self.size * row // rows


def _zstd() -> Any:  # noqa: ANN401
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()


_STREAMS: dict[str, Callable[[], Any]] = {
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
            self._input = b""
            if not data:
                if self._stream is not None:
                    raise EOFError("its compressed data is cut short")
                return 0
            self._stream = self._stream or self._new()
            self._output = self._stream.decompress(data)
            if self._stream.eof:
                self._input, self._stream = self._stream.unused_data, None
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count


def _suffixes(path: Path) -> tuple[str, str]:
    """The kind and the compression of a file by its name; ("", "") if it is not text."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    compression = suffixes.pop() if suffixes and suffixes[-1] in _STREAMS else ""
    kind = suffixes[-1] if suffixes else ""
    if kind in (".txt", ".jsonl") or (kind == ".parquet" and not compression):
        return kind, compression
    return "", ""


def open_files(
    text: str | Path | Sequence[str | Path], field: str = "text", limit: int = MAX_DOCUMENT_BYTES
) -> list[TextFile]:
    """Find the files that `text` names.

    Args:
        text: files, folders (searched through, in sorted order; only known suffixes, no hidden
            files) and glob patterns (`**` too; only known suffixes). A file named twice is read
            once.
        field: the field or column of .jsonl and .parquet files that holds the text.
        limit: a document of more bytes is refused when it is met.

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
    return [TextFile(path, field, limit) for path in found.values()]


def _matching(path: Path) -> list[Path]:
    if path.is_dir():
        paths = sorted(path.rglob("*"))
        paths = [p for p in paths if not any(n.startswith(".") for n in p.relative_to(path).parts)]
    elif path.exists():
        paths = [path]
    else:
        paths = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
    return [each for each in paths if _suffixes(each)[0] and each.is_file()]


class DataSet(Text):
    """The training split of a data set, through the `datasets` library.

    Args:
        name: a folder that `save_to_disk` wrote, a folder of data files, or a name on the hub
            (`NAME` or `NAME:CONFIGURATION`), the only one that uses the network.
        field: the column that holds the text.
        limit: a document of more bytes is refused.

    Raises:
        UserError: `datasets` is not installed, or the data set cannot be opened.
    """

    def __init__(self, name: str, field: str = "text", limit: int = MAX_DOCUMENT_BYTES) -> None:
        folder = Path(name).expanduser()
        super().__init__(name, folder.name if folder.exists() else name, 0, field, limit)
        with reading(name, "A data set is a folder, or a name on the hub (NAME:CONFIGURATION)."):
            self._rows = _training_split(name, folder)

    def documents(self) -> Iterator[str]:
        """See `Text.documents`."""
        self.position = 0
        with reading(self.name):
            for number, row in enumerate(self._rows, 1):
                text = self._string(row, f"row {number}")
                self.position += len(text.encode())
                yield text
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
    elif folder.exists():
        found = datasets.load_dataset(str(folder), streaming=True)
    else:
        repository, _, configuration = name.partition(":")
        found = datasets.load_dataset(repository, configuration or None, streaming=True)
    if not isinstance(found, dict):
        return found
    if "train" not in found and len(found) > 1:
        raise UserError(
            f"The data set {name} has no split 'train', only {', '.join(map(str, found))}. "
            "Save the one you want with save_to_disk and pass that folder."
        )
    return found.get("train", next(iter(found.values())))
