"""GLUE's tasks from a data set of the library `datasets`, by its own columns' names."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stackbert.errors import UserError
from stackbert.finetuning.cells import Place, gather, text_in, without_surrogates
from stackbert.finetuning.examples import Example, Split
from stackbert.finetuning.glue_files import DAMAGED_QQP
from stackbert.finetuning.tasks import Task

_TEXTS = {
    "cola": ("sentence", None),
    "sst-2": ("sentence", None),
    "mrpc": ("sentence1", "sentence2"),
    "sts-b": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
    "ax": ("premise", "hypothesis"),
}
_SPLITS = {
    "train": "train",
    "validation": "dev",
    "validation_matched": "dev",
    "validation_mismatched": "dev_mismatched",
    "test": "test",
    "test_matched": "test",
    "test_mismatched": "test_mismatched",
}


def from_dataset(task: Task, name: str) -> dict[str, Split]:
    """The splits of a GLUE task in a data set.

    Args:
        task: one of `tasks.GLUE`.
        name: a folder that `save_to_disk` wrote, or a name on the hub (`NAME` or
            `NAME:CONFIGURATION`; "nyu-mll/glue" has the tasks as configurations, and the task's
            own is taken where none is given), the only one that uses the network.

    Returns:
        As `glue_files.read_glue` does.

    Raises:
        UserError: `datasets` is not installed, the data set cannot be opened or has other columns,
            or a row is malformed; data set, split and row are named.
    """
    found = _open(task, name)
    splits = {
        _SPLITS[split]: _split(task, name, split, rows)
        for split, rows in found.items()
        if split in _SPLITS and not (task.name == "ax" and split != "test")
    }
    if not splits:
        raise UserError(
            f"The data set {name} has no split of {task.title}, only {', '.join(map(str, found))}."
            f" They must be called {', '.join(_SPLITS)}."
        )
    return {split: splits[split] for split in dict.fromkeys(_SPLITS.values()) if split in splits}


def _open(task: Task, name: str) -> Mapping[str, Any]:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"Reading the data set {name} needs the 'datasets' library. "
            "Install it with: pip install 'stackbert[datasets]'"
        ) from error
    folder = Path(name).expanduser()
    if folder.exists() and not (folder / "dataset_dict.json").is_file():
        raise UserError(
            f"{name} is no data set with splits. Pass the folder that save_to_disk wrote for all "
            "of them together (it holds dataset_dict.json)."
        )
    try:
        if folder.exists():
            return dict(datasets.load_from_disk(str(folder)))
        repository, _, configuration = name.partition(":")
        return dict(datasets.load_dataset(repository, configuration or task.name.replace("-", "")))
    except Exception as error:  # whatever the format's reader or the network raises
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise UserError(
            f"The data set {name} cannot be opened: {reason}. Check the name or the path; a "
            "configuration goes behind a colon (NAME:CONFIGURATION)."
        ) from error


def _split(task: Task, name: str, split: str, rows: Any) -> Split:  # noqa: ANN401 (untyped library)
    source = f"{name} ({split})"
    first, second = _TEXTS[task.name]
    labelled = not split.startswith("test")
    needed = [one for one in (first, second, "label" if labelled else None) if one is not None]
    lacking = [one for one in needed if one not in rows.column_names]
    if lacking:
        raise UserError(
            f"{source}: no column {', '.join(lacking)}, which {task.title} needs. The columns are: "
            f"{', '.join(rows.column_names)}. Check that it is the right data set."
        )
    chosen = [*needed, *(["idx"] if "idx" in rows.column_names else [])]
    names = getattr(rows.features["label"], "names", None) if labelled else None

    def example_of(numbered: tuple[int, Mapping[str, Any]]) -> Example:
        number, row = numbered
        place = Place(source, number, "row")
        return Example(
            key=str(row.get("idx", number)),
            first=_text(row[first], first, place),
            second=None if second is None else _text(row[second], second, place),
            label=_label(task, row["label"], names, place) if labelled else None,
        )

    def numbered() -> Iterator[tuple[int, Mapping[str, Any]]]:
        yield from enumerate(rows.select_columns(chosen))

    damaged = DAMAGED_QQP if (task.name, split) == ("qqp", "train") else 0.0
    return gather(_SPLITS[split], source, numbered(), example_of, may_be_damaged=damaged)


def _text(value: object, column: str, place: Place) -> str:
    if value is not None and not isinstance(value, str):
        raise UserError(
            f"{place}: the column '{column}' is no text but {type(value).__name__}. Check that it "
            "is the right data set."
        )
    return text_in(without_surrogates(value or ""), column, place)


def _label(task: Task, value: object, names: list[str] | None, place: Place) -> int | float:
    """A label by its class's name where the data set knows the task's names, else by number."""
    if task.kind == "regression":
        if isinstance(value, int | float) and 0.0 <= value <= 5.0:
            return float(value)
        raise UserError(f"{place}: the label {value!r} is no number from 0 to 5. Correct the row.")
    if isinstance(value, str) and value in task.labels:
        return task.labels.index(value)
    if isinstance(value, int) and 0 <= value < len(task.labels):
        known = names is not None and set(names) == set(task.labels)
        return task.labels.index(names[value]) if names is not None and known else value
    raise UserError(
        f"{place}: unknown label {value!r}. The classes of {task.title} are: "
        f"{', '.join(task.labels)}. Correct or remove the row."
    )
