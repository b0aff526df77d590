"""What a task is fine-tuned with, and how a user changes it."""

import pytest

from stackbert import UserError
from stackbert.finetuning.settings import (
    check_overrides,
    default_seeds,
    defaults_for,
    settings_for,
)


@pytest.mark.parametrize(
    ("task", "rate", "batch", "epochs"),
    [
        ("cola", 5e-5, 16, 3),
        ("sst-2", 5e-5, 16, 3),
        ("mrpc", 5e-5, 16, 3),
        ("sts-b", 5e-5, 32, 4),
        ("qqp", 5e-5, 32, 4),
        ("mnli", 5e-5, 16, 3),
        ("qnli", 5e-5, 32, 3),
        ("rte", 3e-5, 16, 4),
    ],
)
def test_the_defaults_are_the_papers(task, rate, batch, epochs):
    settings = defaults_for(task)
    assert (settings.learning_rate, settings.batch, settings.epochs) == (rate, batch, epochs)
    assert settings.warmup_fraction == 0.1


def test_small_tasks_take_six_seeds_and_large_ones_three():
    assert default_seeds(8551) == 6  # CoLA
    assert default_seeds(67349) == 3  # SST-2


def test_a_field_is_changed_for_all_tasks_or_for_one():
    overrides = ["learning_rate=2e-5", "rte.epochs=10", "dropout=null"]
    rte, mrpc = settings_for("rte", overrides), settings_for("mrpc", overrides)
    assert (rte.learning_rate, rte.epochs) == (2e-5, 10)
    assert (mrpc.learning_rate, mrpc.epochs) == (2e-5, 3)
    assert rte.dropout is None


def test_a_users_own_task_has_berts_usual_settings():
    own = defaults_for("reviews")
    assert (own.learning_rate, own.batch, own.epochs) == (5e-5, 16, 3)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("epoch=3", "there is no field 'epoch' (did you mean 'epochs'?)"),
        ("learning_rate=fast", "learning_rate: input should be a valid number"),
        ("learning_rate=-1", "learning_rate"),
        ("batch", "write it as field=value"),
        ("batch=[", "is not YAML"),
        ("mnli.epochs=3", "no task 'mnli'"),
        ("precision=fp16", "precision"),
    ],
)
def test_a_wrong_change_is_refused_before_anything_runs(override, said):
    with pytest.raises(UserError, match=r"--set") as caught:
        check_overrides([override], ["rte", "mrpc"])
    assert said in str(caught.value)
