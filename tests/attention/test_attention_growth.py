"""Growth: the moments are the run's own models, and what is copied, fresh, kept is told right."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stackbert.attention.growth import (
    grown_again,
    moment_models,
    nearest_heads,
    observe_growths,
    origins_of,
    outcomes,
    run_recipe,
    same_heads,
)
from stackbert.attention.loading import load_model, load_tokenizer
from stackbert.attention.observe import Material
from stackbert.attention.result import Moment
from stackbert.errors import UserError
from stackbert.growth.operators import get_operator
from stackbert.pretraining.trainer import Trainer

SENTENCES = (
    "The river runs from the mountains in the north to the sea in the south of the country.",
    "The economy depends on agriculture, on fishing and on the export of minerals and wood.",
    "Most of the people live in the capital and in the towns along the coast of the island.",
)


def growths_of(run: Path, steps=None):
    material = Material(SENTENCES, load_tokenizer(run / "model"), 32, seed=0)
    return observe_growths(run, material, steps)


def test_the_grown_model_is_the_one_the_run_had(make_run):
    run = make_run("identity-noise")
    recipe = run_recipe(run)
    shallow, growth = grown_again(run, recipe, 8)
    trainer = Trainer(
        shallow,
        recipe.optimizer,
        device=torch.device("cpu"),
        precision="fp32",
        micro_batch="auto",
        seed=recipe.seed,
    )
    trainer.grow(4, recipe.growth, 8)
    theirs = trainer.model.state_dict()
    assert growth.model.state_dict().keys() == theirs.keys()
    assert all(
        torch.equal(tensor, theirs[name]) for name, tensor in growth.model.state_dict().items()
    )


def test_the_moments_are_the_models_of_the_run(make_run):
    run = make_run("stack")
    for step, after, depths in ((4, 8, (1, 2, 2, 4)), (8, 12, (2, 4, 4))):
        models = moment_models(run, step)
        assert tuple(each.config.num_hidden_layers for each in models.values()) == depths
        saved = load_model(run / "checkpoints" / f"step-{after:08d}").state_dict()
        name = "next" if after < 12 else "final"
        assert all(torch.equal(t, saved[n]) for n, t in models[name].state_dict().items())


def test_stacking_keeps_the_lower_maps_and_changes_the_upper_ones(make_run):
    first, second = growths_of(make_run("stack"))
    assert [(each.step, each.source_depth, each.depth) for each in (first, second)] == [
        (4, 1, 2),
        (8, 2, 4),
    ]
    assert [each.name for each in first.moments] == ["shallow", "grown", "next", "final"]
    assert [each.name for each in second.moments] == ["shallow", "grown", "next"]
    assert second.moment("final") is second.moments[-1]
    for growth in (first, second):
        grown = growth.moment("grown")
        below, above = (
            grown.divergence[: growth.source_depth],
            grown.divergence[growth.source_depth :],
        )
        assert below == pytest.approx(0, abs=1e-6)
        assert above.min() > 1e-4  # equal weights, other input
        assert grown.is_nearest[: growth.source_depth].all()
        assert not grown.fresh.any()
        later = growth.moment("next")
        assert later.divergence.min() > 1e-6
        assert (later.measures.sentences, later.step) == (3, growth.step + 4)
    assert second.moment("grown").origins.tolist() == [0, 1, 0, 1]
    assert second.new_layers == [2, 3]
    assert first.moment("final").origins.tolist() == [0, 0, 0, 0]
    assert (first.chance, second.chance) == (1 / 2, 1 / 4)


def test_identity_layers_are_fresh_and_held_against_what_stacking_would_have_copied(make_run):
    _, growth = growths_of(make_run("identity-noise"))
    grown = growth.moment("grown")
    assert grown.fresh.tolist() == [False, False, True, True]
    assert growth.new_layers == [2, 3]
    assert grown.origins.tolist() == [0, 1, 0, 1]
    assert grown.divergence[:2] == pytest.approx(0, abs=1e-6)
    assert (growth.outcome[2:] == "fresh").all()
    assert (growth.outcome[:2] != "fresh").all()
    first, _ = growths_of(make_run("identity-noise"))
    assert first.moment("final").fresh.tolist() == [False, True, True, True]


def test_one_growth_can_be_asked_for_and_others_are_refused(make_run):
    run = make_run("stack")
    (only,) = growths_of(run, [8])
    assert only.step == 8
    with pytest.raises(UserError, match="did not grow at step 5; its growths were at: 4, 8"):
        growths_of(run, [5])


def test_a_missing_checkpoint_is_named(make_run, tmp_path):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(make_run("stack"), run)
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    with pytest.raises(UserError, match="no checkpoint after step 4"):
        growths_of(run)


@pytest.mark.parametrize(
    ("operator", "origins", "fresh"),
    [
        ("stack", [0, 1, 0, 1, 0, 1], []),
        ("interleave", [0, 0, 0, 1, 1, 1], []),
        ("identity", [0, 1, 0, 1, 0, 1], [2, 3, 4, 5]),
    ],
)
def test_origins_follow_the_operator(operator, origins, fresh):
    found, is_fresh = origins_of(get_operator(operator).depth_map(2, 6), 2)
    assert found.tolist() == origins
    assert np.flatnonzero(is_fresh).tolist() == fresh


def moment(measures, nearest, fresh=False) -> Moment:
    """Of one layer of four heads that copies layer 0."""
    nearest = np.array([[[0, head] for head in nearest]])
    return Moment("x", 0, measures, np.array([0]), np.array([fresh]), np.zeros((1, 4)), nearest)


def test_heads_are_kept_regained_or_changed(make_run):
    measures = growths_of(make_run("stack"), [8])[0].moments[0].measures
    grown, later = moment(measures, [0, 1, 3, 2]), moment(measures, [0, 3, 2, 1])
    assert outcomes(grown, later).tolist() == [["kept", "changed", "regained", "changed"]]
    assert outcomes(moment(measures, [0, 1, 2, 3], fresh=True), later).tolist() == [["fresh"] * 4]


def test_same_and_nearest_heads_are_picked_from_all():
    heads = np.random.default_rng(0).random((4, 3, 2, 3))
    same = same_heads(heads, np.array([0, 1, 0, 1]))
    for layer, head in np.ndindex(4, 3):
        assert same[layer, head] == heads[layer, head, layer % 2, head]
    heads = heads[:, :2]  # a model of other heads than the shallow one
    nearest = nearest_heads(heads)
    for layer, head in np.ndindex(4, 2):
        assert heads[(layer, head, *nearest[layer, head])] == heads[layer, head].min()


def test_further_copies_are_the_new_layers_wherever_they_stand(make_run):
    _, growth = growths_of(make_run("interleave"))
    assert growth.moment("grown").origins.tolist() == [0, 0, 1, 1]
    assert growth.new_layers == [1, 3]
    # Only the bottom layer still has the input that it had.
    unchanged = growth.moment("grown").divergence.max(axis=1) < 1e-6
    assert unchanged.tolist() == [True, False, False, False]


def test_a_run_is_measured_with_its_growths_and_says_so(make_run):
    from stackbert.attention.measure import measure_attention
    from stackbert.attention.result import AttentionResult
    from stackbert.attention.statements import growth_statements, statements

    result = measure_attention(make_run("stack"), text=SENTENCES)
    assert result.model.name == "stack-run"
    assert [growth.step for growth in result.growths] == [4, 8]
    assert result.growths[0].moment("final").measures.first == pytest.approx(result.measures.first)
    assert statements(result)[2:] == tuple(
        line for growth in result.growths for line in growth_statements(growth)
    )
    again = AttentionResult.from_json(result.to_json())
    assert again.to_json() == result.to_json()
    assert again.growths[1].moment("grown").fresh.dtype == np.bool_
    first = growth_statements(again.growths[1])
    counts = [int(word) for word in first[1].split() if word.isdigit()]
    assert counts[0] == 4
    assert sum(counts[1:4]) == 4
