"""Tables of any kind, read as a task's splits: columns key, text, text_pair, label."""

import csv
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from stackbert.errors import UserError
from stackbert.files import reading
from stackbert.finetuning.squad import load_squad
from stackbert.finetuning.tasks import GLUE, TASKS, Task, TaskData
from stackbert.units import did_you_mean

LabelKind = Literal["auto", "classification", "regression"]
Raw = dict[str, tuple[str, pd.DataFrame]]
"""By split: where it comes from, for messages, and its columns as they are there."""
SPLITS = {
    "train": ("train",),
    "dev": ("dev", "validation", "dev_matched", "validation_matched"),
    "dev_mismatched": ("dev_mismatched", "validation_mismatched"),
    "test": ("test", "test_matched"),
    "test_mismatched": ("test_mismatched",),
}
"""Our names of the splits, and those of GLUE's files and of the hub."""
_DAMAGED_QQP = 0.001
"""QQP's own train.tsv has some twenty rows that a line break in a question tore apart, and two
without a second question, among 363,868; up to this share of the rows is left out."""
_MOST_CLASSES = 20
"""Whole numbers of at most this many values are classes; of more, the user says what they are."""
_DEV_SHARE = 0.1


def read_table(path: Path, *, quoted: bool = True) -> pd.DataFrame:
    """The cells of a .csv, .tsv, .json (a list of objects), .jsonl or .parquet file.

    Args:
        path: the file.
        quoted: whether quotation marks may enclose a cell, or are characters like any other.

    Raises:
        UserError: it cannot be read.
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
    last = cells.columns[-1]
    cells[last] = cells[last].str.removesuffix("\r")
    return cells.iloc[1:].set_axis(list(cells.iloc[0]), axis=1).reset_index(drop=True)


def is_quoted(path: Path) -> bool:
    """Whether a .tsv quotes its cells, as pandas writes it, or has quotation marks in its texts."""
    with reading(path):
        text = path.read_bytes().decode("utf-8-sig")
    plain = [line.split("\t") for line in text.replace("\r\n", "\n").split("\n") if line]
    try:
        quoted = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True))
    except csv.Error:
        return False
    quoted = [row for row in quoted if row]
    if len({len(row) for row in quoted}) != 1 or len({len(row) for row in plain}) != 1:
        return len({len(row) for row in quoted}) == 1
    # Both are tables. Only whoever quotes doubles the marks within a cell, or quotes the header.
    marked = [cell for row in plain for cell in row if cell.startswith('"')]
    is_doubled = any('""' in cell[1:-1] for cell in marked) or plain[0][0].startswith('"')
    return is_doubled and len(plain) == len(quoted)


def read_dataset(name: str, configuration: str = "", labels: Sequence[str] = ()) -> Raw:
    """The splits of a data set of the library `datasets`.

    Args:
        name: a folder that `save_to_disk` wrote, or a name on the hub (`NAME` or
            `NAME:CONFIGURATION`), which uses the network.
        configuration: of the hub, where the name has none.
        labels: of a known task: classes become names only if the data set has the same ones.

    Raises:
        UserError: it cannot be opened, or has no splits.
    """
    with reading(name, "It is a folder of save_to_disk or a name on the hub, NAME:CONFIGURATION."):
        import datasets

        if Path(name).exists():
            found = datasets.load_from_disk(name)
        else:
            repository, _, own = name.partition(":")
            found = datasets.load_dataset(repository, own or configuration or None)
    if not isinstance(found, dict):
        raise UserError(f"{name} has no splits. Save train, validation and test together.")
    raw: Raw = {}
    for ours, theirs in SPLITS.items():
        for split in (split for split in theirs if split in found):
            rows = found[split]
            columns = {column: list(rows[column]) for column in rows.column_names}
            for column, feature in rows.features.items():
                names = getattr(feature, "names", None)
                if names and (not labels or set(names) == set(labels)):
                    # -1 stands for a label that is unknown.
                    columns[column] = [dict(enumerate(names)).get(n) for n in columns[column]]
            raw[ours] = (f"{name} ({split})", pd.DataFrame(columns, dtype=object))
    return raw


def glue_files(task: Task, folder: Path) -> Raw | str:
    """The official files of a GLUE task, or what is missing ("no folder MNLI").

    Args:
        task: of GLUE.
        folder: holds the tasks' folders (CoLA, SST-2, …; in any case), or is the task's own.
    """
    called = [path for path in (folder.resolve(), *sorted(folder.iterdir())) if path.is_dir()]
    plain = {path: path.name.lower().replace("-", "") for path in called}
    own = [path for path in called if plain[path] == task.name.replace("-", "")]
    if not own:
        return f"no folder {task.title}"
    raw: Raw = {}
    for split, names in SPLITS.items():
        for path in (own[0] / f"{name}.tsv" for name in names):
            if path.is_file():
                frame = read_table(path, quoted=False)
                if task.name == "cola" and split != "test":  # the first line is a row
                    frame.loc[-1] = list(frame.columns)
                    frame = frame.sort_index().reset_index(drop=True)
                    frame.columns = pd.Index(["source", "label", "mark", "sentence"])
                raw[split] = (str(path), frame)
    diagnostic = folder / "diagnostic" / "diagnostic.tsv"
    if task.name == "mnli" and diagnostic.is_file():  # MNLI's models answer it
        raw["test_ax"] = (str(diagnostic), read_table(diagnostic, quoted=False))
    return raw if "train" in raw else f"no train.tsv in {own[0]}"


def task_data(task: Task, raw: Raw, notes: Sequence[str] = (), key: str | None = None) -> TaskData:
    """A task's data, checked. Labels of test splits are not even looked at.

    Args:
        task: with the names of the columns.
        raw: tables.
        notes: on the tables.
        key: the column that predictions go by; without it an index or the row's number.

    Raises:
        UserError: a column is missing, a row is wrong (its table and number are named), or there is
            no train or dev split.
    """
    for split in ("train", "dev"):
        if split not in raw:
            places = ", ".join(where for where, _ in raw.values())
            raise UserError(f"There is no {split} split of {task.title} (only {places}).")
    splits, notes = {}, list(notes)
    for split, (where, frame) in raw.items():
        columns = {"text": task.text, "text_pair": task.pair, "label": task.label, "key": (key,)}
        chosen = {
            name: _column(frame, names, where)
            for name, names in columns.items()
            if any(names) and not (name == "label" and split.startswith("test"))
        }
        index = next((name for name in ("index", "idx", "id") if name in frame), None)
        if index and not key:
            chosen["key"] = index
        with reading(where):
            cells = frame[list(chosen.values())].map(_plain)
        cells.columns = pd.Index(chosen)
        if "key" not in cells:
            cells["key"] = cells.index.astype(str)
        problems = pd.Series("", index=cells.index)
        for name in cells.columns.intersection(["text", "text_pair"]):
            problems[cells[name].str.strip() == ""] = f"the column '{chosen[name]}' is empty"
        if "label" in cells:
            labels = _numbers(task, cells["label"].str.strip())
            expected = " or ".join(task.labels) or "a number (of STS-B 0 to 5)"
            for row in labels.index[labels.isna()]:
                problems[row] = f"the label '{cells['label'][row]}' is not {expected}"
            cells["label"] = labels
        wrong = problems[problems != ""]
        may_be_wrong = _DAMAGED_QQP if (task.name, split) == ("qqp", "train") else 0.0
        if len(wrong) > may_be_wrong * len(cells):
            raise UserError(f"{where}, row {wrong.index[0] + 1}: {wrong.iloc[0]}. Correct the row.")
        if len(wrong):
            notes.append(f"{where}: {len(wrong)} damaged rows are left out ({wrong.iloc[0]}).")
        cells = cells.drop(wrong.index).reset_index(drop=True)
        if cells.empty or (split != "train" and cells["key"].duplicated().any()):
            raise UserError(f"{where} has no rows, or two with one key, which predictions go by.")
        if "label" in cells and task.labels:
            cells["label"] = cells["label"].astype(int)
        splits[split] = cells[[c for c in ("key", "text", "text_pair", "label") if c in cells]]
    return TaskData(task, splits, tuple(notes))


def _column(frame: pd.DataFrame, names: Sequence[str | None], where: str) -> str:
    found = [column for column in frame.columns if column in names]
    if len(found) != 1:
        raise UserError(
            f"{where} has {len(found) or 'no'} columns {' or '.join(map(str, names))}; its columns "
            f"are {', '.join(map(str, frame.columns))}."
        )
    return str(found[0])


def _plain(value: Any) -> str:  # noqa: ANN401 (any cell)
    """A cell as text; a missing one is empty."""
    if isinstance(value, str):
        # Halves of a character, which no tokenizer takes, are replaced.
        return value.encode("utf-8", "replace").decode()
    if value is None or value != value:
        return ""
    return json.dumps(value.item() if hasattr(value, "item") else value)


def _numbers(task: Task, labels: "pd.Series[str]") -> "pd.Series[float]":
    """Labels as numbers; NaN where there is no such class or number."""
    if task.labels:
        numbers = {str(number): number for number in range(len(task.labels))}
        return labels.map(numbers | {label: number for number, label in enumerate(task.labels)})
    found = pd.to_numeric(labels, errors="coerce")
    low, high = (0.0, 5.0) if task.name == "sts-b" else (-math.inf, math.inf)
    return found.where(found.between(low, high) & (found.abs() < math.inf))


def official_tasks(
    task: str | Sequence[str], data: str | Path | None, dataset: str | None
) -> tuple[list[TaskData], dict[str, str]]:
    """GLUE's and SQuAD's tasks, and what is missing for "glue"; the arguments are `finetune`'s.

    Raises:
        UserError: there is no such task or no such data, or a file is malformed.
    """
    words = ",".join([task] if isinstance(task, str) else task).lower().split(",")
    known = ("glue", *TASKS, "own")
    for name in words:
        if name not in known or name == "own":
            raise UserError(f"There is no task '{name}'{did_you_mean(name, known)}: {known}.")
    if (data is None) == (dataset is None):
        raise UserError("Say where the data is: a folder (--data) or a data set (--dataset).")
    if data is not None and not Path(data).is_dir():
        raise UserError(f"There is no folder {data}. Name the one with the tasks' files.")
    works, missing = [], {}
    for name in dict.fromkeys((*GLUE, *words) if "glue" in words else words):
        if name == "glue":
            continue
        chosen = TASKS[name]
        if chosen.kind == "span" and data is not None:
            works.append(load_squad(chosen, Path(data)))
            continue
        if data is not None:
            raw = glue_files(chosen, Path(data))
        else:
            raw = read_dataset(str(dataset), name.replace("-", ""), chosen.labels)
        if isinstance(raw, str):
            missing[name] = raw
        else:
            works.append(task_data(chosen, raw))
    if not works or set(words) & missing.keys():
        raise UserError(f"{data} does not have the task's data: {', '.join(missing.values())}.")
    return works, missing


def read_tables(
    tables: Mapping[str, str | Path | bool | None], dataset: str | None
) -> tuple[Raw, str, list[str]]:
    """A user's own tables by split, or a data set: what is in them, a name, and notes."""
    if (tables["train"] is None) == (dataset is None):
        raise UserError("Say where your data is: a training table (--data) or --dataset.")
    train = Path(dataset or str(tables["train"]))
    if dataset is not None or train.is_dir():
        return read_dataset(str(train)), train.name, []
    raw, notes = {}, []
    for split, path in ((split, Path(str(path))) for split, path in tables.items() if path):
        quoted = path.suffix.lower() != ".tsv" or is_quoted(path)
        raw[split] = (str(path), read_table(path, quoted=quoted))
        if quoted and path.suffix.lower() == ".tsv":
            notes.append(f"{path}: quotation marks around cells are not taken for text.")
    return raw, train.resolve().parent.name if train.stem == "train" else train.stem, notes


def own_data(
    raw: Raw,
    name: str,
    notes: Sequence[str] = (),
    *,
    text: str,
    label: str,
    second: str | None = None,
    key: str | None = None,
    kind: LabelKind = "auto",
) -> TaskData:
    """A user's own task; the arguments are those of `finetune`.

    Accuracy and macro F1 score classes, so that no class has to be the positive one; Pearson's and
    Spearman's correlation score numbers. Without a dev split, a tenth of the training rows is set
    aside, chosen by a hash of their text: the same tenth every time, and equal texts stay on one
    side.

    Raises:
        UserError: a column or label is wrong, or "auto" cannot tell classes from numbers.
    """
    where, train = raw["train"]
    texts = train[_column(train, (label,), where)].map(_plain).str.strip()
    numbers = pd.to_numeric(texts, errors="coerce")
    values = set(texts)
    if kind == "auto":
        is_number = bool(numbers.notna().all())
        is_whole = is_number and bool((numbers % 1 == 0).all())
        if is_whole and len(values) > _MOST_CLASSES:
            raise UserError(
                f"{where}: the column '{label}' holds {len(values)} different whole numbers. Are "
                "they classes or quantities? Say --kind classification or --kind regression."
            )
        kind = "regression" if is_number and not is_whole else "classification"
        notes = [*notes, f"{where}: the column '{label}' is taken for {kind}."]
    is_class = kind == "classification"
    if is_class and (len(values) < 2 or len(values) == len(texts) > 2):
        raise UserError(
            f"{where}: the column '{label}' holds {len(values)} different labels in {len(texts)} "
            "rows, so these are not classes. Name another column, or say --kind regression."
        )
    in_order = sorted(values, key=lambda one: (float(one) if numbers.notna().all() else 0.0, one))
    task = Task(
        name=f"own-{name}" if name in TASKS else name,
        title=name,
        kind="classes" if is_class else "number",
        labels=tuple(in_order) if is_class else (),
        metrics=("accuracy", "f1_macro") if is_class else ("pearson", "spearman"),
        text=(text,),
        pair=(second,) if second else (),
        label=(label,),
    )
    if "dev" in raw:
        return task_data(task, raw, notes, key)
    whole = task_data(task, {**raw, "dev": raw["train"]}, notes, key)
    rows = whole.splits["train"]
    pairs = zip(rows["text"], rows.get("text_pair", [""] * len(rows)), strict=True)
    hashes = pd.Series([hashlib.sha256(json.dumps(pair).encode()).hexdigest() for pair in pairs])
    counts = hashes.value_counts().sort_index()
    is_dev = hashes.isin(counts.index[counts.cumsum() - counts < _DEV_SHARE * len(rows)])
    if is_dev.all():
        raise UserError(f"{where} has too few different texts for a dev split. Give a dev table.")
    note = (
        f"There is no dev table: {is_dev.sum():,} of the {len(rows):,} rows of {where} are set "
        "aside as the dev split, chosen by a hash of their text."
    )
    sides = {"train": rows[~is_dev], "dev": rows[is_dev]}
    splits = {split: side.reset_index(drop=True) for split, side in sides.items()}
    return TaskData(task, {**whole.splits, **splits}, (*whole.notes, note))
