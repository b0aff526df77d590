"""A study in sentences: what differs beyond noise, what does not, and which tasks say nothing."""

from collections import Counter
from collections.abc import Mapping, Sequence

from stackbert.comparison.processes import counted
from stackbert.comparison.statistics import Interval, interval, paired
from stackbert.finetuning.folder import Contender
from stackbert.finetuning.results import Difference, FinetuneResults, Measure, Outcome
from stackbert.reporting.wording import duration

_METRICS = {
    "accuracy": "accuracy",
    "f1": "F1",
    "f1_macro": "macro F1",
    "matthews": "Matthews",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "exact_match": "exact match",
}


_WORDS: dict[Outcome, str] = {
    "better": "better",
    "worse": "worse",
    "no difference": "no different beyond noise",
    "one seed": "of unknown noise (one seed)",
}


def metric_name(metric: str) -> str:
    """As tables show it."""
    return _METRICS.get(metric, metric)


def points(value: float) -> str:
    """A score in hundredths, to one decimal: 0.8894 is "88.9"."""
    return f"{100 * value:.1f}".replace("-", "−")


def difference_points(value: float) -> str:
    """A difference of scores, signed: "+1.3", "−0.4", "0.0"."""
    shown = f"{100 * value:+.1f}".replace("-", "−")
    return shown[1:] if shown[1:] == "0.0" else shown


def range_points(found: Interval) -> str:
    """A difference's interval, "−0.4 to +1.3"; nothing where one seed gives none."""
    if found.low is None or found.high is None:
        return ""
    return f"{difference_points(found.low)} to {difference_points(found.high)}"


def statements(results: FinetuneResults) -> tuple[str, ...]:
    """What can be said of a study, the most important first."""
    if not results.runs:
        return ("No run has ended yet, so there is nothing to say.",)
    lines: list[str] = []
    if results.record.kind == "models":
        base, *others = results.record.contenders
        for other in others:
            lines += _against(results, other, base)
        if not others:
            lines.append(_alone(results, base))
        if results.control is not None:
            lines += _beyond(results, results.control)
    lines += _no_information(results)
    lines += _caveats(results)
    return tuple(lines)


def differences(
    results: FinetuneResults, contender: Contender, base: Contender
) -> list[Difference]:
    """Of two contenders, by every headline measure that both have runs of."""
    found = (results.difference(contender, base, m) for m in results.measures())
    return [each for each in found if each is not None]


def _against(results: FinetuneResults, other: Contender, base: Contender) -> list[str]:
    found = differences(results, other, base)
    telling = [each for each in found if each.outcome != "no information"]
    if not telling:
        return [f"{other.name} and {base.name} cannot be told apart by these tasks."]
    counts = Counter(each.outcome for each in telling)
    parts = [f"{_WORDS[outcome]} on {count}" for outcome, count in sorted(counts.items())]
    lines = [
        f"{other.name} beside {base.name}, {counted(len(telling), 'measure')} that "
        f"{'carries' if len(telling) == 1 else 'carry'} information: {', '.join(parts)}."
    ]
    average = _average(results, other, base)
    if average is not None:
        lines.append(
            f"GLUE's average over these tasks differs by {difference_points(average.mean)} points"
            f"{_interval(average)}: {_verdict(average, other.name)}."
        )
    lines += [_sentence(each) for each in telling]
    if len(telling) > 4:
        lines.append(
            f"With {len(telling)} measures looked at, one interval in twenty leaves out zero by "
            "chance alone."
        )
    return lines


def _beyond(results: FinetuneResults, control: Contender) -> list[str]:
    """What pre-training adds: every model beside the same one without any."""
    lines: list[str] = []
    shown: set[Measure] = set()
    telling: dict[Measure, None] = {}
    for contender in results.record.contenders:
        found = [
            each
            for each in differences(results, contender, control)
            if each.outcome != "no information"
        ]
        telling |= {each.measure: None for each in found}
        shown |= {each.measure for each in found if each.outcome in ("better", "one seed")}
        parts = [
            f"{_WORDS[each.outcome]} on {each.measure.title} ({_mean_and_range(each.interval)})"
            for each in found
        ]
        if parts:
            lines.append(
                f"{contender.name} beside {control.name}, a model of this shape with random "
                f"weights: {', '.join(parts)}."
            )
    silent = [measure.title for measure in telling if measure not in shown]
    if silent:
        verb = "shows" if len(silent) == 1 else "show"
        lines.append(
            f"{_listed(silent)} {verb} nothing of pre-training: with these settings no model is "
            f"above {control.name} beyond noise, so the task's own training rows are enough for "
            "such a score."
        )
    return lines


def _average(results: FinetuneResults, other: Contender, base: Contender) -> Interval | None:
    return paired(results.average_values(other), results.average_values(base))


def _sentence(difference: Difference) -> str:
    measure, found = difference.measure, difference.interval
    what = f"{measure.title}, {metric_name(measure.metric)}"
    shown = f"{difference_points(found.mean)} points{_interval(found)}"
    return f"{what}: {_verdict(found, difference.contender.name)}, {shown}."


def _verdict(found: Interval, name: str) -> str:
    if found.low is None:
        return "one seed, so nothing is known of noise"
    if not found.excludes_zero:
        return "no difference beyond noise"
    how = "better" if found.mean > 0 else "worse"
    return f"{name} is {how} by {points(abs(found.mean))} points"


def _interval(found: Interval) -> str:
    between = range_points(found)
    return f" (95 % interval {between}, {counted(found.number, 'pair')})" if between else ""


def _mean_and_range(found: Interval) -> str:
    mean, between = difference_points(found.mean), range_points(found)
    return f"{mean}; {between}" if between else mean


def _alone(results: FinetuneResults, contender: Contender) -> str:
    shown = [
        f"{measure.title} {points(score.mean.mean)}"
        for measure in results.measures()
        if (score := results.score(contender, measure)) is not None
    ]
    average = results.average_values(contender)
    tail = ""
    if average:
        tail = f" GLUE's average over these tasks: {points(interval(list(average.values())).mean)}."
    return f"{contender.name}: {', '.join(shown)}.{tail}"


def _no_information(results: FinetuneResults) -> list[str]:
    silent = [m for m in results.measures() if _has_runs(results, m)]
    silent = [measure for measure in silent if not results.is_informative(measure)]
    if not silent:
        return []
    names = _listed([measure.title for measure in silent])
    verb, task = ("carries", "it") if len(silent) == 1 else ("carry", "them")
    return [
        f"{names} {verb} no information: on {task} no model is above guessing the commonest answer "
        "by more than its interval."
    ]


def _has_runs(results: FinetuneResults, measure: Measure) -> bool:
    return any(run.task == measure.task for run in results.runs)


def _caveats(results: FinetuneResults) -> list[str]:
    lines: list[str] = []
    failed = results.failed
    if failed:
        titles = {task.name: task.title for task in results.record.tasks.values()}
        where = Counter(titles[run.task] for run in failed)
        diverged = sum(run.result.diverged for run in failed)
        shown = ", ".join(f"{title} {count}" for title, count in where.items())
        lines.append(
            f"{len(failed)} of {counted(len(results.runs), 'run')} failed, that is, ended no "
            f"better than guessing ({shown}); they count in every mean."
            + (f" {diverged} of them diverged and count as guessing." if diverged else "")
        )
    if results.unfinished:
        lines.append(f"Not finished: {counted(results.unfinished, 'run')}.")
    if results.record.missing:
        lines.append(f"No data for: {_lacking(results.record.missing)}.")
    lines += dict.fromkeys(note for task in results.record.tasks.values() for note in task.notes)
    lines += _model_notes(results)
    lines.append(
        f"{counted(len(results.runs), 'run')}, {duration(results.seconds)} of training and "
        "predicting."
    )
    return lines


def _lacking(missing: Mapping[str, str]) -> str:
    """Tasks without data; why, where it is more than that their folder is not there."""
    return ", ".join(
        name if why.startswith("no folder") else f"{name} ({why})" for name, why in missing.items()
    )


def _model_notes(results: FinetuneResults) -> list[str]:
    """What runs noted of rows that were cut; once for every model that differs."""
    notes: dict[str, list[str]] = {}
    for run in results.runs:
        for note in run.result.notes:
            names = notes.setdefault(note, [])
            if run.member.name not in names:
                names.append(run.member.name)
    everyone = {member.name for member in results.record.members}
    return [
        note if set(names) == everyone else f"{note} ({_listed(names)})"
        for note, names in notes.items()
    ]


def _listed(names: Sequence[str]) -> str:
    if len(names) < 2:
        return "".join(names)
    if len(names) > 6:
        return f"{', '.join(names[:5])} and {len(names) - 5} others"
    return f"{', '.join(names[:-1])} and {names[-1]}"
