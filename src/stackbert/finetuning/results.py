"""What a study found: scores with their noise, and differences between models, paired by seed."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stackbert.comparison.statistics import Interval, interval, paired
from stackbert.finetuning.folder import Contender, Member, Record, TaskRecord, read_record
from stackbert.finetuning.runs import Result, read_result, result_path

Outcome = Literal["better", "worse", "no difference", "one seed", "no information"]
_LEFT_OUT = "wnli"
"""Of the average: its dev set is made so that learning from its training set misleads; Devlin et
al. (2019) leave it out, too."""


@dataclass(frozen=True)
class Measure:
    """A number that a task is judged by."""

    task: str
    split: str
    metric: str
    title: str
    """"MNLI", or "MNLI mismatched" for its other half."""
    guess: float
    """What always guessing the same scores."""
    rows: int
    """Of the split."""


@dataclass(frozen=True)
class Run:
    """One fine-tuning run that has ended."""

    task: str
    member: Member
    seed: int
    result: Result

    def score(self, measure: Measure) -> float:
        """What it scored; a run that diverged counts as guessing, which is all it can do."""
        return self.result.scores.get(measure.split, {}).get(measure.metric, measure.guess)

    def failed(self, measure: Measure) -> bool:
        """Whether it diverged, or is not above guessing."""
        return self.result.diverged or self.score(measure) <= measure.guess


@dataclass(frozen=True)
class Score:
    """A contender's score by one measure."""

    contender: Contender
    measure: Measure
    values: Mapping[int, float]
    """What mean and interval are over: by fine-tuning seed; of several pre-training seeds by their
    place, each the mean over its fine-tuning seeds."""
    mean: Interval
    median: float
    runs: int
    failed: int

    @property
    def above_guess(self) -> bool:
        """Whether it is above guessing by more than its interval; of one run, whether at all."""
        low = self.mean.mean if self.mean.low is None else self.mean.low
        return low > self.measure.guess


@dataclass(frozen=True)
class Difference:
    """Two contenders by one measure."""

    measure: Measure
    contender: Contender
    base: Contender
    interval: Interval
    """Of contender minus base, over the seeds that both have; above zero is better."""
    outcome: Outcome


@dataclass(frozen=True)
class FinetuneResults:
    """Everything that has ended in a folder."""

    folder: Path
    record: Record
    runs: tuple[Run, ...]
    unfinished: int
    """Runs that were asked for and have not ended."""

    @property
    def contenders(self) -> tuple[Contender, ...]:
        """In the order they were named, the control last; of checkpoints in the order of their
        runs and steps."""
        found = self.record.everyone
        if self.record.kind == "models":
            return found
        names = list(dict.fromkeys(m.progress.run for c in found for m in c.members if m.progress))

        def place(contender: Contender) -> tuple[int, int]:
            at = contender.members[0].progress
            return (names.index(at.run), at.step) if at else (0, 0)

        return tuple(sorted(found, key=place))

    @property
    def control(self) -> Contender | None:
        """The untrained model, if one was asked for."""
        return self.record.control

    def measures(self, *, headline: bool = True) -> tuple[Measure, ...]:
        """What there is to look at: the headline metric of each labelled split, or the others."""
        return tuple(
            Measure(
                task.name,
                split,
                metric,
                task.title + (f" {split.removeprefix('dev_')}" if split != "dev" else ""),
                scores.get(metric, 0.0),
                task.sizes[split],
            )
            for task in self.record.tasks.values()
            for split, scores in task.guess.items()
            for metric in (task.metrics[:1] if headline else task.metrics[1:])
        )

    def score(self, contender: Contender, measure: Measure) -> Score | None:
        """A contender's score; None if no run of it has ended."""
        values: dict[int, float] = {}
        runs: list[Run] = []
        several = len(contender.members) > 1
        for place, member in enumerate(contender.members):
            own = [r for r in self.runs if (r.task, r.member) == (measure.task, member)]
            runs += own
            if several and own:
                values[place] = statistics.fmean(run.score(measure) for run in own)
            elif not several:
                values = {run.seed: run.score(measure) for run in own}
        if not values:
            return None
        numbers = list(values.values())
        return Score(
            contender,
            measure,
            values,
            interval(numbers),
            statistics.median(numbers),
            len(runs),
            sum(run.failed(self._headline(measure)) for run in runs),
        )

    def is_informative(self, measure: Measure) -> bool:
        """Whether any contender is above guessing by more than its interval."""
        scores = (self.score(contender, measure) for contender in self.contenders)
        return any(score.above_guess for score in scores if score is not None)

    def difference(
        self, contender: Contender, base: Contender, measure: Measure
    ) -> Difference | None:
        """Contender minus base, paired by seed; None if they have no seed in common."""
        ours, theirs = self.score(contender, measure), self.score(base, measure)
        if ours is None or theirs is None:
            return None
        found = paired(dict(ours.values), dict(theirs.values))
        if found is None:
            return None
        informative = self.is_informative(self._headline(measure))
        return Difference(measure, contender, base, found, _outcome(found, informative))

    def average_values(self, contender: Contender) -> dict[int, float]:
        """GLUE's own average by seed: the mean over the tasks of each task's mean score.

        Over the GLUE tasks that have ended for this contender, WNLI left out, and over the seeds
        that all of them have. Empty for fewer than two tasks.
        """
        from stackbert.finetuning.tasks import GLUE

        tasks: list[dict[int, float]] = []
        for name in self.record.tasks:
            if name not in GLUE or name == _LEFT_OUT:
                continue
            own = [m for h in (True, False) for m in self.measures(headline=h) if m.task == name]
            scores = [score for m in own if (score := self.score(contender, m)) is not None]
            if scores:
                seeds = scores[0].values
                tasks.append({s: statistics.fmean(x.values[s] for x in scores) for s in seeds})
        if len(tasks) < 2:
            return {}
        common = set.intersection(*(set(task) for task in tasks))
        return {seed: statistics.fmean(task[seed] for task in tasks) for seed in sorted(common)}

    @property
    def failed(self) -> tuple[Run, ...]:
        """Runs that diverged or are not above guessing."""
        headlines = {m.task: m for m in self.measures() if m.split == "dev"}
        return tuple(run for run in self.runs if run.failed(headlines[run.task]))

    @property
    def seconds(self) -> float:
        """Of training and predicting, over all runs."""
        return sum(run.result.seconds + run.result.predicting for run in self.runs)

    def _headline(self, measure: Measure) -> Measure:
        """What decides whether a run failed, whatever is looked at."""
        return next(
            m for m in self.measures() if (m.task, m.split) == (measure.task, measure.split)
        )


def _outcome(found: Interval, informative: bool) -> Outcome:
    if not informative:
        return "no information"
    if found.low is None:
        return "one seed"
    if not found.excludes_zero:
        return "no difference"
    return "better" if found.mean > 0 else "worse"


def read_finetune(folder: str | Path) -> FinetuneResults:
    """Read what `finetune` wrote, as far as it has come.

    Args:
        folder: its `out`.

    Raises:
        UserError: it is no such folder, or a file in it is damaged.

    Example:
        >>> import stackbert as sb
        >>> results = sb.read_finetune("finetuned")  # doctest: +SKIP
    """
    folder = Path(folder)
    record = read_record(folder)
    runs, unfinished = [], 0
    for task in record.tasks.values():
        for member in record.members:
            for seed in range(task.seeds):
                result = _finished(folder, task, member, seed)
                if result is None:
                    unfinished += 1
                else:
                    runs.append(Run(task.name, member, seed, result))
    return FinetuneResults(folder, record, tuple(runs), unfinished)


def _finished(folder: Path, task: TaskRecord, member: Member, seed: int) -> Result | None:
    result = read_result(result_path(folder, task.name, member, seed))
    return result if result is not None and result.key == task.key(member, seed) else None
