"""The ledger's numbers in TensorBoard."""

import pytest
from pretraining_helpers import At, Crash, crash, tiny_recipe
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import stackbert as sb

RECIPE = tiny_recipe()


def scalars(run) -> dict[str, dict[int, float]]:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {
        tag: {event.step: event.value for event in events.Scalars(tag)}
        for tag in events.Tags()["scalars"]
    }


def test_tensorboard_has_the_ledgers_numbers_as_soon_as_the_run_ends(corpus, tmp_path) -> None:
    sb.pretrain(RECIPE, corpus=corpus, out=tmp_path, track=["tensorboard"])
    shown = scalars(tmp_path)
    rows = sb.read_ledger(tmp_path)
    steps = {row["step"]: row for row in rows if row["kind"] == "step"}
    for tag, field in (
        ("train/loss", "loss"),
        ("train/lr", "lr"),
        ("train/gradient_norm", "gradient_norm"),
        ("train/depth", "depth"),
    ):
        expected = {step: pytest.approx(row[field], rel=1e-6) for step, row in steps.items()}
        assert shown[tag] == expected
    evaluations = {row["step"]: row["loss"] for row in rows if row["kind"] == "evaluation"}
    assert shown["validation/loss"] == pytest.approx(evaluations, rel=1e-6)


def test_a_crash_loses_nothing_and_a_resumed_run_hides_what_it_does_again(corpus, tmp_path) -> None:
    with pytest.raises(Crash):
        sb.pretrain(
            RECIPE, corpus=corpus, out=tmp_path, track=["tensorboard"], reporter=At(11, crash)
        )
    assert max(scalars(tmp_path)["train/loss"]) == 11
    sb.pretrain(RECIPE, corpus=corpus, out=tmp_path, track=["tensorboard"])
    assert list(scalars(tmp_path)["train/loss"]) == list(range(1, 19))


def test_without_tracking_there_is_no_folder(undisturbed) -> None:
    assert not (undisturbed(RECIPE) / "tensorboard").exists()


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_a_package_that_is_missing_is_named_and_the_run_goes_on_without(
    tracker, corpus, tmp_path, monkeypatch
) -> None:
    blocked = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}[tracker]
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, blocked, None)
        with pytest.raises(sb.UserError, match=rf"pip install 'stackbert\[{tracker}\]'"):
            sb.pretrain(RECIPE, corpus=corpus, out=tmp_path, track=[tracker])
    with pytest.raises(Crash):
        sb.pretrain(RECIPE, corpus=corpus, out=tmp_path, reporter=At(1, crash))
