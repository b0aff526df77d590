"""`finetune`: every model on every task with every seed, once; finished runs are kept."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from stackbert.errors import Interrupted, UserError
from stackbert.files import Record, locked, write_text, writing
from stackbert.finetuning import verdict
from stackbert.finetuning.data import LabelKind, official_tasks, own_data
from stackbert.finetuning.models import (
    Encoded,
    Model,
    ModelPath,
    control_of,
    find_models,
    head_class,
)
from stackbert.finetuning.tasks import GLUE, Settings, TaskData, default_seeds, settings_for
from stackbert.finetuning.train import RunResult, finetune_once, kind_of, rows_of
from stackbert.machine import describe, fastest_precision, keep_memory, pick_device
from stackbert.pretraining.signals import StopRequest
from stackbert.progress import Progress
from stackbert.tables import Frame
from stackbert.units import counted, format_duration

FINETUNE = "finetune.json"
_RUN = ["task", "model", "member", "seed"]
_COSTS = ["steps", "loss", "seconds", "predicting", "diverged", "tested"]
_COLUMNS = [*_RUN, "split", "metric", "score", "guess", *_COSTS]


class TaskRecord(BaseModel):
    """A task as it is run in a folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    metrics: tuple[str, ...]
    """The first is the headline."""
    settings: Settings
    sizes: dict[str, int]
    """Rows of each split."""
    fingerprints: dict[str, str]
    seeds: int
    """Runs of each model."""
    notes: tuple[str, ...]


class FinetuneResult(Record):
    """All runs that have ended in a folder: its finetune.json."""

    what: ClassVar[str] = "a folder of 'stackbert finetune'"

    machine: dict[str, Any]
    models: tuple[Model, ...] = ()
    """The first is the one that others are compared with; the control comes last."""
    tasks: dict[str, TaskRecord] = Field(default_factory=dict)
    scores: Frame = pd.DataFrame(columns=_COLUMNS)
    """A row for every run, split and metric: task, model, member, seed, split, metric, score,
    guess (what always giving the commonest answer scores; a run that diverged has this score), and
    of the run steps, loss, seconds of training, of predicting, diverged, tested."""

    @property
    def runs(self) -> pd.DataFrame:
        """A row a run: what it cost."""
        return self.scores.drop_duplicates(_RUN)[[*_RUN, *_COSTS]]

    @property
    def unfinished(self) -> int:
        """Runs that were asked for and have not ended."""
        return len(self.models) * sum(task.seeds for task in self.tasks.values()) - len(self.runs)

    def table(self, *, headline: bool = True) -> pd.DataFrame:
        """Scores with their noise; see `verdict.score_table`."""
        return verdict.score_table(self, headline=headline)

    def summary(self) -> str:
        """The table as text, narrow enough for a terminal."""
        return verdict.summary(self)

    def verdict(self) -> list[str]:
        """What can be said, in sentences."""
        return verdict.sentences(self)


def read_finetune(folder: str | Path) -> FinetuneResult:
    """Read what `finetune` wrote, as far as it has come.

    Raises:
        UserError: the folder is another one, or its record is damaged.
    """
    return FinetuneResult.read(Path(folder) / FINETUNE)


def predictions_path(folder: str | Path, task: str, model: Model, seed: int) -> Path:
    """Where a run's predictions are: a JSON object a row, with split, key and prediction."""
    return Path(folder) / "results" / task / f"{model.key}-seed{seed}.jsonl"


def finetune(
    models: ModelPath | Sequence[ModelPath] = (),
    *,
    task: str | Sequence[str],
    out: str | Path,
    data: str | Path | None = None,
    dataset: str | None = None,
    groups: Mapping[str, Sequence[ModelPath]] | None = None,
    along: ModelPath | Sequence[ModelPath] = (),
    seeds: int | None = None,
    settings: Sequence[str] = (),
    control: bool = False,
    dev: str | Path | None = None,
    test: str | Path | bool = False,
    text: str = "text",
    second: str | None = None,
    label: str = "label",
    key: str | None = None,
    kind: LabelKind = "auto",
    progress: Progress | None = None,
) -> FinetuneResult:
    """Fine-tune models on tasks, several seeds each, and say what differs beyond noise.

    Called again with the same `out` it continues where it was stopped; models, tasks and seeds can
    be added then. docs/finetuning.md has the defaults and the rules.

    Args:
        models: checkpoint folders or run directories (their final model); the others are compared
            with the first.
        task: "glue" for every GLUE task whose data is there, names ("mrpc", "squad-v2",
            "mrpc,rte"), or "own" for your own.
        out: folder for results and predictions.
        data: the folder with the tasks' official files; your own training table, .csv, .tsv, .json,
            .jsonl or .parquet.
        dataset: instead, a data set of the library `datasets`: a folder of `save_to_disk` or a name
            on the hub, the only one that uses the network.
        groups: by name, the same model from several pre-training seeds. The interval is then over
            these seeds, and groups are paired member by member, in the order given.
        along: instead of models, runs; every checkpoint that they have kept is fine-tuned.
        seeds: runs of each model; by default 6 for tasks of less than 10,000 training rows and 3
            for others, as in the paper.
        settings: "field=value" for all tasks or "task.field=value" for one (`tasks.Settings`).
        control: also fine-tune the first model with random weights.
        dev: your own table to score on; without it a tenth of the rows is set aside.
        test: predict the test splits too; your own table to predict.
        text, second, label, key: your own columns of the text, of a pair's other text, of the class
            or number, and of what predictions go by (otherwise the row's number).
        kind: whether your labels are classes or numbers, where that is not plain.
        progress: hears of progress.

    Raises:
        UserError: wrong input; nothing was trained.
        RunError: memory ran out, or the disk is full.
        Interrupted: Ctrl-C or SIGTERM; finished runs are kept.
    """
    for library in ("accelerate", "sklearn"):
        if not find_spec(library):
            raise UserError(f"There is no {library}: pip install 'stackbert[finetuning]'.")
    if seeds is not None and seeds < 1:
        raise UserError(f"seeds must be at least 1, not {seeds}.")
    keep_memory()
    found = find_models(models, groups or {}, along)
    found += control_of(found) if control else []
    if task == "own":
        tables = {"train": data, "dev": dev, "test": test}
        columns: Any = {"text": text, "label": label, "second": second, "key": key}
        works = [own_data(tables, dataset, kind=kind, **columns)]
    else:
        works = official_tasks(task, data, dataset)
    for model, work in itertools.product(found, works):
        head_class(model, work.task)
    names = [work.task.name for work in works]
    chosen = {name: settings_for(name, settings, names) for name in names}
    number = {w.task.name: seeds or default_seeds(len(w.splits["train"])) for w in works}
    folder, hears = Path(out), progress or Progress()
    with (
        writing(f"fine-tuning into {folder}"),
        locked(folder, f"{folder} is in use"),
        StopRequest() as stop,
    ):
        result = _record_in(folder)
        tasks = _joined_tasks(folder, result, works, chosen, number)
        change = {"tasks": tasks, "models": _joined_models(folder, result.models, found)}
        result = result.model_copy(update=change)
        result.write(folder / FINETUNE)
        if "glue" in task and (missing := [name for name in GLUE if name not in tasks]):
            hears.say(f"There is no data for {', '.join(missing)}.")
        there = result.runs
        there = there[there["diverged"] | (there["tested"] >= bool(test))]
        done = set(there[_RUN].itertuples(index=False, name=None))
        todo = [
            (work, model, seed)
            for work, model in itertools.product(works, found)
            for seed in range(number[work.task.name])
            if _key(work, model, seed) not in done
        ]
        return _run_all(folder, result, todo, bool(test), hears, stop)


def _record_in(folder: Path) -> FinetuneResult:
    if (folder / FINETUNE).is_file():
        return read_finetune(folder)
    if foreign := sorted(path.name for path in folder.iterdir() if path.name[0] != "."):
        raise UserError(f"{folder} holds {', '.join(foreign[:3])}. Choose a new folder for --out.")
    return FinetuneResult(machine=describe(pick_device()))


def _joined_tasks(
    folder: Path,
    there: FinetuneResult,
    works: Sequence[TaskData],
    chosen: Mapping[str, Settings],
    seeds: Mapping[str, int],
) -> dict[str, TaskRecord]:
    """The folder's tasks with those of this call, which may not differ in settings or rows."""
    tasks = dict(there.tasks)
    for work in works:
        name, settings = work.task.name, chosen[work.task.name]
        if settings.precision == "auto":
            # Measured once for a folder, as the answer differs from day to day.
            known = [task.settings.precision for task in tasks.values()]
            precision = known[0] if known else fastest_precision(pick_device())
            settings = settings.model_copy(update={"precision": precision})
        new = TaskRecord(
            title=work.task.title,
            metrics=work.task.metrics,
            settings=settings,
            sizes={split: len(frame) for split, frame in work.splits.items()},
            fingerprints=work.fingerprints,
            seeds=seeds[name],
            notes=work.notes,
        )
        old = tasks.get(name, new)
        changed = [f"{n}={value}" for n, value in old.settings if getattr(settings, n) != value]
        for split, fingerprint in new.fingerprints.items():
            if old.fingerprints.get(split, fingerprint) != fingerprint:
                changed.append(f"other rows of {split}")
        if changed:
            raise UserError(
                f"{folder} holds results of {old.title} with {', '.join(changed)}. Models, tasks "
                "and seeds can be added; for anything else choose a new folder."
            )
        notes = tuple(dict.fromkeys((*new.notes, *old.notes)))
        more = {"seeds": max(old.seeds, new.seeds), "notes": notes}
        tasks[name] = new.model_copy(update=more)
    return tasks


def _joined_models(
    folder: Path, there: Sequence[Model], models: Sequence[Model]
) -> tuple[Model, ...]:
    """The folder's models and those of this call; the control last, checkpoints by run and step."""
    found = {model.label: model for model in there}
    for model in models:
        if found.get(model.label, model).fingerprint != model.fingerprint:
            raise UserError(
                f"{folder} holds results of another model called '{model.label}'. Choose another "
                "folder, or another name (--group NAME=…)."
            )
        found[model.label] = model  # it may have been moved
    runs = list(dict.fromkeys(model.run for model in found.values()))
    if None in runs and len(runs) > 1:
        raise UserError(f"{folder} holds either models or checkpoints of runs. Choose another one.")
    order = sorted(found.values(), key=lambda m: (m.untrained, runs.index(m.run), m.step or 0))
    return tuple(order)


def _run_all(
    folder: Path,
    result: FinetuneResult,
    todo: Sequence[tuple[TaskData, Model, int]],
    test: bool,
    hears: Progress,
    stop: StopRequest,
) -> FinetuneResult:
    settings = {name: task.settings for name, task in result.tasks.items()}
    rows = [rows_of(len(work.splits["train"]), settings[work.task.name]) for work, *_ in todo]
    if todo:
        hears.say(f"{counted(len(todo), 'run')} to make.")
    encoded: dict[tuple[str, str], dict[str, Encoded]] = {}
    for place, (work, model, seed) in enumerate(todo):
        name = f"{work.task.title}, {model.label}, seed {seed}"
        # A model's runs on a task come one after the other and share its rows.
        of_model = (work.task.name, model.label)
        encoded = {of_model: encoded.get(of_model, {})}

        def on_step(done: int, steps: int, loss: float, at: int = place, name: str = name) -> None:
            if stop.signal is not None:
                raise Interrupted(
                    f"Stopped. Finished runs are in {folder}; rerun the command to continue.",
                    stop.signal,
                )
            shown = "" if math.isnan(loss) else f", loss {loss:.3f}"
            part = sum(rows[:at]) + rows[at] * done // steps
            hears.step(part, sum(rows), f"rows, {name}{shown}")

        run = finetune_once(
            model,
            work,
            settings[work.task.name],
            seed,
            splits=[s for s in work.splits if s.startswith(("dev", "test") if test else "dev")],
            encoded=encoded[of_model],
            on_step=on_step,
        )
        path = predictions_path(folder, work.task.name, model, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in run.predictions))
        result = _with_run(result, work, _key(work, model, seed), run, test, encoded[of_model])
        result.write(folder / FINETUNE)
        metric = work.task.metrics[0]
        shown = "diverged" if run.diverged else f"{metric} {100 * run.scores['dev'][metric]:.1f}"
        hears.say(f"{name}: {shown} ({format_duration(run.seconds)})")
    return result


def _key(work: TaskData, model: Model, seed: int) -> tuple[str, str, int, int]:
    """A run's place among the scores: the values of `_RUN`."""
    return work.task.name, model.name, model.member, seed


def _with_run(
    result: FinetuneResult,
    work: TaskData,
    key: tuple[str, str, int, int],
    run: RunResult,
    test: bool,
    encoded: Mapping[str, Encoded],
) -> FinetuneResult:
    costs = (run.steps, run.loss, run.seconds, run.predicting, run.diverged, test)
    new = []
    for split in (split for split in work.splits if split.startswith("dev")):
        guess = kind_of(work.task).guess(work, split)
        for metric, score in run.scores.get(split, guess).items():
            new.append((*key, split, metric, score, guess.get(metric), *costs))
    old = result.scores[(result.scores[_RUN] != key).any(axis=1)]
    scores = pd.DataFrame([*old.itertuples(index=False), *new], columns=_COLUMNS)
    task = result.tasks[work.task.name]
    notes = dict.fromkeys((*task.notes, *(each.note for each in encoded.values() if each.note)))
    tasks = result.tasks | {work.task.name: task.model_copy(update={"notes": tuple(notes)})}
    return result.model_copy(update={"scores": scores, "tasks": tasks})
