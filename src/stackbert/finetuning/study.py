"""`finetune`: every model on every task with every seed, once; finished runs are kept."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from stackbert.errors import Interrupted, UserError
from stackbert.files import Record, locked, write_text, writing
from stackbert.finetuning import verdict
from stackbert.finetuning.controls import Scores, control_scores
from stackbert.finetuning.data import LabelKind, official_tasks, own_data
from stackbert.finetuning.models import Model, ModelPath, control_of, find_models, head_class
from stackbert.finetuning.tasks import GLUE, Settings, TaskData, settings_for
from stackbert.finetuning.train import RunResult, choose_rate, finetune_once, kind_of
from stackbert.machine import describe, fastest_precision, keep_memory, pick_device
from stackbert.pretraining.signals import StopRequest
from stackbert.progress import Progress
from stackbert.tables import Frame
from stackbert.units import counted, format_duration

FINETUNE = "finetune.json"
_RUN = ["task", "model", "member", "seed"]
_COSTS = ["steps", "loss", "seconds", "predicting", "diverged", "tested", "learning_rate"]
_COLUMNS = [*_RUN, "split", "metric", "score", "guess", *_COSTS]
_LARGE = 10_000  # training rows from which on 3 seeds are the default instead of 6, as in the paper


class TaskRecord(BaseModel):
    """A task as it is run in a folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    metrics: tuple[str, ...]  # the first is the headline
    settings: Settings
    sizes: dict[str, int]  # rows of each split
    fingerprints: dict[str, str]
    seeds: int  # runs of each model
    notes: tuple[str, ...]
    controls: Scores = Field(default_factory=dict)


class FinetuneResult(Record):
    """All runs that have ended in a folder: its finetune.json."""

    what: ClassVar[str] = "a folder of 'stackbert finetune'"
    version: ClassVar[int] = 3

    machine: dict[str, Any]
    models: tuple[Model, ...] = ()
    """The first is the one that others are compared with; the control comes last."""
    tasks: dict[str, TaskRecord] = Field(default_factory=dict)
    scores: Frame = pd.DataFrame(columns=_COLUMNS)
    """A row for every run, split and metric: task, model, member, seed, split, metric, score,
    guess (what always giving the commonest answer scores; a run that diverged has this score), and
    of the run steps, loss, seconds of training, of predicting, diverged, tested, learning_rate."""

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
        data: the folder with the tasks' official files, or your own training table.
        dataset: instead, a folder of `save_to_disk` or a name on the Hugging Face hub, the only one
            that uses the network.
        groups: by name, the same model from several pre-training seeds, over which the interval
            then is; groups are paired member by member.
        seeds: runs of each model; by default 6 for tasks of less than 10,000 training rows and 3
            for others, as in the paper.
        settings: "field=value" for all tasks or "task.field=value" for one (`tasks.Settings`).
        control: also fine-tune the first model with random weights.
        dev, test: your own tables to score on (else a tenth of the rows) and to predict; True
            predicts the test splits.
        text, second, label, key: your own columns of the text, of a pair's other text, of the class
            or number, and of what predictions go by (else the row's number).
        kind: whether your labels are classes or numbers, where that is not plain.

    Raises:
        UserError: wrong input; nothing was trained.
        RunError: memory ran out, or the disk is full.
        Interrupted: Ctrl-C or SIGTERM; finished runs are kept.
    """
    for library in ("accelerate", "sklearn"):
        if not find_spec(library):
            raise UserError(f"There is no {library}: pip install 'stackbert[finetuning]'.")
    if (data is None) == (dataset is None):
        raise UserError(
            "Name the data (--data), the folder of the tasks' files or your training table, or a "
            "data set (--dataset)."
        )
    keep_memory()
    found = find_models(models, groups or {})
    found += control_of(found) if control else []
    if task == "own":
        tables = {"train": data, "dev": dev, "test": test}
        columns: Any = {"text": text, "label": label, "second": second, "key": key}
        works = [own_data(tables, dataset, kind=kind, **columns)]
    else:
        works = official_tasks(task, data, dataset)
    names = [work.task.name for work in works]
    chosen = {name: settings_for(name, settings, names) for name in names}
    for model, work in itertools.product(found, works):
        head_class(model, work.task, chosen[work.task.name].pooling)
    folder, hears = Path(out), progress or Progress()
    with (
        writing(f"fine-tuning into {folder}"),
        locked(folder, f"{folder} is in use"),
        StopRequest() as stop,
    ):
        result = _joined(folder, found, works, chosen, seeds)
        result.write(folder / FINETUNE)
        if "glue" in task and (missing := [name for name in GLUE if name not in result.tasks]):
            hears.say(f"There is no data for {', '.join(missing)}.")
        there = result.runs
        there = there[there["diverged"] | (there["tested"] >= bool(test))]
        done = set(there[_RUN].itertuples(index=False, name=None))
        todo = [
            (work, model, seed)
            for work, model in itertools.product(works, found)
            for seed in range(seeds or result.tasks[work.task.name].seeds)
            if (work.task.name, model.name, model.member, seed) not in done
        ]
        hears.say(f"{counted(len(todo), 'run')} to make.")
        for place, (work, model, seed) in enumerate(todo):
            name = f"{work.task.title}, {model.label}, seed {seed}"

            def on_step(done: float, place: int = place, name: str = name) -> None:
                if stop.signal is not None:
                    raise Interrupted(
                        f"Stopped. Finished runs are in {folder}; rerun the command to continue.",
                        stop.signal,
                    )
                hears.step(round(100 * (place + done)), 100 * len(todo), f"% of a run, {name}")

            asked = result.tasks[work.task.name].settings
            if asked.learning_rate == "auto":
                choosing = functools.partial(on_step, name=f"{name}: choosing its learning rate")
                rate = _known_rate(result, work, model) or choose_rate(model, work, asked, choosing)
                asked = asked.model_copy(update={"learning_rate": rate})
            path = predictions_path(folder, work.task.name, model, seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            run = finetune_once(
                model,
                work,
                asked,
                seed,
                splits=[s for s in work.splits if s.startswith(("dev", "test") if test else "dev")],
                save_to=path.with_suffix("") if asked.save else None,
                on_step=on_step,
            )
            write_text(path, run.predictions)
            result = _with_run(result, work, model, seed, run, bool(test))
            result.write(folder / FINETUNE)
            metric = work.task.metrics[0]
            score = "diverged" if run.diverged else f"{100 * run.scores['dev'][metric]:.1f}"
            took = f"{format_duration(run.seconds)}, lr {run.learning_rate:g}"
            hears.say(f"{name}: {metric} {score} ({took})")
    return result


def _joined(
    folder: Path,
    models: Sequence[Model],
    works: Sequence[TaskData],
    chosen: Mapping[str, Settings],
    seeds: int | None,
) -> FinetuneResult:
    """What the folder holds, with the models and tasks of this call."""
    if (folder / FINETUNE).is_file():
        result = read_finetune(folder)
    elif foreign := sorted(path.name for path in folder.iterdir() if path.name[0] != "."):
        raise UserError(f"{folder} holds {', '.join(foreign[:3])}. Choose a new folder for --out.")
    else:
        result = FinetuneResult(machine=describe(pick_device()))
    found, tasks = {model.label: model for model in result.models}, dict(result.tasks)
    for model in models:
        if found.get(model.label, model).fingerprint != model.fingerprint:
            raise UserError(
                f"{folder} holds results of another model called '{model.label}'. Choose another "
                "folder, or another name (--group NAME=…)."
            )
        found[model.label] = model  # it may have been moved
    for work in works:
        name, settings = work.task.name, chosen[work.task.name]
        if settings.precision == "auto":
            # Measured once for a folder, as the answer differs from day to day.
            known = [task.settings.precision for task in tasks.values()]
            precision = known[0] if known else fastest_precision(pick_device())
            settings = settings.model_copy(update={"precision": precision})
        sizes = {split: len(frame) for split, frame in work.splits.items()}
        new = TaskRecord(
            title=work.task.title,
            metrics=work.task.metrics,
            settings=settings,
            sizes=sizes,
            fingerprints=work.fingerprints,
            seeds=seeds or (6 if sizes["train"] < _LARGE else 3),
            notes=work.notes,
            controls=tasks[name].controls if name in tasks else control_scores(work),
        )
        old = tasks.get(name, new)
        changed = [f"{n}={value}" for n, value in old.settings if getattr(settings, n) != value]
        if old.fingerprints | new.fingerprints != new.fingerprints | old.fingerprints:
            changed.append("other rows")
        if changed:
            raise UserError(
                f"{folder} holds results of {old.title} with {', '.join(changed)}. Models, tasks "
                "and seeds can be added; for anything else choose a new folder."
            )
        notes = tuple(dict.fromkeys((*new.notes, *old.notes)))
        more = {"seeds": max(old.seeds, new.seeds), "notes": notes}
        tasks[name] = new.model_copy(update=more)
    # The control comes last.
    order = tuple(sorted(found.values(), key=lambda model: model.untrained))
    return result.model_copy(update={"models": order, "tasks": tasks})


def _known_rate(result: FinetuneResult, work: TaskData, model: Model) -> float | None:
    """The learning rate that was chosen before an earlier run of the same weights."""
    runs = result.runs
    runs = runs[(runs[_RUN[:3]] == (work.task.name, model.name, model.member)).all(axis=1)]
    return float(runs["learning_rate"].iloc[0]) if len(runs) else None


def _with_run(
    result: FinetuneResult,
    work: TaskData,
    model: Model,
    seed: int,
    run: RunResult,
    tested: bool,
) -> FinetuneResult:
    key = (work.task.name, model.name, model.member, seed)
    costs = [tested if cost == "tested" else getattr(run, cost) for cost in _COSTS]
    rows = list(result.scores[(result.scores[_RUN] != key).any(axis=1)].itertuples(index=False))
    for split in (split for split in work.splits if split.startswith("dev")):
        guess = kind_of(work.task).guess(work, split)
        for metric, score in run.scores.get(split, guess).items():
            rows.append((*key, split, metric, score, guess.get(metric), *costs))
    task = result.tasks[work.task.name]
    task = task.model_copy(update={"notes": tuple(dict.fromkeys((*task.notes, *run.notes)))})
    scores, tasks = pd.DataFrame(rows, columns=_COLUMNS), result.tasks | {work.task.name: task}
    return result.model_copy(update={"scores": scores, "tasks": tasks})
