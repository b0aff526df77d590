"""GLUE's files and a user's own tables as a task's splits: columns key, text, text_pair, label."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from stackbert.errors import UserError
from stackbert.files import reading
from stackbert.finetuning.squad import load_squad
from stackbert.finetuning.tasks import GLUE, TASKS, Task, TaskData
from stackbert.tables import read_table
from stackbert.units import did_you_mean

LabelKind = Literal["auto", "classification", "regression"]
_STEMS = {  # of GLUE's files
    "train": ("train",),
    "dev": ("dev", "dev_matched"),
    "dev_mismatched": ("dev_mismatched",),
    "test": ("test", "test_matched"),
    "test_mismatched": ("test_mismatched",),
}
_DAMAGED_QQP = 0.001  # of its rows at most: its own train.tsv has some twenty torn ones
_MOST_CLASSES = 20  # whole numbers of more values may be quantities: the user says what they are
_DEV_SHARE = 0.1


def _is_quoted(path: Path) -> bool:
    with reading(path):
        text = path.read_bytes().decode("utf-8-sig")
    # Only whoever quotes doubles the marks within a cell, breaks its line or quotes the header.
    cells = re.findall(r'(?m)(?:^|\t)"((?:[^"\t]|"")*)"(?=\t|\r?$)', text)
    return text.startswith('"') or any('""' in cell or "\n" in cell for cell in cells)


def _glue_files(task: Task, folder: Path) -> dict[Path, str]:
    """A GLUE task's files, in its own folder or one above, and the split that each is."""
    with reading(folder):
        folders = [path for path in (folder.resolve(), *sorted(folder.iterdir())) if path.is_dir()]
    # Of any case, with a hyphen or not.
    own = [p for p in folders if p.name.lower().replace("-", "") == task.name.replace("-", "")]
    found = {p / f"{stem}.tsv": s for p in own[:1] for s, stems in _STEMS.items() for stem in stems}
    if task.name == "mnli":  # its models answer the diagnostic set
        found[folder / "diagnostic" / "diagnostic.tsv"] = "test_ax"
    return {path: split for path, split in found.items() if path.is_file()}


def official_tasks(task: str | Sequence[str], data: Path) -> list[TaskData]:
    """GLUE's and SQuAD's tasks; of "glue" those that have data. Arguments as of `finetune`."""
    words = ",".join([task] if isinstance(task, str) else task).lower().split(",")
    known = ("glue", *TASKS)
    for name in words:
        if name not in known:
            shown = ", ".join((*known, "own"))
            raise UserError(f"There is no task '{name}'{did_you_mean(name, known)} among {shown}.")
    works = []
    for name in dict.fromkeys((*GLUE, *words) if "glue" in words else words):
        if name in ("squad", "squad-v2"):
            works.append(load_squad(TASKS[name], data))
        elif name != "glue":
            files = _glue_files(TASKS[name], data)
            header = ("source", "label", "mark", "sentence") if name == "cola" else ()
            tables = {
                split: (str(path), read_table(path, () if split == "test" else header))
                for path, split in files.items()
            }
            if "train" in tables or name in words:
                works.append(_task_data(TASKS[name], tables))
    if not works:
        raise UserError(f"{data} holds no folders of GLUE's tasks (CoLA, MRPC, …) with train.tsv.")
    return works


def _task_data(
    task: Task,
    tables: Mapping[str, tuple[str, pd.DataFrame]],
    notes: Sequence[str] = (),
    key: str | None = None,
) -> TaskData:
    """A task's data, checked, of a name and the cells of each split's table.

    Predictions go by `key`, an index, or the row's number.
    """
    splits, notes = {}, list(notes)
    if missing := [split for split in ("train", "dev") if split not in tables]:
        where = f"{task.title}/{missing[0]}.tsv"
        raise UserError(f"There is no {missing[0]} split of {task.title} ({where}).")
    for split, (where, frame) in tables.items():
        index = next((name for name in ("index", "id") if name in frame), None)
        wanted = {"key": key or index, "text": task.text, "text_pair": task.pair}
        if not split.startswith("test"):  # labels of test splits are not even looked at
            wanted["label"] = task.label
        found = {name: _column(frame, column, where) for name, column in wanted.items() if column}
        cells = pd.DataFrame({"key": frame.index.astype(str)} | found, index=frame.index)
        is_wrong = (cells.filter(like="text").map(str.strip) == "").any(axis=1)
        if "label" in cells:
            cells["label"] = _numbers(task, cells["label"])
            is_wrong |= cells["label"].isna()
        wrong = frame[is_wrong]
        if len(wrong):
            what = f"{where}, row {wrong.index[0] + 1} has an empty text or a label that is not "
            what += " or ".join(task.labels) or "a number"
            if (task.name, split) != ("qqp", "train") or len(wrong) > _DAMAGED_QQP * len(cells):
                raise UserError(f"{what}: {wrong.iloc[0].to_dict()}. Correct the row.")
            notes.append(f"{what}. It is left out, and {len(wrong) - 1} like it.")
        cells = cells.drop(wrong.index).reset_index(drop=True)
        if cells.empty or (split != "train" and cells["key"].duplicated().any()):
            raise UserError(f"{where} has no rows, or two with one key, which predictions go by.")
        splits[split] = cells.astype({"label": int}) if task.labels and "label" in cells else cells
    return TaskData(task, splits, tuple(notes))


def _column(frame: pd.DataFrame, name: str, where: str) -> "pd.Series[str]":
    def plain(value: Any) -> str:  # noqa: ANN401 (any cell)
        if isinstance(value, str):
            # Halves of a character, which no tokenizer takes, are replaced.
            return value.encode("utf-8", "replace").decode()
        if value is None or value != value:
            return ""
        return json.dumps(value.item() if hasattr(value, "item") else value)

    found = list(frame.columns).count(name)
    if found != 1:
        there = ", ".join(map(str, frame.columns))
        raise UserError(f"{where} has {found or 'no'} columns '{name}', only {there}.")
    with reading(where):
        return frame[name].map(plain)


def _numbers(task: Task, labels: "pd.Series[str]") -> "pd.Series[float]":
    labels = labels.str.strip()
    if not task.labels:
        return pd.to_numeric(labels, errors="coerce").replace([np.inf, -np.inf], np.nan)
    return labels.map({label: number for number, label in enumerate(task.labels)})


def own_data(
    paths: Mapping[str, str | Path | bool | None],
    *,
    text: str,
    label: str,
    second: str | None = None,
    key: str | None = None,
    kind: LabelKind = "auto",
) -> TaskData:
    """A user's own task, of tables by split; the rest as of `finetune`.

    Accuracy and macro F1 score classes, so that no class has to be the positive one; correlations
    score numbers. Without a dev split, a tenth of the training rows is set aside, chosen by a hash
    of their text: the same tenth every time, and equal texts stay on one side.
    """
    given = {split: Path(str(path)) for split, path in paths.items() if path}
    quoted = {path for path in given.values() if path.suffix.lower() == ".tsv" and _is_quoted(path)}
    tables = {s: (str(path), read_table(path, quoted=path in quoted)) for s, path in given.items()}
    where, train = tables["train"]
    labels = _column(train, label, where).str.strip()
    classes = _classes(labels[labels != ""], kind, f"{where}: the column '{label}'")
    taken = f"{len(classes)} classes" if classes else "numbers"
    notes = [f"{where}: the column '{label}' is taken for {taken}."]
    notes += [f"{path}: quotation marks around cells are not text." for path in sorted(quoted)]
    if "dev" not in tables:
        first = _column(train, text, where)
        other = _column(train, second, where) if second else first.str[:0]
        is_dev = _chosen_for_dev(first, other)
        if is_dev.all() or (classes and labels[~is_dev].nunique() < 2):
            raise UserError(f"{where} has too few different texts. Give a dev table.")
        tables |= {"train": (where, train[~is_dev]), "dev": (where, train[is_dev])}
        count = f"{is_dev.sum():,} of the {len(train):,} rows of {where} are set aside for dev"
        notes.append(f"There is no dev table: {count}, chosen by a hash of their text.")
    file = given["train"]
    name = file.resolve().parent.name if file.stem == "train" else file.stem
    task = Task(
        name=f"own-{name}" if name in TASKS else name,
        title=name,
        kind="classes" if classes else "number",
        metrics=("accuracy", "f1_macro") if classes else ("pearson", "spearman"),
        labels=classes,
        text=text,
        pair=second or "",
        label=label,
    )
    return _task_data(task, tables, notes, key)


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
