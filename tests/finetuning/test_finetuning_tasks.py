"""What a task is fine-tuned with, and how a user changes it."""

import pytest

from stackbert.errors import UserError
from stackbert.finetuning.tasks import GLUE, TASKS, settings_for


def test_the_defaults_are_the_papers_and_berts():
    usual = (5e-5, 16, 3, 128)
    other = {"sts-b": (5e-5, 32, 4, 128), "qqp": (5e-5, 32, 4, 128), "qnli": (5e-5, 32, 3, 128)}
    other |= {"rte": (3e-5, 16, 4, 128), "wnli": (3e-5, 16, 4, 128)}
    other |= {"squad": (5e-5, 32, 3, 384), "squad-v2": (5e-5, 48, 2, 384)}
    for task in (*TASKS, "reviews"):
        found = settings_for(task, (), ())
        rate, batch = found.learning_rate, found.batch
        assert (rate, batch, found.epochs, found.max_length) == other.get(task, usual)


def test_tasks_have_their_official_metrics():
    other = {"cola": ("matthews",), "sts-b": ("pearson", "spearman")}
    other |= dict.fromkeys(("mrpc", "qqp"), ("f1", "accuracy"))
    assert {n: TASKS[n].metrics for n in GLUE if TASKS[n].metrics != ("accuracy",)} == other


def test_a_field_is_changed_for_all_tasks_or_for_one():
    overrides = ["lr=2e-5", "rte.epochs=10", "dropout=null"]
    rte, mrpc = (settings_for(task, overrides, ["rte", "mrpc"]) for task in ("rte", "mrpc"))
    assert (rte.learning_rate, rte.epochs, rte.dropout) == (2e-5, 10, None)
    assert (mrpc.learning_rate, mrpc.epochs) == (2e-5, 3)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("epoch=3", "there is no field 'epoch' (did you mean 'epochs'?)"),
        ("batch=many", "batch: input should be a valid integer"),
        ("lr=fast", "learning_rate"),
        ("lr=0", "learning_rate"),
        ("batch", "write it as field=value"),
        ("mnli.epochs=3", "a task of rte, mrpc"),
    ],
)
def test_a_wrong_change_is_refused_in_a_sentence(override, said):
    with pytest.raises(UserError, match=r"--set") as caught:
        settings_for("rte", [override], ["rte", "mrpc"])
    assert said in str(caught.value)
