"""Growth: the moments are the run's own models; what is copied, fresh and kept is told right."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from stackbert.attention.growth import find_runs, grown_again, outcomes
from stackbert.attention.measure import measure_attention
from stackbert.attention.statements import growth_groups, statements
from stackbert.attention.subject import load_encoder
from stackbert.errors import UserError
from stackbert.pretraining.record import read_run
from stackbert.pretraining.trainer import Trainer
from stackbert.progress import Progress

OPERATORS = ("stack", "identity-noise", "interleave")  # of `found`, in this order


def heads_at(found, growth, moment):
    heads = found.growth_heads
    return heads[(heads["growth"] == growth) & (heads["moment"] == moment)]


def by_layer(heads, name):
    return heads.groupby("layer")[name].first().tolist()


def test_the_grown_model_is_the_one_that_the_run_had(make_run):
    run = make_run("identity-noise")
    recipe = read_run(run).recipe
    shallow = load_encoder(run / "checkpoints" / "step-00000008")
    trainer = Trainer(shallow, recipe, device=torch.device("cpu"))
    again = grown_again(shallow, recipe, 8).model.state_dict()
    trainer.grow(4, 8)
    theirs = trainer.model.state_dict()
    assert again.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in again.items())


def test_every_growth_of_every_run_has_its_moments(found):
    growths = found.growths
    assert growths["moment"].tolist() == ["shallow", "grown", "next"] * 6
    assert growths.groupby("growth", sort=False)["run"].first().tolist() == [
        operator for operator in OPERATORS for _ in range(2)
    ]
    for number, (step, depth) in enumerate([(4, 1), (8, 2)] * 3):
        rows = growths[growths["growth"] == number]
        assert rows["step"].tolist() == [step, step, step + 4]
        assert set(rows["source_depth"]) == {depth}
        assert set(rows["depth"]) == {2 * depth}


def test_the_last_growth_ends_with_the_final_model(found):
    last = heads_at(found, 1, "next")
    final = found.heads_of("measured")
    assert last["entropy"].tolist() == final["entropy"].tolist()
    # The first growth ends where the second begins.
    assert heads_at(found, 0, "next")["first"].tolist() == pytest.approx(
        heads_at(found, 1, "shallow")["first"].tolist()
    )


def test_stacking_keeps_the_lower_maps_and_changes_the_upper_ones(found):
    grown = heads_at(found, 1, "grown")
    assert by_layer(grown, "source") == [1, 2, 1, 2]
    assert by_layer(grown, "new") == [False, False, True, True]
    assert not grown["fresh"].any()
    lower = ~grown["new"]
    assert grown[lower]["divergence"].max() < 1e-6
    assert grown[lower]["source_is_nearest"].all()
    assert grown[~lower]["divergence"].min() > 1e-4  # equal weights, other input
    assert heads_at(found, 1, "next")["divergence"].min() > 1e-6


def test_identity_layers_are_fresh_and_compared_with_what_stacking_would_have_copied(found):
    grown = heads_at(found, 3, "grown")
    assert by_layer(grown, "fresh") == [False, False, True, True]
    assert by_layer(grown, "source") == [1, 2, 1, 2]
    later = heads_at(found, 3, "next")
    assert set(later[later["fresh"]]["outcome"]) == {"fresh"}
    assert "fresh" not in set(later[~later["fresh"]]["outcome"])
    row = found.growths.query("growth == 3 and moment == 'next'").iloc[0]
    assert (row["kept"], row["regained"], row["changed"]) == (0, 0, 0)
    assert np.isnan(row["source_is_nearest"])


def test_further_copies_are_the_new_layers_wherever_they_stand(found):
    grown = heads_at(found, 5, "grown")
    assert by_layer(grown, "source") == [1, 1, 2, 2]
    assert by_layer(grown, "new") == [False, True, False, True]
    # Only the bottom layer still has the input that it had.
    unchanged = grown.groupby("layer")["divergence"].max() < 1e-6
    assert unchanged.tolist() == [True, False, False, False]


def test_the_table_has_means_over_the_heads_of_the_new_layers(found):
    later = heads_at(found, 1, "next")
    new = later[later["new"]]
    row = found.growths.query("growth == 1 and moment == 'next'").iloc[0]
    assert row["heads"] == 4
    for name in ("divergence", "source_is_nearest", "within_4", "first"):
        assert row[name] == pytest.approx(new[name].mean())
    assert row["kept"] + row["regained"] + row["changed"] == 4
    assert row["kept"] == (new["outcome"] == "kept").sum()


def test_maps_of_the_shortest_example_are_kept_at_every_moment(found):
    length = len(found.examples[found.shortest])
    for growth, depths in ((0, (1, 2, 2)), (3, (2, 4, 4))):
        for moment, depth in zip(("shallow", "grown", "next"), depths, strict=True):
            maps = found.arrays[f"growth_{growth}_{moment}"]
            assert maps.shape == (depth, 2, length, length)
            assert np.allclose(maps.sum(-1, dtype=np.float32), 1, atol=0.02)
    # The first stage knows of no operator.
    start = [found.arrays[f"growth_{growth}_shallow"] for growth in (0, 2, 4)]
    assert all(np.array_equal(start[0], each) for each in start[1:])


def test_heads_are_kept_regained_or_changed():
    grown, later = (
        pd.DataFrame({"fresh": [False] * 4 + [True], "source_is_nearest": nearest})
        for nearest in ([True, True, False, False, True], [True, False, True, False, True])
    )
    assert outcomes(grown, later) == ["kept", "changed", "regained", "changed", "fresh"]


def test_growths_compare_where_depths_and_heads_are_the_same(found):
    assert [set(group["growth"]) for group in growth_groups(found)] == [{0, 2, 4}, {1, 3, 5}]
    other = found.growths.assign(heads_per_layer=np.where(found.growths["growth"] == 3, 4, 2))
    groups = growth_groups(found.model_copy(update={"growths": other}))
    assert [set(group["growth"]) for group in groups] == [{0, 2, 4}, {1, 5}, {3}]


def test_every_growth_has_its_sentences(found):
    said = statements(found)
    for operator in OPERATORS:
        assert sum(line.startswith(f"Growth by {operator} from ") for line in said) == 2
    assert len(said) == 2 + 2 * (3 + 2)  # of fresh heads nothing is kept


def test_runs_are_called_by_operators_or_else_by_folders(make_run, tmp_path):
    run, elsewhere = make_run("stack"), tmp_path / "elsewhere"
    shutil.copytree(run, elsewhere)
    assert list(find_runs(run, [make_run("identity-noise")])) == ["stack", "identity-noise"]
    assert list(find_runs(run, [elsewhere])) == [f"stack in {run}", f"stack in {elsewhere}"]
    assert find_runs(tmp_path, []) == {}


def test_what_cannot_be_compared_is_refused_before_anything_is_measured(
    make_run, make_model, save, tmp_path
):
    class Heard(Progress):
        def say(self, text: str) -> None:
            raise AssertionError(text)

    run, names = make_run("stack"), ("partial", "foreign", "unfinished", "level")
    partial, foreign, unfinished, level = (tmp_path / name for name in names)
    for folder in (partial, foreign, unfinished, level):
        shutil.copytree(make_run("identity-noise"), folder)
    record = read_run(level)
    single = record.recipe.model_copy(update={"stages": record.recipe.stages[-1:]})
    record.model_copy(update={"recipe": single}).write(level / "run.json")
    shutil.rmtree(partial / "checkpoints" / "step-00000004")
    shutil.rmtree(unfinished / "model")
    model = save(make_model())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / name, foreign / "model" / name)
    for says, first, other in (
        ("never grew", run, level),
        ("never grew", level, run),
        ("no checkpoint after step 4", run, partial),
        ("is not finished", run, unfinished),
        ("is not a run directory", run, model),
        ("only be compared with those of a run", model, run),
        ("different vocabularies", run, foreign),
    ):
        with pytest.raises(UserError, match=says):
            measure_attention(first, text=["w"], beside=[other], progress=Heard())
