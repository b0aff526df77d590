"""Trackers have the ledger's numbers; the model card says how a model was made."""

import dataclasses
import sys

import pytest
import yaml

from stackbert.errors import UserError
from stackbert.pretraining.ledger import read_ledger
from stackbert.pretraining.model_card import model_card
from stackbert.pretraining.run import pretrain
from tiny_runs import At, Crash, tiny_recipe

RECIPE = tiny_recipe()


def test_tensorboard_has_the_ledgers_numbers_and_hides_what_is_done_again(
    tiny_corpus, tmp_path, finished
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(Crash):
        pretrain(RECIPE, corpus=tiny_corpus, out=tmp_path, track=["tensorboard"], progress=At(6))
    pretrain(RECIPE, corpus=tiny_corpus, out=tmp_path, track=["tensorboard"])
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    ledger = read_ledger(tmp_path)
    steps, evaluations = (ledger[ledger.kind == kind] for kind in ("step", "evaluation"))
    for tag, rows, column in (
        ("train/loss", steps, "loss"),
        ("train/lr", steps, "lr"),
        ("train/depth", steps, "depth"),
        ("validation/loss", evaluations, "loss"),
    ):
        shown = [(event.step, event.value) for event in events.Scalars(tag)]
        assert [step for step, _ in shown] == rows.step.tolist(), tag
        assert [v for _, v in shown] == pytest.approx(rows[column].tolist(), rel=1e-6), tag
    assert not (finished(RECIPE) / "tensorboard").exists(), "nobody asked"


@pytest.mark.parametrize(
    ("tracker", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")]
)
def test_a_trackers_missing_package_is_named(tracker, module, tiny_corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"pip install 'stackbert\[{tracker}\]'"):
        pretrain(RECIPE, corpus=tiny_corpus, out=tmp_path, track=[tracker])


HOSTILE = "---\ntags: [x]\n---\n```\n    # a`b <script>alert(1)</script> | pipe |"


def test_the_model_card_says_how_the_model_was_made_and_no_text_of_a_user_breaks_out(
    tiny_corpus, finished
) -> None:
    run = finished(RECIPE)
    card = (run / "model" / "README.md").read_text("utf-8")
    header = yaml.safe_load(card.split("---\n", 2)[1])
    assert header == {
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["stackbert", "progressive-stacking", "megatron-bert"],
    }
    result = pretrain(RECIPE, corpus=tiny_corpus, out=run)
    assert f"Final validation loss: {result.loss:.3f} nats" in card
    assert tiny_corpus.fingerprint in card
    assert [line.split("|")[1:3] for line in card.splitlines() if line.startswith("| ")][1:] == [
        [" 1 ", " 4 "],
        [" 2 ", " 4 "],
    ]
    assert load_of(card) == yaml.safe_load(RECIPE.to_yaml())

    source = dataclasses.replace(tiny_corpus.manifest.sources[0], name=HOSTILE)
    manifest = tiny_corpus.manifest.model_copy(update={"sources": (source,)})
    hostile = RECIPE.model_copy(update={"summary": HOSTILE})
    manifest = manifest.model_copy(update={"left_out": {HOSTILE: 1}})
    card = model_card(hostile, manifest, 4.0, ["Passes."], result.stages, {"stackbert": "1"})
    assert yaml.safe_load(card.split("---\n", 2)[1]) == header
    assert load_of(card)["summary"] == HOSTILE
    assert "<script>" not in card.split("## Recipe")[0]


def load_of(card: str) -> object:
    """The recipe that a model card ends with, indented as a whole."""
    return yaml.safe_load(card.split("## Recipe\n")[1])
