"""From what the user names, a task and a place, to tasks with their data, read and checked."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stackbert.errors import UserError
from stackbert.finetuning.encoding import SentenceWork
from stackbert.finetuning.examples import SquadSplit
from stackbert.finetuning.glue_dataset import from_dataset
from stackbert.finetuning.glue_files import available, missing, read_glue
from stackbert.finetuning.questions import QuestionWork
from stackbert.finetuning.settings import SQUAD, SQUAD_V2
from stackbert.finetuning.squad_files import read_squad
from stackbert.finetuning.table_files import Kind, own_task
from stackbert.finetuning.tasks import GLUE
from stackbert.finetuning.work import TRAIN, Work
from stackbert.reporting.wording import slug

ALL = "glue"
DIAGNOSTIC = "ax"
_HOST = "mnli"
"""The diagnostic set has no training data: a model of this task answers it."""
_VERSIONS = {SQUAD: "v1.1", SQUAD_V2: "v2.0"}
KNOWN = (ALL, *(name for name in GLUE if name != DIAGNOSTIC), SQUAD, SQUAD_V2)
"""What a task may be called."""


@dataclass(frozen=True)
class OwnData:
    """A task of your own: tables (.csv, .tsv, .jsonl) and the names of their columns."""

    train: str | Path
    text: str
    """The column with the text, or with the first of a pair."""
    label: str
    """The column with the class, or with the number to predict."""
    second: str | None = None
    """The column with the other text of a pair."""
    dev: str | Path | None = None
    """What scores are of; without it a tenth of the training rows is set aside."""
    test: str | Path | None = None
    """To predict; its labels are never read."""
    key: str | None = None
    """The column that predictions go by; without it the row's number."""
    kind: Kind = "auto"
    """"classification", "regression", or as the labels look."""
    name: str = ""
    """By default the training file's."""


@dataclass(frozen=True)
class Gathered:
    """The tasks to run, and those that cannot be."""

    works: tuple[Work, ...]
    missing: dict[str, str]
    """By task what is missing ("no folder QQP")."""


def gather(
    task: str | Sequence[str] | OwnData,
    data: str | Path | None = None,
    dataset: str | None = None,
) -> Gathered:
    """Read the data of all tasks that are asked for, so that what is wrong is found before hours.

    Args:
        task: "glue" for every GLUE task whose data is there, one of `KNOWN` or several, or the
            user's own.
        data: of GLUE the folder with the tasks' folders, or a task's own; of SQuAD the folder with
            its JSON files.
        dataset: instead, of GLUE: a data set of the library `datasets`, a folder or a hub's name.

    Raises:
        UserError: there is no such task or no such data, or a file is malformed.
    """
    if isinstance(task, OwnData):
        if data is not None or dataset is not None:
            raise UserError("Your own data names its files itself; leave data and dataset out.")
        return Gathered((_own(task),), {})
    names = [task] if isinstance(task, str) else list(task)
    names = [word.strip().lower() for name in names for word in name.split(",") if word.strip()]
    unknown = [name for name in names if name not in KNOWN]
    if unknown or not names:
        raise UserError(
            f"There is no task '{', '.join(unknown)}'. Tasks are: {', '.join(KNOWN)}; for your own "
            "data name the columns of its files (--text, --label)."
        )
    if (data is None) == (dataset is None):
        raise UserError("Say where the data is: either a folder (data) or a data set (dataset).")
    if data is None:
        return _of_dataset(names, str(dataset))
    folder = Path(data)
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}. Name the one with the task's data.")
    lacking: dict[str, str] = {}
    if ALL in names:
        have = available(folder)
        lacking = {n: why for n, why in missing(folder).items() if n != DIAGNOSTIC}
        names = [n for n in dict.fromkeys([*have, *names]) if n not in (ALL, DIAGNOSTIC)]
        if not names:
            raise UserError(
                f"{folder} holds the data of no GLUE task. It should have folders such as CoLA and "
                "MRPC with train.tsv and dev.tsv in them."
            )
    return Gathered(tuple(_from_folder(n, folder) for n in dict.fromkeys(names)), lacking)


def _from_folder(name: str, folder: Path) -> Work:
    if name in _VERSIONS:
        return _questions(name, folder)
    splits = read_glue(GLUE[name], folder)
    if name == _HOST and DIAGNOSTIC in available(folder):
        splits[DIAGNOSTIC] = read_glue(GLUE[DIAGNOSTIC], folder)["test"]
    return _checked(SentenceWork(GLUE[name], splits), str(folder))


def _of_dataset(names: Sequence[str], dataset: str) -> Gathered:
    if any(name in _VERSIONS for name in names):
        raise UserError("SQuAD is read from its own JSON files; give a folder (data).")
    if ALL in names:
        names = [name for name in GLUE if name != DIAGNOSTIC]
    works = [
        _checked(SentenceWork(GLUE[name], from_dataset(GLUE[name], dataset)), dataset)
        for name in dict.fromkeys(names)
    ]
    return Gathered(tuple(works), {})


def _own(own: OwnData) -> Work:
    task, splits = own_task(
        Path(own.train),
        None if own.dev is None else Path(own.dev),
        None if own.test is None else Path(own.test),
        first=own.text,
        second=own.second,
        label=own.label,
        key=own.key,
        kind=own.kind,
        name=own.name,
    )
    # It names a folder, and must not be taken for a known task with settings of its own.
    name = slug(task.name)
    name = f"own-{name}" if name in (*KNOWN, DIAGNOSTIC) else name
    return SentenceWork(replace(task, name=name), splits)


def _questions(name: str, folder: Path) -> Work:
    version = _VERSIONS[name]
    splits: dict[str, SquadSplit] = {}
    for split in (TRAIN, "dev", "test"):
        for path in (folder / f"{split}-{version}.json", folder / f"{split}.json"):
            if path.is_file():
                splits[split] = read_squad(path, name=split)
                break
    if name == SQUAD:
        for found in splits.values():
            if found.has_impossible:
                raise UserError(
                    f"{found.source} has questions without an answer, so it is SQuAD v2.0. Name "
                    f"the task {SQUAD_V2}."
                )
    return _checked(QuestionWork(name, splits), f"{folder} (train-{version}.json, …)")


def _checked(work: Work, where: str) -> Work:
    """Refuse what cannot be trained on, or not be scored."""
    for split in (TRAIN, "dev"):
        if split not in work.sizes:
            raise UserError(f"{where} has no {split} split of {work.title}; it takes both.")
    if "dev" not in work.guess:
        raise UserError(f"The dev split of {work.title} in {where} has no labels to score by.")
    return work
