"""Text files a line at a time, and tab-separated ones as GLUE has them: no quoting at all."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from stackbert.errors import UserError
from stackbert.files import explaining_os_errors
from stackbert.finetuning.cells import Place


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers, from 1, and lines with their ends.

    Only a line feed ends a line: texts hold U+2028 and its like, at which Python's own splitting
    would cut. A byte-order mark is dropped.

    Raises:
        UserError: the file cannot be read, is not UTF-8, or holds a zero byte.
    """
    with explaining_os_errors(f"reading {path}"), path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            if b"\0" in line:
                raise UserError(
                    f"{path}, line {number}: a zero byte, so this is no UTF-8 text. Fetch the file "
                    "again; if it is UTF-16, convert it with 'iconv -f UTF-16 -t UTF-8'."
                )
            try:
                yield number, line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}, line {number}: not UTF-8 text (byte 0x{line[error.start]:02x} at "
                    f"byte {error.start + 1} of the line). Fetch the file again or convert it to "
                    "UTF-8."
                ) from None


class TabFile:
    """A tab-separated file: every tab parts two cells, and a quotation mark is a character.

    Args:
        path: the file.
        columns: the columns' names where the file has no header; the first line is then a row.

    Attributes:
        columns: the columns' names.

    Raises:
        UserError: the file is empty, or see `lines`.
    """

    def __init__(self, path: Path, columns: Sequence[str] | None = None) -> None:
        self.path = path
        self._lines = lines(path)
        if columns is None:
            _, header = next(self._lines, (1, ""))
            if not header.strip():
                raise UserError(
                    f"{path} has no header: its first line is empty. Fetch the file again."
                )
            columns = _cells(header)
        self.columns = tuple(columns)

    def place_of(self, column: str) -> int:
        """Which cell of a row is in `column`.

        Raises:
            UserError: there is no such column, or there are two.
        """
        return position(column, self.columns, self.path)

    def rows(self) -> Iterator[tuple[Place, list[str]]]:
        """Each row with its place, once; its cells may be more or fewer than the columns.

        Empty lines at the end are passed over; within the file they are rows of one empty cell.
        """
        source = str(self.path)
        empty: list[int] = []
        for number, line in self._lines:
            cells = _cells(line)
            if cells == [""]:
                empty.append(number)
                continue
            for passed in empty:
                yield Place(source, passed), [""]
            empty = []
            yield Place(source, number), cells

    def check_width(self, place: Place, cells: Sequence[str]) -> None:
        """See that a row has a cell for each column.

        Raises:
            UserError: it has more or fewer.
        """
        if len(cells) != len(self.columns):
            raise UserError(
                f"{place}: {len(cells)} columns where {len(self.columns)} are expected "
                f"({', '.join(self.columns)}). Cells are parted by tabs and never quoted; correct "
                "the row or fetch the file again."
            )


def position(column: str, header: Sequence[str], path: Path) -> int:
    """Which cell of a row is in `column`.

    Raises:
        UserError: the header has no such column, or two.
    """
    if header.count(column) != 1:
        number = "two columns" if column in header else "no column"
        raise UserError(
            f"{path}, line 1: the header has {number} '{column}'. The columns are: "
            f"{', '.join(header)}. Name another, or check that it is the right file."
        )
    return header.index(column)


def _cells(line: str) -> list[str]:
    return line.removesuffix("\n").removesuffix("\r").split("\t")
