"""What a task is fine-tuned with, and how a user changes it."""

import pytest

from stackbert.errors import UserError
from stackbert.finetuning.tasks import GLUE, TASKS, settings_for


@pytest.mark.parametrize(
    ("tasks", "rate", "batch", "epochs", "length"),
    [
        ("cola sst-2 mrpc mnli reviews", 5e-5, 16, 3, 128),
        ("sts-b qqp", 5e-5, 32, 4, 128),
        ("qnli", 5e-5, 32, 3, 128),
        ("rte", 3e-5, 16, 4, 128),
        ("squad", 5e-5, 32, 3, 384),
        ("squad-v2", 5e-5, 48, 2, 384),
    ],
)
def test_the_defaults_are_the_papers_and_berts(tasks, rate, batch, epochs, length):
    for task in tasks.split():
        found = settings_for(task, (), ())
        assert (found.learning_rate, found.batch, found.epochs) == (rate, batch, epochs)
        assert (found.max_length, found.warmup_fraction) == (length, 0.1)


def test_tasks_have_their_official_metrics_and_classes():
    other = {"cola": ("matthews",), "sts-b": ("pearson", "spearman")}
    other |= dict.fromkeys(("mrpc", "qqp"), ("f1", "accuracy"))
    assert {n: TASKS[n].metrics for n in GLUE if TASKS[n].metrics != ("accuracy",)} == other
    assert set(GLUE) == {*other, "sst-2", "mnli", "qnli", "rte", "wnli"}
    assert TASKS["mnli"].labels == ("entailment", "neutral", "contradiction")
    assert [name for name in GLUE if not TASKS[name].pair] == ["cola", "sst-2"]


def test_a_field_is_changed_for_all_tasks_or_for_one():
    overrides = ["learning_rate=2e-5", "rte.epochs=10", "dropout=null"]
    rte, mrpc = (settings_for(task, overrides, ["rte", "mrpc"]) for task in ("rte", "mrpc"))
    assert (rte.learning_rate, rte.epochs, rte.dropout) == (2e-5, 10, None)
    assert (mrpc.learning_rate, mrpc.epochs) == (2e-5, 3)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("epoch=3", "there is no field 'epoch' (did you mean 'epochs'?)"),
        ("batch=many", "batch: input should be a valid integer"),
        ("batch", "write it as field=value"),
        ("mnli.epochs=3", "a task of rte, mrpc"),
    ],
)
def test_a_wrong_change_is_refused_in_a_sentence(override, said):
    with pytest.raises(UserError, match=r"--set") as caught:
        settings_for("rte", [override], ["rte", "mrpc"])
    assert said in str(caught.value)
