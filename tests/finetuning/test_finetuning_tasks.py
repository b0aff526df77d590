"""The tasks: GLUE's nine and its diagnostic set."""

import pytest

from stackbert.finetuning.metrics import METRICS
from stackbert.finetuning.tasks import GLUE, MISMATCHED, official_score


def test_tasks_are_glues_nine_and_the_diagnostic_set_with_their_official_metrics():
    metrics = {name: task.metrics for name, task in GLUE.items()}
    assert metrics == {
        "cola": ("matthews",),
        "sst-2": ("accuracy",),
        "mrpc": ("f1", "accuracy"),
        "sts-b": ("pearson", "spearman"),
        "qqp": ("f1", "accuracy"),
        "mnli": ("accuracy",),
        "qnli": ("accuracy",),
        "rte": ("accuracy",),
        "wnli": ("accuracy",),
        "ax": ("matthews",),
    }
    assert {name for task in GLUE.values() for name in task.metrics} <= set(METRICS)
    assert [name for name, task in GLUE.items() if task.kind == "regression"] == ["sts-b"]
    assert [name for name, task in GLUE.items() if not task.paired] == ["cola", "sst-2"]
    assert GLUE["ax"].labels == GLUE["mnli"].labels


def test_the_official_score_is_the_mean_of_a_tasks_metrics():
    values = {"f1": 0.9, "accuracy": 0.8, "loss": 7.0}
    assert official_score(GLUE["mrpc"], values) == pytest.approx(0.85)
    assert official_score(GLUE["rte"], {"accuracy": 0.5, "f1": 0.9}) == 0.5
    both = {"accuracy": 0.84, "accuracy" + MISMATCHED: 0.82}
    assert official_score(GLUE["mnli"], both) == pytest.approx(0.83)
    with pytest.raises(KeyError, match="spearman"):
        official_score(GLUE["sts-b"], {"pearson": 0.8})
