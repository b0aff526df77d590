"""The tasks: GLUE's nine and its diagnostic set, and what a task is."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

MISMATCHED = "_mismatched"
"""Ends the name of a split or of a score that is of MNLI's mismatched half."""


@dataclass(frozen=True)
class Task:
    """What is predicted, and how it is scored.

    Attributes:
        name: lower-case, as the command line takes it.
        title: as tables show it.
        kind: whether a class or a number is predicted.
        labels: the classes by their names in the data, in the order of their numbers; () for
            regression.
        paired: whether an example is two texts.
        metrics: names of `metrics.METRICS`; the first is the headline.
        test_file: the file that the GLUE server expects predictions in (of MNLI's matched half);
            "" for a user's own task.
    """

    name: str
    title: str
    kind: Literal["classification", "regression"]
    labels: tuple[str, ...]
    paired: bool
    metrics: tuple[str, ...]
    test_file: str = ""


_ENTAILMENT = ("entailment", "not_entailment")
_BINARY = ("0", "1")


def _task(
    title: str,
    labels: tuple[str, ...],
    metrics: tuple[str, ...],
    *,
    paired: bool = True,
    test_file: str = "",
) -> Task:
    kind: Literal["classification", "regression"] = "classification" if labels else "regression"
    return Task(
        name=title.lower(),
        title=title,
        kind=kind,
        labels=labels,
        paired=paired,
        metrics=metrics,
        test_file=test_file or f"{title}.tsv",
    )


# Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language
# Understanding" (ICLR 2019), table 1. Where two metrics are given, the one that people quote
# first is the headline. The order of the classes is that of the Hugging Face data set `glue`.
GLUE: dict[str, Task] = {
    task.name: task
    for task in (
        _task("CoLA", _BINARY, ("matthews",), paired=False),
        _task("SST-2", _BINARY, ("accuracy",), paired=False),
        _task("MRPC", _BINARY, ("f1", "accuracy")),
        _task("STS-B", (), ("pearson", "spearman")),
        _task("QQP", _BINARY, ("f1", "accuracy")),
        _task(
            "MNLI",
            ("entailment", "neutral", "contradiction"),
            ("accuracy",),
            test_file="MNLI-m.tsv",
        ),
        _task("QNLI", _ENTAILMENT, ("accuracy",)),
        _task("RTE", _ENTAILMENT, ("accuracy",)),
        _task("WNLI", _BINARY, ("accuracy",)),
        # Has no training data: a model of MNLI answers it, with MNLI's classes.
        _task("AX", ("entailment", "neutral", "contradiction"), ("matthews",)),
    )
}
"""By name: cola, sst-2, mrpc, sts-b, qqp, mnli, qnli, rte, wnli, and ax, the diagnostic set."""


def official_score(task: Task, values: Mapping[str, float]) -> float:
    """One number for a task, as GLUE's own average takes it: the mean of the task's metrics.

    Args:
        task: the task.
        values: score by metric's name. A score on MNLI's mismatched half goes by the metric's
            name with `MISMATCHED` behind ("accuracy_mismatched") and, where it is there, counts
            like another metric. Other names are passed over.

    Raises:
        KeyError: one of the task's metrics is missing.
    """
    mismatched = [name + MISMATCHED for name in task.metrics if name + MISMATCHED in values]
    return statistics.fmean(values[name] for name in (*task.metrics, *mismatched))
