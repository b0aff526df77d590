"""What a cell of a data set may hold, and rows gathered into a split; errors name the place."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, TypeVar

from stackbert.errors import UserError
from stackbert.finetuning.examples import Example, Split

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_SURROGATE = re.compile("[\ud800-\udfff]")
Row = TypeVar("Row")


class Place(NamedTuple):
    """Where a row stands: "dev.tsv, line 7"."""

    source: str
    number: int
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.source}, {self.unit} {self.number}"


def text_in(value: str, column: str, place: Place) -> str:
    """The text of a cell, as it stands there.

    Raises:
        UserError: it is blank.
    """
    if not value.strip():
        raise UserError(f"{place}: the column '{column}' is empty. Fill it in or remove the row.")
    return value


def class_in(value: str, column: str, place: Place, numbers: Mapping[str, int]) -> int:
    """The number of the class that a cell names.

    Args:
        value: the cell.
        column: its column, for the message.
        place: its row, for the message.
        numbers: the number of each class.

    Raises:
        UserError: there is no such class.
    """
    if value not in numbers:
        known = ", ".join(f"'{name}'" for name in numbers)
        raise UserError(
            f"{place}: unknown label '{value}' in the column '{column}'. The classes are: {known}. "
            "Correct the label or remove the row."
        )
    return numbers[value]


def is_number(value: str) -> bool:
    """Whether a cell is a finite number as data files write it ("3", "-0.5", "1e-3")."""
    return _NUMBER.fullmatch(value) is not None and math.isfinite(float(value))


def number_in(
    value: str, column: str, place: Place, low: float = -math.inf, high: float = math.inf
) -> float:
    """The number that a cell holds.

    Args:
        value: the cell.
        column: its column, for the message.
        place: its row, for the message.
        low: the least number allowed.
        high: the greatest number allowed.

    Raises:
        UserError: it is no finite number, or out of bounds.
    """
    if not is_number(value):
        raise UserError(
            f"{place}: '{value}' in the column '{column}' is no number. Correct it or remove the "
            "row."
        )
    number = float(value)
    if not low <= number <= high:
        raise UserError(
            f"{place}: {value} in the column '{column}' is not between {low:g} and {high:g}. "
            "Correct it or remove the row."
        )
    return number


def without_surrogates(text: str) -> str:
    """The text with halves of a character that JSON can spell out replaced, length kept.

    A tokenizer cannot take them, and they are not worth refusing a data set for.
    """
    return _SURROGATE.sub("\ufffd", text)


def gather(
    name: str,
    source: str,
    rows: Iterable[Row],
    example_of: Callable[[Row], Example],
    *,
    may_be_damaged: float = 0.0,
    unique: bool = False,
) -> Split:
    """A split of the examples that rows make.

    Args:
        name: the split's.
        source: the split's.
        rows: anything.
        example_of: makes a row's example, or raises `UserError` for a wrong one.
        may_be_damaged: up to this share of the rows may be wrong and is left out, with a note.
        unique: no two examples may share a key; so it always is where predictions will go by it,
            everywhere but in training data.

    Raises:
        UserError: a row is wrong, or there is none, or two share a key that may not.
    """
    examples: list[Example] = []
    damage: list[UserError] = []
    keys: set[str] = set()
    for row in rows:
        try:
            example = example_of(row)
        except UserError as error:
            if not may_be_damaged:
                raise
            damage.append(error)
            continue
        if unique or name != "train":
            if example.key in keys:
                raise UserError(
                    f"{source}: two rows have the index '{example.key}'. Each needs its own; "
                    "predictions go by it."
                )
            keys.add(example.key)
        examples.append(example)
    if len(damage) > may_be_damaged * (len(damage) + len(examples)):
        raise damage[0]
    if not examples:
        raise UserError(f"{source} holds no examples. Fetch it again or choose another file.")
    notes: tuple[str, ...] = ()
    if damage:
        count = f"{len(damage)} of {len(damage) + len(examples):,} rows are"
        notes = (f"{source}: {count} damaged and left out; the first: {damage[0]}",)
    return Split(name, source, tuple(examples), notes)
