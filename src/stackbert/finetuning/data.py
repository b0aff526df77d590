"""Tables of any kind, read as a task's splits: columns key, text, text_pair, label."""

import csv
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from stackbert.errors import UserError, need
from stackbert.files import reading
from stackbert.finetuning.squad import load_squad
from stackbert.finetuning.tasks import GLUE, TASKS, Task, TaskData
from stackbert.units import did_you_mean

LabelKind = Literal["auto", "classification", "regression"]
Raw = dict[str, tuple[str, pd.DataFrame]]
"""By split: where it comes from, for messages, and its columns as they are there."""
_SPLITS = {  # our names, and those of GLUE's files and of the hub
    "train": ("train",),
    "dev": ("dev", "validation", "dev_matched", "validation_matched"),
    "dev_mismatched": ("dev_mismatched", "validation_mismatched"),
    "test": ("test", "test_matched"),
    "test_mismatched": ("test_mismatched",),
}
_DAMAGED_QQP = 0.001  # of its rows at most: its own train.tsv has some twenty torn ones
_MOST_CLASSES = 20  # whole numbers of more values may be quantities: the user says what they are
_DEV_SHARE = 0.1


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
        quoted = quoted or suffix == ".csv"
        # With the header as a row, a first row that is too long is an error like any other.
        cells = pd.read_csv(
            path,
            sep="," if suffix == ".csv" else "\t",
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


def _is_quoted(path: Path) -> bool:
    with reading(path):
        text = path.read_bytes().decode("utf-8-sig")
    # Only whoever quotes doubles the marks within a cell, breaks its line or quotes the header.
    cells = re.findall(r'(?m)(?:^|\t)"((?:[^"\t]|"")*)"(?=\t|\r?$)', text)
    return text.startswith('"') or any('""' in cell or "\n" in cell for cell in cells)


def _read_dataset(name: str, configuration: str = "", labels: Sequence[str] = ()) -> Raw:
    """The splits of a data set; its classes become names, if they are those of a known task."""
    repository, _, own = name.partition(":")
    with reading(name, "It is a folder of save_to_disk or a name on the hub, NAME:CONFIGURATION."):
        need("datasets", "datasets", to=f"Reading {name}")
        import datasets

        if Path(name).is_dir():
            found = datasets.load_from_disk(name)
        else:
            found = datasets.load_dataset(repository, own or configuration or None)
    if isinstance(found, datasets.Dataset):
        raise UserError(f"{name} has no splits. Save train, validation and test together.")
    raw: Raw = {}
    for ours, theirs in _SPLITS.items():
        for split in (split for split in theirs if split in found):
            frame = found[split].to_pandas()
            for column, feature in found[split].features.items():
                names = getattr(feature, "names", None)
                if names and (not labels or set(names) == set(labels)):
                    frame[column] = frame[column].map(dict(enumerate(names)))  # -1 is unknown
            raw[ours] = (f"{name} ({split})", frame.astype(object))
    return raw


def _glue_files(task: Task, folder: Path) -> Raw:
    """A GLUE task's files, in its own folder or one above; of any case, with a hyphen or not."""
    with reading(folder):
        folders = [path for path in (folder.resolve(), *sorted(folder.iterdir())) if path.is_dir()]
    names = [path.name.lower().replace("-", "") for path in folders]
    if task.name.replace("-", "") not in names:
        return {}
    own = folders[names.index(task.name.replace("-", ""))]
    paths = [(split, own / f"{stem}.tsv") for split, stems in _SPLITS.items() for stem in stems]
    if task.name == "mnli":  # its models answer the diagnostic set
        paths.append(("test_ax", folder / "diagnostic" / "diagnostic.tsv"))
    header = ("source", "label", "mark", "sentence") if task.name == "cola" else ()
    return {
        split: (str(path), read_table(path, () if split == "test" else header))
        for split, path in paths
        if path.is_file()
    }


def official_tasks(
    task: str | Sequence[str], data: str | Path | None, dataset: str | None
) -> list[TaskData]:
    """GLUE's and SQuAD's tasks; of "glue" those that have data. Arguments as of `finetune`.

    Raises:
        UserError: there is no such task or no such data, or a file is malformed.
    """
    words = ",".join([task] if isinstance(task, str) else task).lower().split(",")
    known = ("glue", *TASKS)
    for name in words:
        if name not in known:
            shown = ", ".join((*known, "own"))
            raise UserError(f"There is no task '{name}'{did_you_mean(name, known)} among {shown}.")
    works = []
    for name in dict.fromkeys((*GLUE, *words) if "glue" in words else words):
        if name in ("squad", "squad-v2"):
            works.append(load_squad(TASKS[name], Path(str(data or dataset))))
        elif name != "glue":
            if data is not None:
                raw = _glue_files(TASKS[name], Path(data))
            else:
                raw = _read_dataset(str(dataset), name.replace("-", ""), TASKS[name].labels)
            if "train" in raw or name in words:
                works.append(_task_data(TASKS[name], raw))
    if not works:
        raise UserError(f"{data} holds no folders of GLUE's tasks (CoLA, MRPC, …) with train.tsv.")
    return works


def _task_data(task: Task, raw: Raw, notes: Sequence[str] = (), key: str | None = None) -> TaskData:
    """A task's data, checked. Predictions go by `key`, an index, or the row's number."""
    splits, notes = {}, list(notes)
    if missing := [split for split in ("train", "dev") if split not in raw]:
        where = f"{task.title}/{missing[0]}.tsv"
        raise UserError(f"There is no {missing[0]} split of {task.title} ({where}).")
    for split, (where, frame) in raw.items():
        index = next((name for name in ("index", "idx", "id") if name in frame), None)
        wanted = {"key": (key or index,), "text": task.text, "text_pair": task.pair}
        if not split.startswith("test"):  # labels of test splits are not even looked at
            wanted["label"] = task.label
        found = {name: _column(frame, names, where) for name, names in wanted.items() if any(names)}
        cells = pd.DataFrame({"key": frame.index.astype(str)} | found, index=frame.index)
        is_wrong = (cells.filter(like="text").map(str.strip) == "").any(axis=1)
        numbers = _numbers(task, cells["label"].str.strip()) if "label" in cells else None
        wrong = cells[is_wrong if numbers is None else is_wrong | numbers.isna()]
        if len(wrong):
            what = f"{where}, row {wrong.index[0] + 1} has an empty text or a label that is not "
            what += " or ".join(task.labels) or "a number"
            if (task.name, split) != ("qqp", "train") or len(wrong) > _DAMAGED_QQP * len(cells):
                raise UserError(f"{what}: {wrong.iloc[0].to_dict()}. Correct the row.")
            notes.append(f"{what}. It is left out, and {len(wrong) - 1} like it.")
        cells = cells.assign(label=numbers) if numbers is not None else cells
        cells = cells.drop(wrong.index).reset_index(drop=True)
        if cells.empty or (split != "train" and cells["key"].duplicated().any()):
            raise UserError(f"{where} has no rows, or two with one key, which predictions go by.")
        splits[split] = cells.astype({"label": int}) if task.labels and "label" in cells else cells
    return TaskData(task, splits, tuple(notes))


def _column(frame: pd.DataFrame, names: Sequence[str | None], where: str) -> "pd.Series[str]":
    def plain(value: Any) -> str:  # noqa: ANN401 (any cell)
        if isinstance(value, str):
            # Halves of a character, which no tokenizer takes, are replaced.
            return value.encode("utf-8", "replace").decode()
        if value is None or value != value:
            return ""
        return json.dumps(value.item() if hasattr(value, "item") else value)

    found = [column for column in frame.columns if column in names]
    if len(found) != 1:
        called = " or ".join(f"'{name}'" for name in names)
        there = ", ".join(map(str, frame.columns))
        raise UserError(f"{where} has {len(found) or 'no'} columns {called}, only {there}.")
    with reading(where):
        return frame[found[0]].map(plain)


def _numbers(task: Task, labels: "pd.Series[str]") -> "pd.Series[float]":
    if not task.labels:
        return pd.to_numeric(labels, errors="coerce").replace([np.inf, -np.inf], np.nan)
    numbers = {label: number for number, label in enumerate(task.labels)}
    if task.name in TASKS:  # data sets of the hub have GLUE's classes as numbers
        numbers |= {str(number): number for number in numbers.values()}
    return labels.map(numbers)


def own_data(
    tables: Mapping[str, str | Path | bool | None],
    dataset: str | None,
    *,
    text: str,
    label: str,
    second: str | None = None,
    key: str | None = None,
    kind: LabelKind = "auto",
) -> TaskData:
    """A user's own task, of tables by split or a data set; the rest as of `finetune`.

    Accuracy and macro F1 score classes, so that no class has to be the positive one; correlations
    score numbers. Without a dev split, a tenth of the training rows is set aside, chosen by a hash
    of their text: the same tenth every time, and equal texts stay on one side.

    Raises:
        UserError: a column or label is wrong, or "auto" cannot tell classes from numbers.
    """
    source, raw, notes = Path(dataset or str(tables["train"])), {}, []
    name = source.resolve().parent.name if source.stem == "train" else source.stem
    if dataset is not None or source.is_dir():
        raw, name = _read_dataset(str(dataset or source)), source.name
        tables = {}
    for split, path in ((split, Path(str(path))) for split, path in tables.items() if path):
        quoted = path.suffix.lower() == ".tsv" and _is_quoted(path)
        raw[split] = (str(path), read_table(path, quoted=quoted))
        if quoted:
            notes.append(f"{path}: quotation marks around cells are not taken for text.")
    if "train" not in raw:
        raise UserError(f"{source} has no train split.")
    where, train = raw["train"]
    labels = _column(train, (label,), where).str.strip()
    classes = _classes(labels[labels != ""], kind, f"{where}: the column '{label}'")
    taken = f"{len(classes)} classes" if classes else "numbers"
    notes.append(f"{where}: the column '{label}' is taken for {taken}.")
    if "dev" not in raw:
        first = _column(train, (text,), where)
        other = _column(train, (second,), where) if second else first.str[:0]
        is_dev = _chosen_for_dev(first, other)
        if is_dev.all() or (classes and labels[~is_dev].nunique() < 2):
            raise UserError(f"{where} has too few different texts. Give a dev table.")
        raw |= {"train": (where, train[~is_dev]), "dev": (where, train[is_dev])}
        count = f"{is_dev.sum():,} of the {len(train):,} rows of {where} are set aside for dev"
        notes.append(f"There is no dev table: {count}, chosen by a hash of their text.")
    task = Task(
        name=f"own-{name}" if name in TASKS else name,
        title=name,
        kind="classes" if classes else "number",
        metrics=("accuracy", "f1_macro") if classes else ("pearson", "spearman"),
        labels=classes,
        text=(text,),
        pair=(second,) if second else (),
        label=(label,),
    )
    return _task_data(task, raw, notes, key)


def _classes(labels: "pd.Series[str]", kind: LabelKind, where: str) -> tuple[str, ...]:
    numbers, classes = pd.to_numeric(labels, errors="coerce"), sorted(set(labels))
    is_whole = bool((numbers % 1 == 0).all())
    if kind == "auto" and is_whole and len(classes) > _MOST_CLASSES:
        raise UserError(
            f"{where} holds {len(classes)} different whole numbers. Are they classes or "
            "quantities? Say --kind classification or --kind regression."
        )
    if kind == "regression" or (kind == "auto" and not is_whole and numbers.notna().all()):
        return ()
    if len(classes) < 2 or len(classes) == len(labels) > 2:
        raise UserError(
            f"{where} holds {len(classes)} different labels in {len(labels)} rows, so these are "
            "not classes. Name another column, or say --kind regression."
        )
    return tuple(classes if numbers.isna().any() else sorted(classes, key=float))


def _chosen_for_dev(first: "pd.Series[str]", second: "pd.Series[str]") -> "pd.Series[bool]":
    texts = [json.dumps(pair).encode() for pair in zip(first, second, strict=True)]
    hashed = pd.Series([hashlib.sha256(text).hexdigest() for text in texts], index=first.index)
    counts = hashed.value_counts().sort_index()
    return hashed.isin(counts.index[counts.cumsum() - counts < _DEV_SHARE * len(hashed)])
