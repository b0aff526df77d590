"""Files of text to a stream of documents, in bounded memory, with errors that name the line."""

import glob
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stackbert.corpus.compression import COMPRESSIONS, DAMAGE, decompressed
from stackbert.errors import UserError
from stackbert.files import explaining_os_errors

KINDS = (".txt", ".jsonl", ".parquet")
MAX_DOCUMENT_BYTES = 64 << 20
"""Longest document by default; longer is rarely text, mostly a file without blank lines."""
_KNOWN = "files ending in .txt, .jsonl (each also with .gz, .xz, .bz2 or .zst behind) or .parquet"
_READ = 1 << 20
_ROWS = 64
_SURROGATE = re.compile("[\ud800-\udfff]")
_MAGIC = {
    b"\xff\xfe": "It looks like UTF-16: convert it with 'iconv -f UTF-16 -t UTF-8'.",
    b"\xfe\xff": "It looks like UTF-16: convert it with 'iconv -f UTF-16 -t UTF-8'.",
    b"\x1f\x8b": "It looks gzip-compressed: name it .gz.",
    b"\xfd7zXZ": "It looks xz-compressed: name it .xz.",
    b"\x28\xb5\x2f\xfd": "It looks zstd-compressed: name it .zst.",
    b"BZh": "It looks bzip2-compressed: name it .bz2.",
}


class Input:
    """One file or data set that documents come from.

    Attributes:
        name: as the user gave it.
        size: bytes as stored; 0 while unknown.
        position: how many of these bytes were read so far.
    """

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self.position = 0

    def documents(self) -> Iterator[str]:
        """The documents, from the first on each time; blank ones included."""
        raise NotImplementedError


class FileInput(Input):
    """A .txt, .jsonl or .parquet file, compressed or not.

    Args:
        path: the file.
        field: the field or column that holds the text, where there are several.
        max_document_bytes: a longer document is refused.
    """

    def __init__(
        self, path: Path, field: str = "text", max_document_bytes: int = MAX_DOCUMENT_BYTES
    ) -> None:
        with explaining_os_errors(f"looking at {path}"):
            super().__init__(str(path), path.stat().st_size)
        self.path = path
        self.kind, self.compression = _suffixes(path)
        self._field = field
        self._limit = max_document_bytes

    def documents(self) -> Iterator[str]:
        """See `Input.documents`.

        Raises:
            UserError: the file is missing, damaged, not UTF-8, or not what its suffix says; the
                sentence names the file and the line or row.
        """
        self.position = 0
        if self.size == 0:
            return
        read = {".txt": self._text, ".jsonl": self._json_lines, ".parquet": self._parquet}
        yield from read[self.kind]()

    def _text(self) -> Iterator[str]:
        lines: list[bytes] = []
        start = size = 0
        for number, line in self._lines():
            if len(line) <= self._limit and not line.strip():
                if lines:
                    text = self._decoded(b"\n".join(lines), start)
                    lines, size = [], 0  # let go of before the text is worked on: they may be long
                    yield text
                continue
            start = start if lines else number
            lines.append(line)
            size += len(line) + 1
            if size - 1 > self._limit:
                raise self._too_long(start)
        if lines:
            yield self._decoded(b"\n".join(lines), start)

    def _json_lines(self) -> Iterator[str]:
        for number, line in self._lines():
            if len(line) > self._limit:
                raise self._too_long(number)
            if not line.strip():
                continue
            text = self._decoded(line, number)
            try:
                record = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{self.path}, line {number}: not valid JSON ({error}). "
                    "Each line must be one JSON object; correct or remove this one."
                ) from error
            if not isinstance(record, dict):
                raise UserError(
                    f"{self.path}, line {number}: a JSON object is needed, this is a "
                    f"{type(record).__name__}. Write it as {{{json.dumps(self._field)}: …}}."
                )
            if self._field not in record:
                raise self._no_field(f"line {number}", record)
            value = record[self._field]
            if value is not None and not isinstance(value, str):
                raise self._not_string(f"line {number}", type(value).__name__)
            # Half of an emoji, cut by whoever wrote the file: not worth refusing a corpus for.
            yield _SURROGATE.sub("\ufffd", value or "") if "\\u" in text else value or ""

    def _parquet(self) -> Iterator[str]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        row, kinds = 0, pa.types
        with explaining_os_errors(f"reading {self.path}"):
            raw = _Counting(self)
        with raw:
            try:
                # Buffered, not the whole row group at once.
                file = pq.ParquetFile(raw, pre_buffer=False, buffer_size=_READ)
                column = {one.name: one.type for one in file.schema_arrow}.get(self._field)
                if column is None:
                    raise self._no_field("", file.schema_arrow.names)
                plain = column.value_type if kinds.is_dictionary(column) else column
                if not (
                    kinds.is_string(plain)
                    or kinds.is_large_string(plain)
                    or kinds.is_string_view(plain)
                ):
                    raise self._not_string("", str(column))
                for batch in file.iter_batches(batch_size=_ROWS, columns=[self._field]):
                    for value in batch.column(0).to_pylist():
                        row += 1
                        value = value or ""
                        if len(value) * 4 > self._limit and len(value.encode()) > self._limit:
                            raise self._too_long(row, "row")
                        yield value
            except (pa.ArrowException, UnicodeDecodeError) as error:
                raise self._damaged(f"Parquet data cannot be read after row {row}", error) from None
            except OSError as error:
                if error.errno is not None:
                    raise
                raise self._damaged(f"Parquet data cannot be read after row {row}", error) from None

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Line numbers, from 1, and lines without their end.

        What is left of a line longer than the limit counts as the next one: see to it before.
        """
        number = 0
        with explaining_os_errors(f"reading {self.path}"), _Counting(self) as raw:
            stream = decompressed(io.BufferedReader(raw, _READ), self.compression)
            while True:
                try:
                    line = stream.readline(self._limit + 3)
                except DAMAGE as error:
                    if isinstance(error, OSError) and error.errno is not None:
                        raise
                    what = f"{self.compression[1:]} data cannot be read after line {number}"
                    raise self._damaged(what, error) from None
                if not line:
                    return
                number += 1
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                yield number, line.removesuffix(b"\n").removesuffix(b"\r")

    def _decoded(self, data: bytes, first_line: int) -> str:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            line = first_line + data.count(b"\n", 0, error.start)
            column = error.start - data.rfind(b"\n", 0, error.start)
            hint = "Convert it to UTF-8, or leave it out if it is not text."
            if first_line == 1:
                hint = next(
                    (say for magic, say in _MAGIC.items() if data[:5].startswith(magic)), hint
                )
            raise UserError(
                f"{self.path}, line {line}: not UTF-8 text (byte 0x{data[error.start]:02x} at byte "
                f"{column} of the line). {hint}"
            ) from None

    def _too_long(self, number: int, unit: str = "line") -> UserError:
        hint = "Put a blank line between documents" if self.kind == ".txt" else "Split it"
        return UserError(
            f"{self.path}, {unit} {number}: the document that starts here is longer than "
            f"{self._limit:,} bytes. {hint}, or allow longer ones (max_document_bytes)."
        )

    def _no_field(self, where: str, names: Any) -> UserError:  # noqa: ANN401
        place = f"{self.path}, {where}" if where else f"{self.path}"
        known = ", ".join(map(str, names)) or "none"
        return UserError(
            f"{place}: there is no field '{self._field}'. The fields are: {known}. "
            "Name the one that holds the text with --field."
        )

    def _not_string(self, where: str, kind: str) -> UserError:
        place = f"{self.path}, {where}" if where else f"{self.path}"
        return UserError(
            f"{place}: the field '{self._field}' is not a string but {kind}. "
            "Name the one that holds the text with --field."
        )

    def _damaged(self, what: str, error: Exception) -> UserError:
        reason = " ".join(str(error).split())
        return UserError(
            f"{self.path} is damaged or cut short: its {what} ({reason}). "
            "Fetch it again or leave it out."
        )


class _Counting(io.FileIO):
    """A file that tells its input how far it was read."""

    def __init__(self, owner: FileInput) -> None:
        super().__init__(owner.path)
        self._owner = owner

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401
        count = super().readinto(buffer) or 0
        self._count(count)
        return count

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(-1 if size is None else size) or b""
        self._count(len(data))
        return data

    def _count(self, more: int) -> None:
        self._owner.position = min(self._owner.size, self._owner.position + more)


def _suffixes(path: Path) -> tuple[str, str]:
    """The kind and the compression of a file by its name; ("", "") if unknown."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else ""
    kind = suffixes[-1] if suffixes and suffixes[-1] in KINDS else ""
    return (kind, compression) if kind and not (kind == ".parquet" and compression) else ("", "")


def open_files(
    text: Sequence[str | Path],
    field: str = "text",
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
) -> list[FileInput]:
    """Find the files that `text` names.

    Args:
        text: files, folders (searched through, in sorted order; only known suffixes, no hidden
            files) and glob patterns (`**` too; only known suffixes). A file named twice is read
            once.
        field: the field or column of .jsonl and .parquet files that holds the text.
        max_document_bytes: a longer document is refused when it is met.

    Raises:
        UserError: a path does not exist, a pattern matches nothing, a folder holds no known file,
            or a file has an unknown suffix.
    """
    found: dict[Path, Path] = {}
    for given in text:
        with explaining_os_errors(f"looking for {given}"):
            for path in _expand(Path(given).expanduser()):
                found.setdefault(path.resolve(), path)
    return [FileInput(path, field, max_document_bytes) for path in found.values()]


def _expand(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(
            file
            for file in path.rglob("*")
            if _suffixes(file)[0]
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
            and file.is_file()
        )
        if not files:
            raise UserError(f"The folder {path} holds no text. It needs {_KNOWN}.")
        return files
    if path.is_file():
        if not _suffixes(path)[0]:
            raise UserError(f"{path} is of an unknown kind. StackBERT reads {_KNOWN}.")
        return [path]
    if path.exists():
        raise UserError(f"{path} is no regular file; text is read twice, so it must be one.")
    if any(sign in str(path) for sign in "*?["):
        matches = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
        files = [file for file in matches if file.is_file()]
        if not files:
            raise UserError(f"The pattern {path} matches no file. Check it, and quote it.")
        known = [file for file in files if _suffixes(file)[0]]
        if not known:
            raise UserError(f"The pattern {path} matches no text. StackBERT reads {_KNOWN}.")
        return known
    raise UserError(f"There is no {path}. Check the path.")
