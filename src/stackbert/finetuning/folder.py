"""finetune.json: what was asked of which models, and how an earlier call's is gone on with."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from stackbert.errors import UserError
from stackbert.files import is_plain_name, write_json_atomically
from stackbert.finetuning.fingerprints import key_of
from stackbert.finetuning.settings import FinetuneSettings, parse_settings
from stackbert.stored import parse_json, stored

FORMAT = 1
FINETUNE = "finetune.json"
RESULTS = "results"
Kind = Literal["models", "along"]


@dataclass(frozen=True)
class Progress:
    """How far a checkpoint is in its pre-training."""

    run: str
    """The run's name."""
    step: int
    seconds: float
    """Of pre-training, by the run's own clock."""
    depth: int


@dataclass(frozen=True)
class Member:
    """One set of weights."""

    name: str
    folder: str
    key: str
    """In the names of its results' files."""
    fingerprint: str
    progress: Progress | None = None


@dataclass(frozen=True)
class Contender:
    """What has a row in the tables: a model, or the same model from several pre-training seeds."""

    name: str
    members: tuple[Member, ...]
    """In the order of their pre-training seeds."""


@dataclass(frozen=True)
class TaskRecord:
    """A task as it is run in this folder."""

    name: str
    title: str
    metrics: tuple[str, ...]
    settings: FinetuneSettings
    """Settled: the precision is not "auto"."""
    sizes: dict[str, int]
    fingerprints: dict[str, str]
    """Of each split's content."""
    guess: dict[str, dict[str, float]]
    """For each labelled split, what always guessing the same scores."""
    seeds: int
    """Runs of each member."""
    notes: tuple[str, ...]

    def key(self, member: Member, seed: int) -> str:
        """What a result depends on: weights, data, settings, seed."""
        used = {name: self.fingerprints[name] for name in sorted(self.guess | {"train": {}})}
        return key_of(FORMAT, member.fingerprint, used, self.settings.model_dump(), seed)


@dataclass(frozen=True)
class Record:
    """finetune.json."""

    kind: Kind
    contenders: tuple[Contender, ...]
    """The first is the one that others are held against."""
    tasks: dict[str, TaskRecord]
    missing: dict[str, str]
    """Tasks that were asked for and have no data, and what is missing."""
    machine: dict[str, Any]
    control: Contender | None = None
    """The first contender's model untrained, as many draws of it as that one has members."""

    @property
    def everyone(self) -> tuple[Contender, ...]:
        """All contenders, then the control."""
        return (*self.contenders, *([self.control] if self.control else []))

    @property
    def members(self) -> tuple[Member, ...]:
        """Of all contenders and the control."""
        return tuple(member for contender in self.everyone for member in contender.members)


def is_study(folder: Path) -> bool:
    """Whether models were fine-tuned into this folder."""
    return (folder / FINETUNE).is_file()


def write_record(folder: Path, record: Record) -> None:
    """Write finetune.json, whole or not at all."""
    tasks = {
        name: {**vars(task), "settings": task.settings.model_dump()}
        for name, task in record.tasks.items()
    }
    plain = {
        "format": FORMAT,
        "kind": record.kind,
        "contenders": [asdict(contender) for contender in record.contenders],
        "tasks": tasks,
        "missing": record.missing,
        "machine": record.machine,
        "control": asdict(record.control) if record.control else None,
    }
    write_json_atomically(folder / FINETUNE, plain)


def read_record(folder: Path) -> Record:
    """Read finetune.json.

    Raises:
        UserError: it is missing, damaged, or of another version.
    """
    path = folder / FINETUNE
    try:
        raw = parse_json(path.read_bytes())
        if raw.pop("format") != FORMAT:
            raise UserError(f"{path} is of another version of StackBERT.")
        for task in raw["tasks"].values():
            task["settings"] = parse_settings(task["settings"], str(path))
        record = stored(Record, raw, partial=True)
        _check(record)
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} is no folder that 'stackbert finetune' wrote: it has no {FINETUNE}."
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged ({error}). Fine-tune into another folder; results that are there "
            "can be copied to it."
        ) from error
    return record


def _check(record: Record) -> None:
    """See that a record of the right types fits together.

    Raises:
        ValueError: it does not.
    """
    # Both become parts of paths below the folder.
    for name in (*record.tasks, *(member.key for member in record.members)):
        if not is_plain_name(name):
            raise ValueError(f"{name!r} is no name of a file")
    if not all(contender.members for contender in record.everyone):
        raise ValueError("a contender has no members")
    for name, task in record.tasks.items():
        lacking = sorted({"train", *task.guess} - task.fingerprints.keys())
        lacking += sorted(task.guess.keys() - task.sizes.keys())
        if task.name != name or lacking or task.seeds < 1 or not task.metrics:
            raise ValueError(f"the task '{name}' lacks its name, seeds, metrics or {lacking}")
        for split, scores in task.guess.items():
            if "dev" not in task.guess or not scores.keys() & set(task.metrics):
                raise ValueError(f"the task '{name}' has no guess of {split}")


def check_may_begin(folder: Path) -> None:
    """Refuse a folder that holds something else.

    Raises:
        UserError: it holds files that no study wrote.
    """
    foreign = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    if foreign and foreign != [RESULTS]:
        raise UserError(
            f"{folder} is not empty and no folder of fine-tuning (it holds "
            f"{', '.join(foreign[:3])}). Choose a new folder for --out."
        )


def joined(folder: Path, there: Record, asked: Record) -> Record:
    """An earlier call's record with what this one adds: models, tasks, seeds.

    Raises:
        UserError: a task has other settings or data now, or a name stands for another model.
    """
    if there.kind != asked.kind:
        raise UserError(
            f"{folder} holds {_KINDS[there.kind]}. Choose another folder for {_KINDS[asked.kind]}."
        )
    tasks = dict(there.tasks)
    for name, task in asked.tasks.items():
        if name in tasks:
            _check_same_task(folder, tasks[name], task)
            fingerprints = {**tasks[name].fingerprints, **task.fingerprints}
            seeds = max(tasks[name].seeds, task.seeds)
            tasks[name] = replace(task, seeds=seeds, fingerprints=fingerprints)
        else:
            tasks[name] = task
    control = there.control or asked.control
    contenders = {contender.name: contender for contender in there.everyone}
    for contender in asked.everyone:
        known = contenders.get(contender.name)
        if known is not None and _weights(known) != _weights(contender):
            raise UserError(
                f"{folder} holds results of another model by the name '{contender.name}'. Choose "
                "another folder, or another name (--group NAME=…)."
            )
        contenders.setdefault(contender.name, contender)
    lacking = {**there.missing, **asked.missing}
    return Record(
        asked.kind,
        tuple(each for each in contenders.values() if each != control),
        tasks,
        {name: why for name, why in lacking.items() if name not in tasks},
        asked.machine,
        control,
    )


_KINDS = {"models": "models side by side", "along": "the checkpoints of runs"}


def _weights(contender: Contender) -> list[str]:
    return [member.fingerprint for member in contender.members]


def _check_same_task(folder: Path, there: TaskRecord, here: TaskRecord) -> None:
    old, new = there.settings.model_dump(), here.settings.model_dump()
    different = [f"{n} ({old[n]} there, {new[n]} here)" for n in old if old[n] != new[n]]
    if different:
        raise UserError(
            f"{folder} holds results of {there.title} with other settings: {'; '.join(different)}. "
            "Models, tasks and seeds can be added; for other settings choose a new folder."
        )
    changed = [
        name
        for name in there.fingerprints
        if name in here.fingerprints and there.fingerprints[name] != here.fingerprints[name]
    ]
    if changed:
        raise UserError(
            f"{folder} holds results of {there.title} on other data: {', '.join(changed)} changed. "
            "Choose a new folder."
        )
