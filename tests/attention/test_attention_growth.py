"""Growth: the moments are the run's own models; sources are told right and drawn."""

import json
import shutil

import pytest
import torch

from stackbert.attention.growth import grown_again
from stackbert.attention.measure import measure_attention
from stackbert.attention.statements import growth_table, statements
from stackbert.errors import UserError
from stackbert.model_files import open_encoder
from stackbert.pretraining.record import read_run
from stackbert.pretraining.trainer import Trainer
from stackbert.progress import Progress
from stackbert.reports import attention
from stackbert.reports.page import Chart, Table

OPERATORS = ("stack", "identity-noise", "interleave")  # of `found`, in this order


def heads_at(found, growth, moment):
    heads = found.growth_heads
    return heads[(heads["growth"] == growth) & (heads["moment"] == moment)]


def by_layer(heads, name):
    return heads.groupby("layer")[name].first().tolist()


def test_the_grown_model_is_the_one_that_the_run_had(make_run):
    run = make_run("identity-noise")
    recipe = read_run(run).recipe
    shallow = open_encoder(run / "checkpoints" / "step-00000008")
    trainer = Trainer(shallow, recipe, device=torch.device("cpu"))
    again = grown_again(shallow, recipe, 8).model.state_dict()
    trainer.grow(4, 8)
    theirs = trainer.model.state_dict()
    assert again.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in again.items())


def test_every_growth_of_every_run_has_its_moments(found):
    table = growth_table(found)
    assert table["moment"].tolist() == ["shallow", "grown", "next"] * 6
    assert table["run"].unique().tolist() == list(OPERATORS)
    assert table["step"].tolist() == [4, 4, 8, 8, 8, 12] * 3
    assert table["depth"].tolist() == [2, 2, 2, 4, 4, 4] * 3
    last, final = heads_at(found, 1, "next"), found.heads_of()
    assert last["entropy"].tolist() == final["entropy"].tolist()


@pytest.mark.parametrize(
    ("growth", "source", "new"),
    [
        (1, [1, 2, 1, 2], [False, False, True, True]),
        (3, [1, 2, 1, 2], [False, False, True, True]),  # as stacking would have copied
        (5, [1, 1, 2, 2], [False, True, False, True]),
    ],
)
def test_each_layer_is_compared_with_its_source(growth, source, new, found):
    grown = heads_at(found, growth, "grown")
    assert by_layer(grown, "source") == source
    assert by_layer(grown, "new") == new
    fresh = grown["new"] & (growth == 3)
    assert grown["source_is_nearest"].isna().tolist() == fresh.tolist()


def test_growth_changes_the_maps_of_layers_whose_input_it_changes(found):
    for growth, unchanged in ((1, [True, True, False, False]), (5, [True, False, False, False])):
        grown = heads_at(found, growth, "grown")
        same = grown.groupby("layer")["divergence"].max() < 1e-6
        assert same.tolist() == unchanged
        assert grown.loc[grown["layer"] == 1, "source_is_nearest"].all()
    assert heads_at(found, 1, "next")["divergence"].min() > 1e-6


def test_the_table_and_the_sentences_are_of_the_heads_of_new_layers(found):
    later = heads_at(found, 1, "next")
    new = later[later["new"]]
    row = growth_table(found).query("growth == 1 and moment == 'next'").iloc[0]
    for name in ("divergence", "source_is_nearest", "within_4", "first"):
        assert row[name] == pytest.approx(new[name].mean())
    assert row["pattern"] == pytest.approx(new["class"].isin(["local", "[CLS]", "mixed"]).mean())
    said = [line for line in statements(found) if line.startswith("Growth by ")]
    assert len(said) == 6
    assert f"and by {row['divergence']:.3f} at the end" in said[1]
    assert [" the copies." in line for line in said] == [True] * 2 + [False] * 2 + [True] * 2


def test_what_cannot_be_compared_is_refused_before_measuring(make_run, make_model, save, tmp_path):
    class Heard(Progress):
        def say(self, text: str) -> None:
            raise AssertionError(text)

    run, names = make_run("stack"), ("partial", "foreign", "unfinished")
    partial, foreign, unfinished = (tmp_path / name for name in names)
    for folder in (partial, foreign, unfinished):
        shutil.copytree(make_run("identity-noise"), folder)
    shutil.rmtree(partial / "checkpoints" / "step-00000004")
    shutil.rmtree(unfinished / "model")
    model = save(make_model())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / name, foreign / "model" / name)
    for says, other in (
        ("no checkpoint after step 4", partial),
        ("has no model/ yet", unfinished),
        ("is not a run directory", model),
        ("different vocabularies", foreign),
    ):
        with pytest.raises(UserError, match=says):
            measure_attention(run, text=["w"], beside=[other], progress=Heard())


def rows_of(spec):
    """The rows of a figure's data that hold maps."""
    (rows,) = [rows for rows in spec["datasets"].values() if "weights" in rows[0]]
    return rows


def test_growths_are_drawn_moment_by_moment(found):
    rows = rows_of(attention.growth_maps(found, [1, 3, 5]))
    moments = list(dict.fromkeys(row["row"] for row in rows))
    names = ("shallow", "right after growing", "end of next stage")
    assert moments[:3] == [f"stack: {name}" for name in names]
    assert len(moments) == 3 * 3
    for row in rows:
        run, source = row["row"].split(":")[0], int(row["column"].split()[3].rstrip(","))
        # Where the highest copy of a layer is; a fresh layer stands for stacking's copy.
        layer = {"stack": source + 2, "identity-noise": source + 2, "interleave": 2 * source}[run]
        assert row["layer"] == (source if row["row"].endswith("shallow") else layer)


def test_the_page_says_what_was_found_and_draws_it(found, tmp_path):
    found.save(tmp_path)
    page = attention.page(tmp_path)
    assert page.verdict[1:] == tuple(statements(found))
    charts = [part for part in page.parts if isinstance(part, Chart)]
    assert len(charts) == 4
    json.dumps([chart.spec for chart in charts])
    tables = {part.title: part.frame for part in page.parts if isinstance(part, Table)}
    assert len(tables["Across growth"]) == 18
    assert tables["Across growth"]["moment"][1] == "right after growing"
