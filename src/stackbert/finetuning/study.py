"""`finetune`: every model on every task with every seed, once; finished runs are kept."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from stackbert.errors import Interrupted, UserError, need
from stackbert.files import locked, refuse_foreign, write_text, writing
from stackbert.finetuning.controls import control_scores
from stackbert.finetuning.data import LabelKind, official_tasks, own_data
from stackbert.finetuning.models import Model, control_of, find_models, head_class
from stackbert.finetuning.result import FINETUNE, RUN, FinetuneResult, TaskRecord, predictions_path
from stackbert.finetuning.tasks import GLUE, Settings, TaskData, settings_for
from stackbert.finetuning.train import choose_rate, finetune_once
from stackbert.machine import describe, fastest_precision, keep_memory, pick_device
from stackbert.pretraining.signals import StopRequest
from stackbert.progress import Progress
from stackbert.units import counted, format_duration

_LARGE = 10_000  # training rows from which on 3 seeds are the default instead of 6, as in the paper


def finetune(
    models: str | Path | Sequence[str | Path],
    *,
    task: str | Sequence[str],
    out: str | Path,
    data: str | Path,
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
        models: checkpoint folders or runs (their final model); the first is the yardstick.
        task: "glue" for every GLUE task whose data is there, names ("mrpc,squad-v2"), or "own".
        out: folder for results and predictions.
        data: the folder with the tasks' official files, or your own training table.
        seeds: runs of each model; by default 6, of 10,000 training rows or more 3 (the paper's).
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
    need("finetuning", "accelerate", "sklearn", to="Fine-tuning")
    keep_memory()
    found = find_models([models] if isinstance(models, str | Path) else models)
    found += [control_of(found[0])] if control else []
    if task == "own":
        if test is True:
            raise UserError("Your own data has no test split to predict. Give a table (--test).")
        tables = {"train": data, "dev": dev, "test": test}
        works = [own_data(tables, text=text, label=label, second=second, key=key, kind=kind)]
    else:
        works = official_tasks(task, Path(data))
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
        runs = result.runs
        rates = {row[:2]: row[-1] for row in runs.itertuples(index=False, name=None)}
        runs = runs[runs["diverged"] | (runs["tested"] >= bool(test))]
        ended, todo = runs.set_index(RUN)["diverged"].to_dict(), []
        for work, model in itertools.product(works, found):
            task_name = work.task.name
            for seed in range(seeds or result.tasks[task_name].seeds):
                path = predictions_path(folder, task_name, model, seed)
                lacks_model = chosen[task_name].save and not path.with_suffix("").is_dir()
                diverged = ended.get((task_name, model.name, seed))
                if diverged is None or (lacks_model and not diverged):
                    todo.append((work, model, seed, path))
        hears.say(f"{counted(len(todo), 'run')} to make.")
        for place, (work, model, seed, path) in enumerate(todo):
            which = work.task.name, model.name
            name = f"{work.task.title}, {model.name}, seed {seed}"

            def on_step(done: float, doing: str = name, place: int = place) -> None:
                if stop.signal is not None:
                    raise Interrupted(
                        f"Stopped. Finished runs are in {folder}; rerun the command to continue.",
                        stop.signal,
                    )
                hears.step(place + done, len(todo), f"runs, {doing}")

            asked = result.tasks[work.task.name].settings
            if asked.learning_rate == "auto":
                if which not in rates:
                    told = functools.partial(on_step, doing=f"{name}: choosing its learning rate")
                    rates[which] = choose_rate(model, work, asked, told)
                asked = asked.model_copy(update={"learning_rate": rates[which]})
            path.parent.mkdir(parents=True, exist_ok=True)
            splits = [s for s in work.splits if s.startswith(("dev", "test") if test else "dev")]
            save_to = path.with_suffix("") if asked.save else None
            given = finetune_once(
                model, work, asked, seed, splits=splits, save_to=save_to, on_step=on_step
            )
            write_text(path, given.predictions)
            result = result.with_run((*which, seed), given, tested=bool(test))
            result.write(folder / FINETUNE)
            metric = work.task.metrics[0]
            score = "diverged" if given.diverged else f"{100 * given.scores['dev'][metric]:.1f}"
            took = f"{format_duration(given.seconds)}, lr {given.learning_rate:g}"
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
    refuse_foreign(folder, FinetuneResult.what, FINETUNE)
    if (folder / FINETUNE).is_file():
        result = FinetuneResult.read(folder / FINETUNE)
    else:
        result = FinetuneResult(machine=describe(pick_device()))
    found, tasks = {model.name: model for model in result.models}, dict(result.tasks)
    for model in models:
        if found.get(model.name, model).fingerprint != model.fingerprint:
            raise UserError(
                f"{folder} holds results of another model called '{model.name}'. Choose another "
                "folder, or rename the model's."
            )
        found[model.name] = model  # it may have been moved
    for work in works:
        name, settings = work.task.name, chosen[work.task.name]
        if settings.precision == "auto":
            # One for a folder: where it is measured, the answer differs from day to day.
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
        asked = old.settings.model_copy(update={"save": settings.save})  # which changes no score
        changed = [f"{n}={value}" for n, value in asked if getattr(settings, n) != value]
        if old.fingerprints | new.fingerprints != new.fingerprints | old.fingerprints:
            changed.append("other rows")
        if changed:
            raise UserError(
                f"{folder} holds results of {old.title} with {', '.join(changed)}. Models, tasks "
                "and seeds can be added; for anything else choose a new folder."
            )
        notes = tuple(dict.fromkeys((*new.notes, *old.notes)))
        tasks[name] = new.model_copy(update={"seeds": max(old.seeds, new.seeds), "notes": notes})
    # The control comes last.
    order = tuple(sorted(found.values(), key=lambda model: model.untrained))
    return result.model_copy(update={"models": order, "tasks": tasks})
