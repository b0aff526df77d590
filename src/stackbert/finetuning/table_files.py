"""A user's own data: CSV, TSV and JSONL files by named columns, and the task that they make."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from stackbert.errors import UserError
from stackbert.finetuning.cells import class_in, gather, is_number, number_in, text_in
from stackbert.finetuning.examples import Example, Split
from stackbert.finetuning.table_rows import Columns, TableRow, table_rows
from stackbert.finetuning.tasks import Task

DEV_SHARE = 0.1
"""Share of the training rows that make the dev split where no dev file is given."""
MOST_CLASSES = 20
"""More different labels than this, all of them whole numbers, are taken for numbers to predict:
ratings and codes of a handful of classes stay classes, counts and ages become a regression."""
Kind = Literal["classification", "regression", "auto"]


def read_table(
    path: Path,
    *,
    first: str,
    second: str | None = None,
    label: str | None = None,
    key: str | None = None,
    name: str = "test",
    task: Task | None = None,
) -> Split:
    """The rows of one table.

    Args:
        path: a .csv, .tsv or .jsonl file, see `table_rows`.
        first: see `Columns`, like the next three.
        second: as there.
        label: as there; never read for a test split.
        key: as there.
        name: the split's.
        task: says which classes there are, or that labels are numbers; needed for `label`.

    Raises:
        UserError: the file cannot be read, a named column is missing, or a row is malformed (file
            and line are named).
        ValueError: `label` without `task`.
    """
    columns = Columns(first, second, None if name.startswith("test") else label, key)
    if columns.label is not None and task is None:
        raise ValueError("labels need a task")
    return _split(name, path, table_rows(path, columns), columns, task)


def own_task(
    train: Path,
    dev: Path | None = None,
    test: Path | None = None,
    *,
    first: str,
    second: str | None = None,
    label: str,
    key: str | None = None,
    kind: Kind = "auto",
    name: str = "",
) -> tuple[Task, dict[str, Split]]:
    """A task of one's own, and its splits.

    Classes are the different labels of the training file, sorted (as numbers if all are).
    Classification is scored by accuracy and by F1 averaged over the classes, so that no class has
    to be the positive one; regression by Pearson's and Spearman's correlation.

    Without a dev file, a tenth of the training rows becomes the dev split: those whose text's hash
    is lowest, so it is the same tenth every time, and equal texts stay on one side.

    Args:
        train: a table as `read_table` reads it.
        dev: another, for scores.
        test: another, to predict; its labels are never read.
        first: see `Columns`, like the next three.
        second: as there.
        label: as there.
        key: as there.
        kind: "auto" takes labels for numbers to predict if all are numbers and some are not whole
            or they are more than `MOST_CLASSES` different ones.
        name: the task's; without it the training file's, or its folder's if the file is just called
            "train".

    Returns:
        The task; the splits "train", "dev" and, if given, "test".

    Raises:
        UserError: see `read_table`; or a dev label that the training file does not have, labels
            that are no classes (one only, or a different one each row), no numbers, or too few
            rows to cut a dev split from.
    """
    columns = Columns(first, second, label, key)
    rows = list(table_rows(train, columns))
    labels = [_label_in(row, columns) for row in rows]
    if not rows:
        raise UserError(f"{train} holds no examples. Choose another file.")
    taken = kind if kind != "auto" else _kind_of(labels)
    regression = taken == "regression"
    task = Task(
        name=name or _name_of(train),
        title=name or _name_of(train),
        kind="regression" if regression else "classification",
        labels=() if regression else _classes(labels, label, train),
        paired=second is not None,
        metrics=("pearson", "spearman") if regression else ("accuracy", "f1_macro"),
    )
    whole = _split("train", train, rows, columns, task)
    if kind == "auto":
        what = "numbers to predict" if regression else f"{len(task.labels)} classes"
        whole = replace(whole, notes=(f"{train}: the column '{label}' is taken for {what}.",))
    splits = dict(zip(("train", "dev"), _cut(whole), strict=True)) if dev is None else {}
    if dev is not None:
        splits = {
            "train": whole,
            "dev": _split("dev", dev, table_rows(dev, columns), columns, task),
        }
    if test is not None:
        unlabelled = replace(columns, label=None)
        splits["test"] = _split("test", test, table_rows(test, unlabelled), unlabelled, task)
    return task, splits


def _name_of(train: Path) -> str:
    return train.resolve().parent.name if train.stem.lower() == "train" else train.stem


def _split(
    name: str, path: Path, rows: Iterable[TableRow], columns: Columns, task: Task | None
) -> Split:
    classes = {one: number for number, one in enumerate(task.labels)} if task else {}

    def label_of(row: TableRow) -> int | float | None:
        if columns.label is None or task is None:
            return None
        value = _label_in(row, columns)
        if task.kind == "regression":
            return number_in(value, columns.label, row.place)
        return class_in(value, columns.label, row.place, classes)

    def example_of(row: TableRow) -> Example:
        return Example(
            key=text_in(row.key, columns.key, row.place) if columns.key else str(row.number),
            first=text_in(row.first, columns.first, row.place),
            second=text_in(row.second, columns.second, row.place) if columns.second else None,
            label=label_of(row),
        )

    return gather(name, str(path), rows, example_of, unique=True)


def _label_in(row: TableRow, columns: Columns) -> str:
    return text_in(row.label, columns.label or "", row.place).strip()


def _kind_of(labels: Sequence[str]) -> Literal["classification", "regression"]:
    if not all(map(is_number, labels)):
        return "classification"
    whole = all(float(label).is_integer() for label in labels)
    return "classification" if whole and len(set(labels)) <= MOST_CLASSES else "regression"


def _classes(labels: Sequence[str], column: str, path: Path) -> tuple[str, ...]:
    counts = Counter(labels)
    if len(counts) < 2:
        raise UserError(
            f"{path}: every row has the label '{labels[0]}' in the column '{column}'. There must "
            "be at least two classes."
        )
    if len(counts) == len(labels) and len(labels) > 2:
        raise UserError(
            f"{path}: the column '{column}' holds a different label in each row, so these are no "
            "classes. Name another column, or say that it is a regression."
        )
    numbers = all(map(is_number, counts))
    return tuple(sorted(counts, key=lambda one: (float(one) if numbers else 0.0, one)))


def _cut(whole: Split) -> tuple[Split, Split]:
    """Train and dev out of a training file."""
    texts = [(example.first, example.second or "") for example in whole.examples]
    counts = Counter(texts)
    chosen: set[tuple[str, str]] = set()
    number = 0
    for text in sorted(counts, key=_hash):
        if number >= DEV_SHARE * len(texts):
            break
        chosen.add(text)
        number += counts[text]
    if number == len(texts):
        raise UserError(
            f"{whole.source} has too few different texts to set some aside as a dev split. Give a "
            "dev file."
        )
    note = (
        f"No dev file was given: {number:,} of the {len(texts):,} rows of {whole.source} were set "
        "aside as the dev split, chosen by a hash of their text."
    )
    sides = [
        tuple(one for one, text in zip(whole.examples, texts, strict=True) if (text in chosen) == d)
        for d in (False, True)
    ]
    return (
        Split("train", whole.source, sides[0], whole.notes),
        Split("dev", whole.source, sides[1], (note,)),
    )


def _hash(text: tuple[str, str]) -> bytes:
    return hashlib.sha256(json.dumps(text).encode()).digest()
