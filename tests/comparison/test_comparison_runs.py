"""Comparisons of tiny models, trained for real."""

import re
import runpy
import shutil
from pathlib import Path

import pytest
from comparison_helpers import refusal, scratch_of, tiny_recipe

import stackbert.comparison.compare
from stackbert.comparison import statistics
from stackbert.comparison.compare import Comparison, compare, read_comparison
from stackbert.comparison.results import COMPARISON
from stackbert.comparison.statistics import final_losses
from stackbert.corpus.store import Corpus
from stackbert.errors import Interrupted, RunError
from stackbert.pretraining.ledger import read_ledger
from stackbert.pretraining.record import read_run
from stackbert.reports import comparison as comparison_report
from stackbert.reports.page import render


def ask(folder: Path, corpus: Corpus, **options: object) -> Comparison:
    asked = {"variants": ["stack"], "seeds": 1, "budget": "30steps", **options}
    return compare(tiny_recipe(), corpus=corpus, out=folder, **asked)


@pytest.fixture
def copied(referee, tmp_path: Path) -> Path:
    return shutil.copytree(referee[0], tmp_path / "comparison")


def test_planted_arms_are_found_to_be_what_they_are(referee) -> None:
    folder, comparison = referee
    same = final_losses(comparison.results, "same")
    assert same == {0: final_losses(comparison.results, "scratch")[0]}  # to the bit
    found = statistics.standings(comparison.results).set_index("variant")["outcome"].to_dict()
    assert found == {"scratch": "", "same": "one seed", "half": "worse"}
    standings = comparison.standings()
    assert set(standings["outcome"]) == {"plateau"}  # these models know too little to be judged
    assert "shows nothing" in comparison.verdict()[0]
    assert list(standings["tokens"]) == [30 * 512, 30 * 512, 15 * 512]
    assert list(standings["tokens_a_parameter"]) == list(standings["tokens"] / 4000)
    (diverged,) = comparison.missing()
    assert diverged.startswith("diverging, 1, seed 0: not finished (")
    assert str(folder) not in diverged
    assert any(diverged in sentence for sentence in comparison.verdict())


def test_every_run_learns_fills_its_budget_decays_and_keeps_its_model(referee) -> None:
    folder, comparison = referee
    for run in comparison.runs[comparison.runs["missing"] == ""].itertuples():
        place = folder / "runs" / run.folder
        recipe, ledger = read_run(place).recipe, read_ledger(place)
        assert recipe.total_steps == round(30 * run.fraction)
        assert ledger["lr"].dropna().iloc[-1] < 0.1 * recipe.optimizer.lr
        assert (place / "model" / "model.safetensors").is_file()
        assert not (place / "checkpoints").exists()
    for _, own in comparison.results.groupby(["variant", "fraction", "seed"]):
        assert own["loss"].iloc[-1] < own["loss"].iloc[0] - 0.3


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
        (runs[1].parent / f"{runs[1].name}.log").write_text(f"stackbert: Stopped in {runs[1]}. So.")
        raise Interrupted("Stopped.", 15)

    asked = {"variants": ["depth-2"], "seeds": 2, "budget": "6steps"}
    monkeypatch.setattr("stackbert.comparison.compare.train_all", stopping)
    with pytest.raises(Interrupted):
        ask(tmp_path, factbook_corpus, **asked)
    stopped = read_comparison(tmp_path)
    first, *others = stopped.missing()
    assert re.fullmatch(r"depth-2, 1, seed 0: not finished \(Stopped in depth-2-.*\)", first)
    rest = "1, seed 1: not finished (not begun)"
    assert others == [f"scratch, {rest}", f"depth-2, {rest}"]
    assert list(final_losses(stopped.results, "scratch")) == [0]

    monkeypatch.setattr("stackbert.comparison.compare.train_all", train_all)
    resumed = ask(tmp_path, factbook_corpus, **asked)
    assert len(fast) == 4
    assert resumed.missing() == []


def test_what_is_added_brings_its_controls_and_reuses_what_is_there(
    copied: Path, factbook_corpus: Corpus, referee, fast: list[str]
) -> None:
    more = ask(copied, factbook_corpus, keep_checkpoints=True)
    assert fast == [f"{name}-100-seed0" for name in ("depth-1", "depth-2", "stack")]
    assert (copied / "runs" / "stack-100-seed0" / "checkpoints").is_dir()
    assert final_losses(more.results, "scratch") == final_losses(referee[1].results, "scratch")
    old, new = referee[1].reference.by_kind, more.reference.by_kind
    assert {kind.depth for kind in new} == {1, 2, 4}
    assert all(new[kind] == row for kind, row in old.items())
    main = more.curves().groupby("run")["main"].first()
    assert main.sum() == 6
    assert main["stack, seed 0, 1 of the budget"]
    assert not main["scratch, seed 1, 1 of the budget"]


@pytest.mark.parametrize(
    ("options", "named"),
    [({"budget": "60steps"}, ["30steps", "60steps"]), ({"variants": ["half.yaml"]}, ["'half'"])],
)
def test_a_changed_request_is_refused_with_the_fields_that_differ(
    options, named, referee, factbook_corpus: Corpus, fast: list[str], tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("half.yaml").write_text("half: {stages: [{depth: 2, steps: 1}, {depth: 4, steps: 1}]}")
    sentence = refusal(lambda: ask(referee[0], factbook_corpus, **options))
    assert [word for word in named if word not in sentence] == []


def test_a_wrong_option_is_refused_before_anything_is_written(
    tmp_path: Path, factbook_corpus: Corpus, fast: list[str]
) -> None:
    for options in ({"budget": "2steps"}, {"budget": "30steps,1m"}, {"variants": ["stak"]}):
        refusal(lambda options=options: ask(tmp_path, factbook_corpus, **options))
    assert not (tmp_path / COMPARISON).exists()
    assert fast == []


def test_a_foreign_folder_or_one_depth_is_refused(tmp_path: Path, factbook_corpus: Corpus) -> None:
    (tmp_path / "thesis.tex").touch()
    recipe = scratch_of(tiny_recipe())
    assert "one depth" in refusal(lambda: compare(recipe, corpus=factbook_corpus, out=tmp_path))
    assert "thesis.tex" in refusal(lambda: ask(tmp_path, factbook_corpus))
    assert "not a comparison" in refusal(lambda: read_comparison(tmp_path))


def test_each_variant_takes_its_own_best_learning_rate_of_the_smallest_budget(
    tmp_path: Path, factbook_corpus: Corpus, fast: list[str]
) -> None:
    asked = {"variants": ["depth-1@1e-6", "depth-1@2"], "budget": "6steps,12steps", "seeds": 2}
    found = ask(tmp_path, factbook_corpus, **asked, learning_rates=(1.0, 1e-6))
    trials = "scratch-50-seed0-rate1e-06 scratch-50-seed0 depth-1-50-seed0-rate1e-06"
    assert fast[:4] == [*trials.split(), "depth-1-50-seed0-rate2"]
    assert len(fast) == 4 + 2 * 3  # the winner of the trials is a variant's first seed
    assert found.rates == {"scratch": 1.0, "depth-1": 2.0}
    assert found.tried.groupby("variant")["loss"].idxmin().index.tolist() == ["depth-1", "scratch"]
    assert "one beyond may be better: depth-1 (2), scratch (1)" in " ".join(found.verdict())
    assert sorted(found.standings()["fraction"]) == [0.5, 1.0, 1.0]
    for run in found.runs[found.runs["fraction"] == 1.0].itertuples():
        lr = read_run(tmp_path / "runs" / run.folder).recipe.optimizer.lr
        assert lr == pytest.approx(0.01 * found.rates[run.variant])
    page = comparison_report.page(tmp_path)
    parts = {part.title: part for part in page.parts}
    assert page.verdict == tuple(found.verdict())
    points = max(parts["Final loss over the budget"].spec["datasets"].values(), key=len)
    ends = {(name, steps) for name in ("scratch", "depth-1") for steps in (6.0, 12.0)}
    assert {(row["group"], row["steps"]) for row in points} == ends
    assert {"Loss", "Final loss", "What a run spent", "Learning rates that were tried"} <= {*parts}
    assert "tokens a parameter" in render([page])


def test_a_comparison_of_which_no_run_can_be_trained_fails(
    tmp_path: Path, factbook_corpus: Corpus, fast: list[str]
) -> None:
    recipe = tiny_recipe(optimizer__lr=1e12)
    options = {"corpus": factbook_corpus, "out": tmp_path, "budget": "9steps", "seeds": 1}
    with pytest.raises(RunError, match=r"No run could be trained\. scratch-100-seed0"):
        compare(recipe, variants=[], **options)
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
        runs = read_comparison(tmp_path / name).runs.set_index("variant")["stages"]
        assert runs["scratch"] == f"{depths[1]}:8"
        assert runs["switch-0.75"] == f"{depths[0]}:6, {depths[1]}:2"
