"""Tables of users, CSV, TSV and JSONL, row by row and by named columns."""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stackbert.errors import UserError
from stackbert.finetuning.cells import Place, without_surrogates
from stackbert.finetuning.tab_files import TabFile, lines, position

_LONGEST_CELL = (1 << 31) - 1


@dataclass(frozen=True)
class Columns:
    """Which columns (in JSONL: fields) of a file hold what.

    Attributes:
        first: the text, or the first of a pair.
        second: the pair's other text; None of single texts.
        label: the class or number; None where there is none.
        key: what predictions go by; None for the row's number, from 0.
    """

    first: str
    second: str | None = None
    label: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class TableRow:
    """The cells of a row that matter; those of columns that are not named are ""."""

    place: Place
    number: int
    first: str
    second: str
    label: str
    key: str


def table_rows(path: Path, columns: Columns) -> Iterator[TableRow]:
    """The rows of a table, in the file's order.

    CSV is quoted as RFC 4180 says; TSV is not quoted at all; of JSONL each line is an object. The
    suffix (.csv, .tsv, .jsonl) says which. Files are UTF-8, and the first line of CSV and TSV names
    the columns.

    Raises:
        UserError: the file cannot be read, is not what its suffix says, or lacks a named column;
            file and line are named.
    """
    readers = {".csv": _csv_rows, ".tsv": _tsv_rows, ".jsonl": _json_rows}
    read = readers.get(path.suffix.lower())
    if read is None:
        raise UserError(
            f"{path} is of an unknown kind. Tables end in {', '.join(readers)}; name it so."
        )
    named = (columns.first, columns.second, columns.label, columns.key)
    for number, (place, cells) in enumerate(read(path, [one for one in named if one is not None])):
        found = iter(cells)
        values = (next(found) if one is not None else "" for one in named)
        yield TableRow(place, number, *values)


def _csv_rows(path: Path, names: Sequence[str]) -> Iterator[tuple[Place, list[str]]]:
    rows: list[tuple[Place, list[str]]] = []
    reader = csv.reader((line for _, line in lines(path)), strict=True)
    line = 1
    # A text may be longer than the library's limit of 131,072 characters, which is a global.
    limit = csv.field_size_limit(_LONGEST_CELL)
    try:
        header = next(reader, [])
        places = [position(name, header, path) for name in names]
        line = reader.line_num + 1
        for cells in reader:
            if cells:
                place = Place(str(path), line)
                if len(cells) != len(header):
                    raise UserError(
                        f"{place}: {len(cells)} columns where the header has {len(header)} "
                        f"({', '.join(header)}). Cells are parted by commas; put a text with "
                        "commas or line breaks between quotation marks."
                    )
                rows.append((place, [cells[one] for one in places]))
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}, line {line}: not valid CSV ({error}). A quotation mark within a quoted text "
            "is written twice, and the text ends with one."
        ) from None
    finally:
        csv.field_size_limit(limit)
    yield from rows


def _tsv_rows(path: Path, names: Sequence[str]) -> Iterator[tuple[Place, list[str]]]:
    file = TabFile(path)
    places = [file.place_of(name) for name in names]
    for place, cells in file.rows():
        file.check_width(place, cells)
        yield place, [cells[one] for one in places]


def _json_rows(path: Path, names: Sequence[str]) -> Iterator[tuple[Place, list[str]]]:
    for number, line in lines(path):
        place = Place(str(path), number)
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{place}: not valid JSON ({error}). Each line must be one JSON object; correct "
                "or remove this one."
            ) from None
        if not isinstance(record, dict):
            raise UserError(
                f"{place}: a JSON object is needed, this is a {type(record).__name__}. Write it "
                f"as {{{json.dumps(names[0])}: …}}."
            )
        yield place, [_json_cell(record, name, place) for name in names]


def _json_cell(record: dict[str, Any], name: str, place: Place) -> str:
    if name not in record:
        raise UserError(
            f"{place}: there is no field '{name}'. The fields are: {', '.join(record)}. Name one "
            "of them, or correct the line."
        )
    value = record[name]
    if isinstance(value, str):
        return without_surrogates(value)
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if value is None:
        return ""
    raise UserError(
        f"{place}: the field '{name}' is no text or number but a {type(value).__name__}. Correct "
        "the line or name another field."
    )
