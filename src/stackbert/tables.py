"""DataFrames: read from files, as a field of a record, and as text."""

import csv
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import PlainSerializer, PlainValidator

from stackbert.errors import UserError
from stackbert.files import reading


def _from_json(value: Any) -> pd.DataFrame:  # noqa: ANN401 (JSON is any value)
    if isinstance(value, pd.DataFrame):
        return value
    if not isinstance(value, dict) or set(value) != {"columns", "rows"}:
        raise ValueError("a table needs columns and rows")
    return pd.DataFrame(value["rows"], columns=value["columns"])


def _to_json(frame: pd.DataFrame) -> dict[str, Any]:
    split = frame.to_dict(orient="split", index=False)
    return {"columns": split["columns"], "rows": split["data"]}


Frame = Annotated[pd.DataFrame, PlainValidator(_from_json), PlainSerializer(_to_json)]
"""A table in a `Record`; stored as columns and rows, a missing value as null."""


class Tables:
    """A result that shows itself as tables: in a notebook, and as JSON."""

    def tables(self) -> dict[str, pd.DataFrame]:
        """What was found, by title."""
        raise NotImplementedError

    def to_json(self) -> str:
        """The tables as lists of rows; a missing number is null."""
        found = {
            name: json.loads(frame.to_json(orient="records", double_precision=15))
            for name, frame in self.tables().items()
        }
        return json.dumps(found, indent=2, ensure_ascii=False)

    def _repr_html_(self) -> str:
        return "".join(
            f"<h4>{html.escape(name)}</h4>{frame.to_html(index=False, na_rep='', border=0)}"
            for name, frame in self.tables().items()
        )


def read_table(path: Path, columns: Sequence[str] = (), *, quoted: bool = False) -> pd.DataFrame:
    """The cells of a file; `columns` are those of one without a header.

    In a .tsv quotation marks are characters like any other, as in GLUE's, unless it is `quoted`.
    """
    suffix = path.suffix.lower()
    with reading(path):
        if suffix == ".parquet":
            return pd.read_parquet(path)
        if suffix in (".json", ".jsonl"):
            text = path.read_text(encoding="utf-8-sig")
            # Only a line feed ends a line: texts hold U+2028 and the like.
            lines = [line for line in text.split("\n") if line.strip()]
            rows = json.loads(text) if suffix == ".json" else [json.loads(line) for line in lines]
            return pd.DataFrame(rows, dtype=object)
        if suffix not in (".csv", ".tsv"):
            raise UserError(f"{path} is not a .csv, .tsv, .json, .jsonl or .parquet file.")
        is_csv = suffix == ".csv"
        quoted = quoted or is_csv
        # With the header as a row, a first row that is too long is an error like any other.
        cells = pd.read_csv(
            path,
            sep="," if is_csv else "\t",
            header=None,
            dtype=str,
            keep_default_na=False,
            encoding="utf-8-sig",
            quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
            lineterminator=None if quoted else "\n",
        )
        cells = cells.replace("\r$", "", regex=True)
        cells = cells[(cells != "").any(axis=1)]  # empty lines
        if not columns:
            columns, cells = list(cells.iloc[0]), cells.iloc[1:]
        return cells.set_axis(list(columns), axis=1).reset_index(drop=True)


def table_text(
    frame: pd.DataFrame, title: str = "", formats: Mapping[str, str] | None = None
) -> str:
    """A table without its index as aligned text, under a title.

    `formats` say how to write a column's values ("{:.3f}"); a missing one is left empty.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left")
    for name in frame.columns:
        text = all(isinstance(value, str) for value in frame[name])
        table.add_column(str(name), justify="left" if text else "right", no_wrap=not text)
    forms = [(formats or {}).get(name) for name in frame.columns]
    for row in frame.itertuples(index=False, name=None):
        table.add_row(*map(cell_text, row, forms))
    # Without a width of its own a console outside a terminal cuts at 80 columns.
    written = io.StringIO()
    Console(file=written, width=160, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines()).strip("\n")


def cell_text(value: Any, form: str | None = None) -> str:  # noqa: ANN401 (a cell)
    """A cell as text; a missing value is empty."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return ""
    if form:
        return form.format(value)
    return f"{value:,}" if isinstance(value, int) else str(value)
