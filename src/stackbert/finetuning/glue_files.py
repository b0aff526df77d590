"""GLUE's official files, read into splits.

The layout is the one that GLUE's own download makes: a folder a task, tab-separated files without
quoting in it. Labels of test files are never read, whatever the file holds.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType

from stackbert.errors import UserError
from stackbert.files import explaining_os_errors
from stackbert.finetuning.cells import Place, class_in, gather, number_in, text_in
from stackbert.finetuning.examples import Example, Split
from stackbert.finetuning.tab_files import TabFile
from stackbert.finetuning.tasks import Task

DAMAGED_QQP = 0.001
"""QQP's own train.tsv has some twenty rows that a line break within a question tore apart, and two
without a second question, among 363,868; up to this share is left out, as everyone does."""
_FILES = MappingProxyType({"train": ("train.tsv",), "dev": ("dev.tsv",), "test": ("test.tsv",)})


@dataclass(frozen=True)
class _Layout:
    """Where a task's files are and which columns matter; `header` is of files that have none."""

    folders: tuple[str, ...]
    first: str
    second: str | None = None
    label: str | None = "label"
    key: str = "index"
    files: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: _FILES)
    header: Sequence[str] | None = None


_LAYOUTS = {
    "cola": _Layout(("CoLA",), "sentence", header=("source", "label", "mark", "sentence")),
    "sst-2": _Layout(("SST-2",), "sentence"),
    "mrpc": _Layout(("MRPC",), "#1 String", "#2 String", "Quality"),
    "sts-b": _Layout(("STS-B",), "sentence1", "sentence2", "score"),
    "qqp": _Layout(("QQP",), "question1", "question2", "is_duplicate", "id"),
    "mnli": _Layout(
        ("MNLI",),
        "sentence1",
        "sentence2",
        "gold_label",
        files={
            "train": ("train.tsv",),
            "dev": ("dev_matched.tsv",),
            "dev_mismatched": ("dev_mismatched.tsv",),
            "test": ("test_matched.tsv",),
            "test_mismatched": ("test_mismatched.tsv",),
        },
    ),
    "qnli": _Layout(("QNLI",), "question", "sentence"),
    "rte": _Layout(("RTE",), "sentence1", "sentence2"),
    "wnli": _Layout(("WNLI",), "sentence1", "sentence2"),
    "ax": _Layout(
        ("diagnostic", "AX"),
        "sentence1",
        "sentence2",
        label=None,
        files={"test": ("diagnostic.tsv", "AX.tsv")},
    ),
}
_MRPC_TRAIN, _MRPC_TEST = "msr_paraphrase_train.txt", "msr_paraphrase_test.txt"
_MRPC_IDS = "dev_ids.tsv"


def available(folder: Path) -> dict[str, Path]:
    """The tasks that can be done with the data in a folder, each with its own folder.

    A task counts when its training file is there; the diagnostic set has none and counts when it
    is there itself.

    Args:
        folder: holds the tasks' folders, or is one of them.

    Raises:
        UserError: there is no such folder.
    """
    return {name: found for name, found in _found(folder).items() if isinstance(found, Path)}


def missing(folder: Path) -> dict[str, str]:
    """The tasks that `available` leaves out, each with what is missing ("no folder MNLI")."""
    return {name: found for name, found in _found(folder).items() if isinstance(found, str)}


def _found(folder: Path) -> dict[str, Path | str]:
    found: dict[str, Path | str] = {}
    for name, layout in _LAYOUTS.items():
        own = _subfolder(layout, folder)
        if own is None and _plain(folder.resolve().name) in map(_plain, layout.folders):
            own = folder
        needed = "test" if name == "ax" else "train"
        if own is None:
            found[name] = f"no folder {' or '.join(layout.folders)}"
        elif _file(layout, needed, own) or (name == "mrpc" and (own / _MRPC_TRAIN).is_file()):
            found[name] = own
        else:
            found[name] = f"no {' or '.join(layout.files[needed])} in {own}"
    return found


def read_glue(task: Task, folder: Path) -> dict[str, Split]:
    """The splits of a GLUE task whose files are there.

    Args:
        task: one of `tasks.GLUE`.
        folder: holds the tasks' folders (CoLA, SST-2, …, diagnostic; in any case), or is the
            task's own.

    Returns:
        By name: "train", "dev" and "test", of MNLI (whose "dev" and "test" are the matched ones)
        "dev_mismatched" and "test_mismatched" too, of the diagnostic set "test" alone. Examples
        of test splits have no label.

    Raises:
        UserError: the task's files are not there, or a row is malformed: a wrong number of
            columns, an unknown label, no text, a bad number, bytes that are no text. The sentence
            names file and line.
    """
    layout = _LAYOUTS[task.name]
    own = _subfolder(layout, folder) or folder
    splits = {
        name: _read(task, layout, name, path)
        for name in layout.files
        if (path := _file(layout, name, own)) is not None
    }
    if task.name == "mrpc":
        splits.update(_microsoft(task, layout, own, set(splits)))
    if not splits:
        raise UserError(
            f"{folder} holds neither a folder {' or '.join(layout.folders)} nor the files of "
            f"{task.title} ({', '.join(file for names in layout.files.values() for file in names)})"
            ". Name the folder that holds GLUE's tasks, or the task's own."
        )
    return {name: splits[name] for name in layout.files if name in splits}


def _plain(name: str) -> str:
    return name.lower().replace("-", "")


def _subfolder(layout: _Layout, folder: Path) -> Path | None:
    """The task's folder within `folder`; its official name goes before another spelling."""
    with explaining_os_errors(f"looking for GLUE's data in {folder}"):
        folders = sorted(path for path in folder.iterdir() if path.is_dir())
    for wanted in layout.folders:
        alike = [path for path in folders if _plain(path.name) == _plain(wanted)]
        if alike:
            return next((path for path in alike if path.name == wanted), alike[0])
    return None


def _file(layout: _Layout, split: str, folder: Path) -> Path | None:
    paths = (folder / name for name in layout.files[split])
    return next((path for path in paths if path.is_file()), None)


def _read(
    task: Task,
    layout: _Layout,
    name: str,
    path: Path,
    keep: Callable[[list[str], TabFile], bool] | None = None,
) -> Split:
    """One file's split; `keep` says which rows (of the right width) belong to it."""
    test = name.startswith("test")
    file = TabFile(path, None if test else layout.header)
    first = file.place_of(layout.first)
    second = None if layout.second is None else file.place_of(layout.second)
    label = None if test or layout.label is None else file.place_of(layout.label)
    key = file.place_of(layout.key) if layout.key in file.columns else None
    classes = {one: number for number, one in enumerate(task.labels)}

    def label_of(cells: list[str], place: Place) -> int | float | None:
        if label is None:
            return None
        if task.kind == "regression":
            return number_in(cells[label], file.columns[label], place, low=0.0, high=5.0)
        return class_in(cells[label], file.columns[label], place, classes)

    def example_of(row: tuple[int, Place, list[str]]) -> Example:
        number, place, cells = row
        file.check_width(place, cells)
        return Example(
            key=str(number) if key is None else text_in(cells[key], layout.key, place),
            first=text_in(cells[first], layout.first, place),
            second=None if second is None else text_in(cells[second], layout.second or "", place),
            label=label_of(cells, place),
        )

    def rows() -> Iterator[tuple[int, Place, list[str]]]:
        number = 0
        for place, cells in file.rows():
            if keep is None or len(cells) != len(file.columns) or keep(cells, file):
                yield number, place, cells
                number += 1

    damaged = DAMAGED_QQP if (task.name, name) == ("qqp", "train") else 0.0
    return gather(name, str(path), rows(), example_of, may_be_damaged=damaged)


def _microsoft(task: Task, layout: _Layout, folder: Path, have: set[str]) -> dict[str, Split]:
    """What Microsoft's own two files of MRPC give beyond the splits that are there already.

    GLUE parts Microsoft's training file into train and dev by a list of pairs of ids.
    """
    splits: dict[str, Split] = {}
    train, ids = folder / _MRPC_TRAIN, folder / _MRPC_IDS
    if train.is_file() and not {"train", "dev"} <= have:
        if not ids.is_file():
            raise UserError(
                f"{train} is there but not {ids}, GLUE's list of the pairs that make the dev set. "
                "Put it beside it, or GLUE's own train.tsv and dev.tsv."
            )
        pairs = frozenset((*cells,) for _, cells in TabFile(ids, ("#1 ID", "#2 ID")).rows())
        for name in {"train", "dev"} - have:
            keep = partial(_is_among, pairs, name == "dev")
            splits[name] = _read(task, layout, name, train, keep)
    if (folder / _MRPC_TEST).is_file() and "test" not in have:
        splits["test"] = _read(task, layout, "test", folder / _MRPC_TEST)
    return splits


def _is_among(
    pairs: frozenset[tuple[str, ...]], wanted: bool, cells: list[str], file: TabFile
) -> bool:
    pair = (cells[file.place_of("#1 ID")], cells[file.place_of("#2 ID")])
    return (pair in pairs) == wanted
