"""`finetune`: every model on every task with every seed, once; what is there already is kept."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stackbert.comparison.processes import counted
from stackbert.errors import Interrupted, UserError
from stackbert.files import held_folder
from stackbert.finetuning.contenders import ModelPath, contenders_of, untrained_twin
from stackbert.finetuning.folder import (
    Contender,
    Kind,
    Member,
    Record,
    TaskRecord,
    check_may_begin,
    is_study,
    joined,
    read_record,
    write_record,
)
from stackbert.finetuning.gather import Gathered, OwnData, gather
from stackbert.finetuning.heads import Source, check_head, open_model
from stackbert.finetuning.results import FinetuneResults, read_finetune
from stackbert.finetuning.runs import Result, read_result, result_path, write_result
from stackbert.finetuning.settings import check_overrides, default_seeds, settings_for
from stackbert.finetuning.training import OnceResult, check_libraries, finetune_once, rows_of
from stackbert.finetuning.verdict import metric_name, points
from stackbert.finetuning.work import TRAIN, Encoded, Work
from stackbert.pretraining.progress import Reporter, Silent
from stackbert.pretraining.signals import StopRequest
from stackbert.reporting.wording import duration


def finetune(
    models: ModelPath | Sequence[ModelPath] = (),
    *,
    task: str | Sequence[str] | OwnData,
    data: str | Path | None = None,
    dataset: str | None = None,
    out: str | Path,
    groups: Mapping[str, Sequence[ModelPath]] | None = None,
    along: ModelPath | Sequence[ModelPath] = (),
    seeds: int | None = None,
    settings: Sequence[str] = (),
    control: bool = False,
    test: bool = False,
    reporter: Reporter | None = None,
) -> FinetuneResults:
    """Fine-tune models on tasks, several seeds each, and say what differs beyond noise.

    Every run is a function of weights, data, settings and seed. Called again with the same `out`
    it goes on where it was stopped; models, tasks and seeds may be added then. docs/finetuning.md
    has the defaults and the rules.

    Args:
        models: Hugging Face checkpoint folders or run directories (their final model). The first
            is what the others are held against.
        task: "glue" for every GLUE task whose data is there; a task ("mrpc", "squad", "squad-v2",
            …) or several; or `OwnData`.
        data: the folder with the tasks' official files.
        dataset: instead, of GLUE: a data set of the library `datasets`, a folder or a hub's name
            (the only one that uses the network).
        out: folder for results and predictions.
        groups: by name, the same model from several pre-training seeds. A group's interval is over
            its members, each the mean over its fine-tuning seeds; groups are paired member by
            member, in the order given.
        along: run directories instead of models: every checkpoint that they kept is fine-tuned.
        seeds: fine-tuning runs of each model; by default 6 for tasks of less than 10,000 training
            rows and 3 for others, as in the paper.
        settings: "field=value" for all tasks or "task.field=value" for one
            (`settings.FinetuneSettings`).
        control: fine-tune the first model once more with random weights in place of its own. A
            score that is not above this one's shows nothing of pre-training: it could as well
            come from the task's training rows alone.
        test: predict the test splits, too; for GLUE's server.
        reporter: hears of progress.

    Returns:
        All runs that have ended, of this call and of earlier ones.

    Raises:
        UserError: wrong input; nothing was trained.
        RunError: memory ran out, or the disk is full.
        Interrupted: Ctrl-C or SIGTERM; finished runs are kept, and the same call goes on.

    Example:
        >>> import stackbert as sb
        >>> results = sb.finetune("run", task="mrpc", data="glue", out="ft")  # doctest: +SKIP
    """
    from stackbert.pretraining.machine import keep_memory

    check_libraries()
    if seeds is not None and seeds < 1:
        raise UserError(f"seeds must be at least 1, not {seeds}.")
    keep_memory()
    reporter = reporter or Silent()
    contenders = contenders_of(models, groups or {}, along)
    twin = untrained_twin(contenders) if control else None
    gathered = gather(task, data, dataset)
    check_overrides(settings, [work.name for work in gathered.works])
    for contender in contenders:
        for member in contender.members:
            for work in gathered.works:
                check_head(_source(member), work.head)
    folder = Path(out)
    doing = f"fine-tuning into {folder}"
    with held_folder(folder, doing), reporter, StopRequest() as stop:
        record = _begin(folder, contenders, twin, gathered, seeds, settings, reporter)
        runners = (*contenders, twin) if twin else contenders
        plan = _Plan(folder, record, gathered, runners, seeds, test, reporter, stop)
        plan.run_all()
    return read_finetune(folder)


def _begin(
    folder: Path,
    contenders: tuple[Contender, ...],
    control: Contender | None,
    gathered: Gathered,
    seeds: int | None,
    overrides: Sequence[str],
    reporter: Reporter,
) -> Record:
    """The folder's record with what this call asks for, written."""
    from stackbert.pretraining.machine import describe, fastest_precision, pick_device

    there = read_record(folder) if is_study(folder) else None
    if there is None:
        check_may_begin(folder)
    device = pick_device()
    # Settled once for a folder: what is measured differs from day to day.
    earlier = [task.settings.precision for task in there.tasks.values()] if there else []
    precision = next(iter(earlier), None)
    tasks: dict[str, TaskRecord] = {}
    for work in gathered.works:
        settings = settings_for(work.name, overrides)
        if settings.precision == "auto":
            precision = precision or fastest_precision(device)
            settings = settings.model_copy(update={"precision": precision})
        tasks[work.name] = TaskRecord(
            name=work.name,
            title=work.title,
            metrics=work.metrics,
            settings=settings,
            sizes=dict(work.sizes),
            fingerprints=dict(work.fingerprints),
            guess={name: dict(scores) for name, scores in work.guess.items()},
            seeds=seeds or default_seeds(work.sizes[TRAIN]),
            notes=work.notes,
        )
        for note in work.notes:
            reporter.say(note)
    kind: Kind = "along" if contenders[0].members[0].progress else "models"
    asked = Record(kind, contenders, tasks, gathered.missing, describe(device), control)
    record = asked if there is None else joined(folder, there, asked)
    write_record(folder, record)
    return record


class _Plan:
    """The runs of one call, made one after the other."""

    def __init__(
        self,
        folder: Path,
        record: Record,
        gathered: Gathered,
        contenders: Sequence[Contender],
        seeds: int | None,
        test: bool,
        reporter: Reporter,
        stop: StopRequest,
    ) -> None:
        self._folder = folder
        self._record = record
        self._test = test
        self._reporter = reporter
        self._stop = stop
        self._members = [m for contender in contenders for m in contender.members]
        twins = record.control.members if record.control else ()
        self._untrained = {member.fingerprint for member in twins}
        self._todo = [
            (work, member, seed)
            for work in gathered.works
            for member in self._members
            for seed in range(seeds or default_seeds(work.sizes[TRAIN]))
            if not self._is_done(work, member, seed)
        ]
        everything = sum(
            len(self._members) * (seeds or default_seeds(work.sizes[TRAIN]))
            for work in gathered.works
        )
        self._kept = everything - len(self._todo)
        self._total = sum(self._weight(work) for work, _, _ in self._todo)
        self._spent = 0

    def run_all(self) -> None:
        """Every run that is not there yet.

        Raises:
            Interrupted: asked to stop.
        """
        if self._todo:
            number = counted(len(self._todo), "run")
            self._reporter.say(f"{number} to make, {self._kept} there already")
        # A model's runs on a task come one after the other and share its rows.
        for (_, _), runs in itertools.groupby(self._todo, key=lambda run: (run[0].name, run[1])):
            encoded: Encoded | None = None
            for work, member, seed in runs:
                self._check_stop()
                encoded = encoded or self._encode(work, member)
                result = self._run(work, member, seed, encoded)
                self._write(work, member, result)
                self._spent += self._weight(work)

    def _is_done(self, work: Work, member: Member, seed: int) -> bool:
        result = read_result(result_path(self._folder, work.name, member, seed))
        task = self._record.tasks[work.name]
        return (
            result is not None
            and result.key == task.key(member, seed)
            and all(
                result.diverged or result.splits.get(split) == work.fingerprints[split]
                for split in self._splits(work)
            )
        )

    def _splits(self, work: Work) -> list[str]:
        """What is predicted: the labelled splits, and if asked those for the server."""
        others = [name for name in work.sizes if name != TRAIN and name not in work.guess]
        return [*work.guess, *(others if self._test else [])]

    def _weight(self, work: Work) -> int:
        """How much of a call's time a run takes, roughly: the rows it trains on."""
        return rows_of(work.sizes[TRAIN], self._record.tasks[work.name].settings)

    def _encode(self, work: Work, member: Member) -> Encoded:
        settings = self._record.tasks[work.name].settings
        # The head of this one is thrown away: what counts is what the tokenizer and the positions
        # allow, which no seed changes.
        opened = open_model(self._source(member), work.head, seed=0, dropout=None)
        return work.encode(opened, settings, self._splits(work))

    def _run(self, work: Work, member: Member, seed: int, encoded: Encoded) -> OnceResult:
        name = f"{work.title}, {member.name}, seed {seed}"

        def progress(done: int, total: int, loss: float | None) -> None:
            self._check_stop()
            shown = "" if loss is None else f", loss {loss:.3f}"
            part = self._weight(work) * done // max(1, total)
            self._reporter.step(self._spent + part, self._total, f"rows, {name}{shown}")

        result = finetune_once(
            self._source(member),
            work,
            self._record.tasks[work.name].settings,
            seed,
            splits=self._splits(work),
            encoded=encoded,
            progress=progress,
        )
        self._reporter.say(f"{name}: {_shown(work, result)} ({duration(result.seconds)})")
        return result

    def _source(self, member: Member) -> Source:
        return _source(member, random=member.fingerprint in self._untrained)

    def _check_stop(self) -> None:
        if self._stop.signal is not None:
            raise Interrupted(
                f"Stopped. Runs that had ended are in {self._folder}; the same command goes on "
                "with the others.",
                self._stop.signal,
            )

    def _write(self, work: Work, member: Member, result: OnceResult) -> None:
        task = self._record.tasks[work.name]
        path = result_path(self._folder, work.name, member, result.seed)
        plain = Result(
            key=task.key(member, result.seed),
            seed=result.seed,
            scores={name: judged.scores for name, judged in result.judged.items() if judged.scores},
            splits={name: work.fingerprints[name] for name in result.judged},
            seconds=round(result.seconds, 3),
            predicting=round(result.predicting, 3),
            steps=result.steps,
            losses=tuple(round(x, 6) if math.isfinite(x) else None for x in result.losses),
            diverged=result.diverged,
            notes=result.notes,
        )
        predictions: dict[str, list[Any]] = {
            name: judged.predictions for name, judged in result.judged.items()
        }
        write_result(path, plain, predictions)


def _source(member: Member, *, random: bool = False) -> Source:
    return Source(Path(member.folder), member.name, member.fingerprint, random)


def _shown(work: Work, result: OnceResult) -> str:
    if result.diverged:
        return "diverged"
    scores = result.judged["dev"].scores
    return ", ".join(f"{metric_name(name)} {points(scores[name])}" for name in work.metrics)
