"""What a task is fine-tuned with, and how a user changes it."""

import pytest

from stackbert.errors import UserError
from stackbert.finetuning.tasks import GLUE, TASKS, default_seeds, settings_for


@pytest.mark.parametrize(
    ("task", "rate", "batch", "epochs", "length"),
    [
        ("cola", 5e-5, 16, 3, 128),
        ("sst-2", 5e-5, 16, 3, 128),
        ("mrpc", 5e-5, 16, 3, 128),
        ("sts-b", 5e-5, 32, 4, 128),
        ("qqp", 5e-5, 32, 4, 128),
        ("mnli", 5e-5, 16, 3, 128),
        ("qnli", 5e-5, 32, 3, 128),
        ("rte", 3e-5, 16, 4, 128),
        ("squad", 5e-5, 32, 3, 384),
        ("squad-v2", 5e-5, 48, 2, 384),
        ("reviews", 5e-5, 16, 3, 128),
    ],
)
def test_the_defaults_are_the_papers_and_berts(task, rate, batch, epochs, length):
    found = settings_for(task, (), ())
    assert (found.learning_rate, found.batch, found.epochs) == (rate, batch, epochs)
    assert (found.max_length, found.warmup_fraction, found.stride) == (length, 0.1, 128)


def test_tasks_have_their_official_metrics_and_classes():
    other = {"cola": ("matthews",), "sts-b": ("pearson", "spearman")}
    other |= dict.fromkeys(("mrpc", "qqp"), ("f1", "accuracy"))
    assert {n: TASKS[n].metrics for n in GLUE if TASKS[n].metrics != ("accuracy",)} == other
    assert set(GLUE) == {*other, "sst-2", "mnli", "qnli", "rte", "wnli"}
    assert TASKS["mnli"].labels == ("entailment", "neutral", "contradiction")
    assert TASKS["rte"].labels == TASKS["qnli"].labels == ("entailment", "not_entailment")
    assert [name for name in GLUE if not TASKS[name].pair] == ["cola", "sst-2"]


def test_small_tasks_take_six_seeds_and_large_ones_three():
    assert default_seeds(8551) == 6  # CoLA
    assert default_seeds(67349) == 3  # SST-2


def test_a_field_is_changed_for_all_tasks_or_for_one():
    overrides = ["learning_rate=2e-5", "rte.epochs=10", "dropout=null", "group_by_length=false"]
    rte, mrpc = (settings_for(task, overrides, ["rte", "mrpc"]) for task in ("rte", "mrpc"))
    assert (rte.learning_rate, rte.epochs) == (2e-5, 10)
    assert (mrpc.learning_rate, mrpc.epochs) == (2e-5, 3)
    assert rte.dropout is None
    assert not rte.group_by_length


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("epoch=3", "there is no field 'epoch' (did you mean 'epochs'?)"),
        ("learning_rate=fast", "learning_rate: input should be a valid number"),
        ("learning_rate=-1", "learning_rate"),
        ("batch", "write it as field=value"),
        ("mnli.epochs=3", "a task of rte, mrpc"),
        ("precision=fp16", "precision"),
    ],
)
def test_a_wrong_change_is_refused_in_a_sentence(override, said):
    with pytest.raises(UserError, match=r"--set") as caught:
        settings_for("rte", [override], ["rte", "mrpc"])
    assert said in str(caught.value)
