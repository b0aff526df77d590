"""Comparisons of tiny models, trained for real: the referee is refereed."""

import re
import runpy
import shutil
from pathlib import Path

import pytest
from comparison_helpers import refusal, scratch_of, tiny_recipe

import stackbert.comparison.compare
from stackbert.comparison.compare import Comparison, compare, read_comparison
from stackbert.comparison.results import COMPARISON
from stackbert.comparison.statistics import losses
from stackbert.corpus.store import Corpus
from stackbert.errors import Interrupted, RunError
from stackbert.pretraining.ledger import read_ledger
from stackbert.pretraining.run import read_run


def ask(folder: Path, corpus: Corpus, **options: object) -> Comparison:
    asked = {"variants": ["stack"], "seeds": 1, "budget": "30steps", **options}
    return compare(tiny_recipe(), corpus=corpus, out=folder, **asked)


@pytest.fixture
def copied(referee, tmp_path: Path) -> Path:
    """A copy of the finished comparison that a test may resume."""
    return shutil.copytree(referee[0], tmp_path / "comparison")


def test_a_variant_equal_to_scratch_has_its_losses_to_the_bit(referee) -> None:
    results = referee[1].results
    assert losses(results, "same") == {0: losses(results, "scratch")[0]}


def test_a_variant_with_half_of_the_budget_is_worse(referee) -> None:
    standings = referee[1].standings().set_index("variant")
    assert list(standings.index) == ["scratch", "same", "half"]
    assert list(standings["outcome"]) == ["", "one seed", "worse"]
    assert standings.loc["half", "fraction"] == 0.5
    assert standings.loc["half", "pairs"] == 3


def test_a_variant_that_diverges_is_named_and_stops_no_other(referee) -> None:
    (missing,) = referee[1].missing()
    assert missing.startswith("diverging, 1, seed 0: not finished (")
    assert str(referee[0]) not in missing
    assert any(missing in sentence for sentence in referee[1].verdict())
    assert len(referee[1].runs) == 3 + 1 + 3 + 1


def test_every_run_learns_fills_its_budget_and_decays_over_its_own_length(referee) -> None:
    folder, comparison = referee
    runs = comparison.runs[comparison.runs["missing"] == ""]
    for run in runs.itertuples():
        place = folder / "runs" / run.folder
        recipe, ledger = read_run(place).recipe, read_ledger(place)
        assert recipe.total_steps == round(30 * run.fraction)
        assert ledger["lr"].dropna().iloc[-1] < 0.1 * recipe.optimizer.lr
    for _, own in comparison.results.groupby(["variant", "fraction", "seed"]):
        assert own["loss"].iloc[-1] < own["loss"].iloc[0] - 0.3


def test_a_finished_run_keeps_its_model_and_no_checkpoint(referee) -> None:
    folder, comparison = referee
    for run in comparison.runs[comparison.runs["missing"] == ""].itertuples():
        place = folder / "runs" / run.folder
        assert (place / "model" / "model.safetensors").is_file()
        assert not (place / "checkpoints").exists()


def test_the_same_call_again_trains_nothing_even_without_the_runs_folders(
    copied: Path, factbook_corpus: Corpus, referee, fast: list[str]
) -> None:
    shutil.rmtree(copied / "runs")
    again = ask(copied, factbook_corpus, variants=["scratch"], seeds=3)
    assert fast == []
    assert again.results.equals(referee[1].results)
    assert read_comparison(copied).results.equals(referee[1].results)


def test_a_stopped_comparison_names_what_is_missing_and_resumes(
    tmp_path: Path, factbook_corpus: Corpus, fast: list[str], monkeypatch
) -> None:
    train_all = stackbert.comparison.compare.train_all

    def stopping(runs, corpus, **options):
        yield from train_all(runs[:1], corpus, **options)
        runs[1].with_name(runs[1].name + ".log").write_text(f"stackbert: Stopped in {runs[1]}. So.")
        raise Interrupted("Stopped.", 15)

    monkeypatch.setattr("stackbert.comparison.compare.train_all", stopping)
    with pytest.raises(Interrupted):
        ask(tmp_path, factbook_corpus, seeds=2, budget="6steps")
    stopped = read_comparison(tmp_path)
    first, *others = stopped.missing()
    assert re.fullmatch(r"stack, 1, seed 0: not finished \(Stopped in stack-100-seed0\)", first)
    assert others == [
        "scratch, 1, seed 1: not finished (not begun)",
        "stack, 1, seed 1: not finished (not begun)",
    ]
    assert list(losses(stopped.results, "scratch")) == [0]

    monkeypatch.setattr("stackbert.comparison.compare.train_all", train_all)
    resumed = ask(tmp_path, factbook_corpus, seeds=2, budget="6steps")
    assert len(fast) == 4
    assert resumed.missing() == []
    assert list(resumed.results["variant"].unique()) == ["scratch", "stack"]


def test_what_is_added_reuses_what_is_there_and_marks_its_growths(
    copied: Path, factbook_corpus: Corpus, referee, fast: list[str]
) -> None:
    more = ask(copied, factbook_corpus, keep_checkpoints=True)
    (name,) = fast
    assert name == "stack-100-seed0"
    assert (copied / "runs" / name / "checkpoints").is_dir()
    assert losses(more.results, "scratch") == losses(referee[1].results, "scratch")
    old, new = referee[1].reference.by_kind, more.reference.by_kind
    assert {kind.depth for kind in new} == {1, 2, 4}
    assert all(new[kind] == row for kind, row in old.items())

    ledger = read_ledger(copied / "runs" / name)
    grown = ledger[ledger["kind"] == "growth"]
    found = more.growths()
    assert list(found["step"]) == list(grown["step"]) == [10, 20]
    assert list(found["source_depth"]) == [1, 2]
    assert list(found["target_depth"]) == [2, 4]
    assert list(found["before"]) == list(grown["loss_before"])
    assert list(found["after"]) == list(grown["loss_after"])
    assert found["variant"].unique().tolist() == ["stack"]
    main = more.curves().groupby("run")["main"].first()
    assert main.sum() == 4
    assert main["stack, seed 0, 1 of the budget"]
    assert not main["scratch, seed 1, 1 of the budget"]
    assert more.differences().set_index("variant").loc["stack", "stages"] == "1:40, 2:40, 4:40"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"budget": "60steps"}, ["budget", "30steps", "60steps"]),
        ({"budget": None}, ["budget", "30steps"]),
        ({"jobs": 2}, ["jobs"]),
        ({"learning_rates": (0.5, 1.0)}, ["learning_rates"]),
        ({"steps": 60}, ["recipe.stages.0.steps"]),
    ],
)
def test_a_changed_request_is_refused_with_the_fields_that_differ(
    options, named, referee, factbook_corpus: Corpus, fast: list[str]
) -> None:
    sentence = refusal(lambda: ask(referee[0], factbook_corpus, **options))
    assert [word for word in [*named, str(referee[0])] if word not in sentence] == []


def test_a_variant_that_was_changed_is_not_taken_for_the_one_of_its_name(
    copied: Path, factbook_corpus: Corpus, tmp_path: Path, fast: list[str]
) -> None:
    changed = tmp_path / "changed.yaml"
    changed.write_text("half: {stages: [{depth: 2, steps: 60}, {depth: 4, steps: 60}]}")
    assert "'half'" in refusal(lambda: ask(copied, factbook_corpus, variants=[str(changed)]))


@pytest.mark.parametrize(
    "options",
    [
        {"seeds": 0},
        {"jobs": 0},
        {"learning_rates": ()},
        {"learning_rates": (0.0,)},
        {"fractions": ()},
        {"budget": "soon"},
        {"budget": "2steps"},
        {"variants": ["stak"]},
        {"corpus": "nowhere"},
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_written(
    options, tmp_path: Path, factbook_corpus: Corpus, fast: list[str]
) -> None:
    out = tmp_path / "comparison"
    refusal(lambda: ask(out, options.pop("corpus", factbook_corpus), **options))
    assert not (out / COMPARISON).exists()
    assert fast == []


def test_a_foreign_folder_and_a_recipe_without_growth_are_refused(
    tmp_path: Path, factbook_corpus: Corpus
) -> None:
    (tmp_path / "thesis.tex").touch()
    recipe = scratch_of(tiny_recipe())
    assert "one depth" in refusal(lambda: compare(recipe, corpus=factbook_corpus, out=tmp_path))
    assert "thesis.tex" in refusal(lambda: ask(tmp_path, factbook_corpus))
    assert "not a comparison" in refusal(lambda: read_comparison(tmp_path))


def test_scratch_tries_the_learning_rates_and_all_take_its_best(
    tmp_path: Path, factbook_corpus: Corpus, fast: list[str]
) -> None:
    found = ask(tmp_path, factbook_corpus, learning_rates=(1.0, 1e-6), budget="6steps", seeds=2)
    assert len(fast) == 2 + 3  # the better of two trials is scratch's first seed
    assert found.tried["loss"].is_monotonic_decreasing
    assert found.learning_rate == 1.0
    assert any("edge of those tried" in sentence for sentence in found.verdict())
    chosen = found.runs[found.runs["learning_rate"] == 1.0]
    assert list(chosen["variant"]) == ["scratch", "stack", "scratch", "stack"]
    assert losses(found.results, "scratch")[0] == found.tried["loss"].min()
    for name in chosen["folder"]:
        assert read_run(tmp_path / "runs" / name).recipe.optimizer.lr == 1e-2


def test_a_comparison_of_which_no_run_can_be_trained_fails(
    tmp_path: Path, factbook_corpus: Corpus, fast: list[str]
) -> None:
    recipe = tiny_recipe(optimizer__lr=1e12)
    with pytest.raises(RunError, match=r"No run could be trained\. scratch-100-seed0"):
        compare(recipe, corpus=factbook_corpus, out=tmp_path, budget="9steps", seeds=1)
    (only,) = read_comparison(tmp_path).verdict()
    assert "Scratch has no finished run" in only


def test_when_to_switch_is_answered_for_every_growth(
    tmp_path: Path, factbook_corpus: Corpus, fast: list[str]
) -> None:
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "when_to_switch.py"))
    table = example["when_to_switch"](
        tiny_recipe(), corpus=factbook_corpus.folder, out=tmp_path, shares=[0.75], budget="8steps"
    )
    assert list(table["layers"]) == ["1 → 2", "2 → 4"]
    assert list(table["share"]) == [0.75, 0.75]
    assert table["difference"].to_numpy() == pytest.approx(table["loss"] - table["scratch"])
    for name, depths in (("1-to-2", [1, 2]), ("2-to-4", [2, 4])):
        comparison = read_comparison(tmp_path / name)
        runs = comparison.runs.set_index("variant")["stages"]
        assert runs["scratch"] == f"{depths[1]}:8"
        assert runs["switch-0.75"] == f"{depths[0]}:6, {depths[1]}:2"
