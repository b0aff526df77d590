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
from stackbert.finetuning.data import LabelKind, official_tasks, own_data, read_tables
from stackbert.finetuning.models import (
    Encoded,
    Model,
    ModelPath,
    control_of,
    find_models,
    head_class,
)
from stackbert.finetuning.tasks import Settings, TaskData, default_seeds, settings_for
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
    """Of each split's content."""
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
    missing: tuple[str, ...] = ()
    """Tasks of "glue" that have no data."""
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

    def table(self, *, headline: bool = True, base: str | None = None) -> pd.DataFrame:
        """Scores with their noise, and differences to a model; see `verdict.score_table`."""
        return verdict.score_table(self, headline=headline, base=base)

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

    A run is a function of weights, data, settings and seed. Called again with the same `out` it
    continues where it was stopped; models, tasks and seeds can be added then. docs/finetuning.md
    has the defaults and the rules.

    Args:
        models: Hugging Face checkpoint folders or run directories (their final model). The others
            are compared with the first.
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
        control: also fine-tune the first model with random weights. A score that is not above this
            one's shows nothing of pre-training.
        dev: your own table to score on; without it a tenth of the rows is set aside.
        test: predict the test splits too; your own table to predict.
        text: your own column of the text, or of the first of a pair.
        second: your own column of a pair's other text.
        label: your own column of the class or number.
        key: your own column that predictions go by; without it the row's number.
        kind: whether your labels are classes or numbers, where that is not plain.
        progress: hears of progress.

    Raises:
        UserError: wrong input; nothing was trained.
        RunError: memory ran out, or the disk is full.
        Interrupted: Ctrl-C or SIGTERM; finished runs are kept.

    Example:
        >>> import stackbert as sb
        >>> result = sb.finetune("run", task="mrpc", data="glue", out="ft")  # doctest: +SKIP
        >>> print(result.table(), *result.verdict(), sep="\\n")  # doctest: +SKIP
    """
    for library in ("accelerate", "sklearn"):
        if not find_spec(library):
            raise UserError(f"There is no {library}: pip install 'stackbert[finetuning]'.")
    if seeds is not None and seeds < 1:
        raise UserError(f"seeds must be at least 1, not {seeds}.")
    keep_memory()
    found = find_models(models, groups or {}, along)
    found += control_of(found) if control else []
    missing: list[str] = []
    if task == "own":
        raw, name, notes = read_tables({"train": data, "dev": dev, "test": test}, dataset)
        columns: Any = {"text": text, "label": label, "second": second, "key": key}
        works = [own_data(raw, name, notes, kind=kind, **columns)]
    else:
        works, missing = official_tasks(task, data, dataset)
    for model, work in itertools.product(found, works):
        head_class(model, work.task)
    names = [work.task.name for work in works]
    chosen = {name: settings_for(name, settings, names) for name in names}
    folder = Path(out)
    with (
        writing(f"fine-tuning into {folder}"),
        locked(folder, f"{folder} is in use"),
        StopRequest() as stop,
    ):
        result = _begin(folder, found, works, chosen, seeds)
        lacking = {*result.missing, *missing} - result.tasks.keys()
        result = result.model_copy(update={"missing": tuple(sorted(lacking))})
        result.write(folder / FINETUNE)
        return _run_all(
            folder, result, found, works, seeds, bool(test), progress or Progress(), stop
        )


def _begin(
    folder: Path,
    models: Sequence[Model],
    works: Sequence[TaskData],
    chosen: Mapping[str, Settings],
    seeds: int | None,
) -> FinetuneResult:
    """The folder's record with the models, tasks and seeds that this call adds.

    Raises:
        UserError: the folder holds something else, or other models, settings or data.
    """
    device = pick_device()
    record = FinetuneResult(machine=describe(device))
    if (folder / FINETUNE).is_file():
        record = read_finetune(folder)
    elif foreign := sorted(path.name for path in folder.iterdir() if path.name[0] != "."):
        raise UserError(f"{folder} holds {', '.join(foreign[:3])}. Choose a new folder for --out.")
    # Measured once for a folder, as the answer differs from day to day.
    earlier = [task.settings.precision for task in record.tasks.values()]
    if any(settings.precision == "auto" for settings in chosen.values()):
        precision = {"precision": earlier[0] if earlier else fastest_precision(device)}
    tasks = dict(record.tasks)
    for work in works:
        name, settings = work.task.name, chosen[work.task.name]
        if settings.precision == "auto":
            settings = settings.model_copy(update=precision)
        known = tasks.get(name)
        tasks[name] = TaskRecord(
            title=work.task.title,
            metrics=work.task.metrics,
            settings=settings,
            sizes={split: len(frame) for split, frame in work.splits.items()},
            fingerprints=work.fingerprints,
            seeds=max(_seeds(work, seeds), known.seeds if known else 0),
            notes=tuple(dict.fromkeys((*work.notes, *(known.notes if known else ())))),
        )
        if known:
            changed = [f"{n}={old}" for n, old in known.settings if getattr(settings, n) != old]
            same = known.fingerprints.items() & work.fingerprints.items()
            if changed or len(same) < len(known.fingerprints.keys() & work.splits.keys()):
                what = ", ".join(changed) or "other rows"
                raise UserError(
                    f"{folder} holds results of {known.title} with {what}. Models, tasks and seeds "
                    "can be added; for anything else choose a new folder."
                )
    everyone = {model.label: model for model in record.models}
    for model in models:
        if everyone.get(model.label, model).fingerprint != model.fingerprint:
            raise UserError(
                f"{folder} holds results of another model called '{model.label}'. Choose another "
                "folder, or another name (--group NAME=…)."
            )
        everyone[model.label] = model  # it may have been moved
    runs = list(dict.fromkeys(model.run for model in everyone.values()))
    if None in runs and len(runs) > 1:
        raise UserError(f"{folder} holds either models or checkpoints of runs. Choose another one.")
    order = sorted(everyone.values(), key=lambda m: (m.untrained, runs.index(m.run), m.step or 0))
    return record.model_copy(update={"models": tuple(order), "tasks": tasks})


def _seeds(work: TaskData, seeds: int | None) -> int:
    return seeds or default_seeds(len(work.splits["train"]))


def _run_all(
    folder: Path,
    result: FinetuneResult,
    models: Sequence[Model],
    works: Sequence[TaskData],
    seeds: int | None,
    test: bool,
    hears: Progress,
    stop: StopRequest,
) -> FinetuneResult:
    """Every run that is not there yet, one after the other."""
    runs = result.runs
    done = {run[:4] for run in runs[runs["diverged"] | (runs["tested"] >= test)].itertuples(False)}
    todo = [
        (work, model, seed)
        for work, model in itertools.product(works, models)
        for seed in range(_seeds(work, seeds))
        if (work.task.name, model.name, model.member, seed) not in done
    ]
    settings = {work.task.name: result.tasks[work.task.name].settings for work in works}
    rows = [rows_of(len(work.splits["train"]), settings[work.task.name]) for work, _, _ in todo]
    if todo:
        hears.say(f"{counted(len(todo), 'run')} to make.")
    encoded: dict[str, Encoded] = {}
    for place, (work, model, seed) in enumerate(todo):
        name = f"{work.task.title}, {model.label}, seed {seed}"
        if place and (work, model) != todo[place - 1][:2]:
            encoded = {}  # a model's runs on a task share its rows

        def on_step(done: int, steps: int, loss: float, at: int = place, name: str = name) -> None:
            if stop.signal is not None:
                raise Interrupted(
                    f"Stopped. Finished runs are in {folder}; rerun the command to continue.",
                    stop.signal,
                )
            shown = "" if math.isnan(loss) else f", loss {loss:.3f}"
            part = sum(rows[:at]) + rows[at] * done // steps
            hears.step(part, sum(rows), f"rows, {name}{shown}")

        tests = [split for split in work.splits if split.startswith("test") and test]
        run = finetune_once(
            model,
            work,
            settings[work.task.name],
            seed,
            splits=[*work.scored, *tests],
            encoded=encoded,
            on_step=on_step,
        )
        result = _with_run(folder, result, work, model, seed, run, test)
        metric = work.task.metrics[0]
        shown = "diverged" if run.diverged else f"{metric} {100 * run.scores['dev'][metric]:.1f}"
        hears.say(f"{name}: {shown} ({format_duration(run.seconds)})")
    return result


def _with_run(
    folder: Path,
    result: FinetuneResult,
    work: TaskData,
    model: Model,
    seed: int,
    run: RunResult,
    test: bool,
) -> FinetuneResult:
    """The record with a run's scores, written after its predictions."""
    path = predictions_path(folder, work.task.name, model, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"split": split, **row}, ensure_ascii=False) + "\n"
        for split, rows in run.predictions.items()
        for row in rows
    ]
    write_text(path, "".join(lines))
    named = (work.task.name, model.name, model.member, seed)
    costs = (run.steps, run.loss, run.seconds, run.predicting, run.diverged, test)
    new = []
    for split in work.scored:
        guess = kind_of(work.task).guess(work, split)
        for metric, score in run.scores.get(split, guess).items():
            new.append((*named, split, metric, score, guess.get(metric), *costs))
    old = result.scores[(result.scores[_RUN] != named).any(axis=1)]
    scores = pd.DataFrame([*old.itertuples(index=False), *new], columns=_COLUMNS)
    task = result.tasks[work.task.name]
    notes = tuple(dict.fromkeys((*task.notes, *filter(None, run.notes))))
    tasks = result.tasks | {work.task.name: task.model_copy(update={"notes": notes})}
    result = result.model_copy(update={"scores": scores, "tasks": tasks})
    result.write(folder / FINETUNE)
    return result
