"""Comparisons of tiny models, trained for real: the referee is refereed."""

import math
import os
import shutil
from pathlib import Path

import pytest
from comparison_helpers import (
    BUDGET,
    STEPS,
    STOPPED_AT,
    command_line,
    ledger,
    refusal,
    tiny_recipe,
)

import stackbert as sb
from stackbert.comparison.folder import read_record
from stackbert.comparison.processes import Task, run_all, threads_each
from stackbert.comparison.report_page import comparison_page
from stackbert.comparison.runs import is_finished
from stackbert.comparison.variants import scratch_of
from stackbert.comparison.verdict import judge
from stackbert.errors import RunError
from stackbert.pretraining.ledger import LEDGER

needs_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="processes cannot be kept on one core here"
)


def compare(folder: Path, corpus: sb.Corpus, **options: object) -> sb.Results:
    asked = {"variants": ["stack"], "seeds": 1, "budget": BUDGET, **options}
    return sb.compare(tiny_recipe(), corpus=corpus, out=folder, **asked)


def written(folder: Path) -> dict[str, int]:
    """When the ledger of each run was last written."""
    return {
        path.parent.name: path.stat().st_mtime_ns for path in (folder / "runs").glob(f"*/{LEDGER}")
    }


@pytest.fixture
def copied(referee: sb.Results, tmp_path: Path) -> Path:
    """A copy of the finished comparison that a test may go on with."""
    return shutil.copytree(referee.folder, tmp_path / "comparison")


def test_a_variant_equal_to_scratch_is_no_different(referee: sb.Results) -> None:
    (same,) = [s for s in judge(referee).standings if s.variant == "same"]
    assert same.outcome == "no difference"
    assert same.difference.number == 2
    # They are not scratch's own runs, found by their hash and looked at twice.
    keys = {entry.variant: entry.key for entry in referee.record.entries if entry.seed == 0}
    assert keys["same"] != keys["scratch"]
    scratch = referee.losses("scratch")
    assert referee.losses("same") == {seed: scratch[seed] for seed in (0, 1)}


def test_a_variant_with_half_of_the_budget_is_worse(referee: sb.Results) -> None:
    (half,) = [s for s in judge(referee).standings if s.variant == "half"]
    assert half.fraction == 0.5
    assert half.outcome == "worse"
    assert half.difference.number == 3
    # The recipe learns: the loss that is compared is not that of the first step.
    for run in referee.runs:
        assert run.loss < run.points[0].loss - 0.3


def test_seeds_are_different_runs(referee: sb.Results) -> None:
    assert len(set(referee.losses("scratch").values())) == 3


def test_a_variant_that_diverges_is_named_and_stops_no_other(referee: sb.Results) -> None:
    (missing,) = referee.missing
    assert "diverging" in missing
    assert "not finite" in missing
    assert any("diverging" in sentence for sentence in judge(referee).sentences)
    assert len(referee.runs) == 9


def test_a_run_that_two_variants_share_is_made_once(referee: sb.Results) -> None:
    twin, scratch = referee.first("twin"), referee.first("scratch")
    assert twin is not None
    assert scratch is not None
    assert twin.folder == scratch.folder
    assert len(written(referee.folder)) == 9  # eight, and the one that diverged


def test_every_run_fills_its_budget_and_decays_over_its_own_length(referee: sb.Results) -> None:
    for run in referee.runs:
        steps = round(STEPS * run.fraction)
        assert run.recipe.total_steps == run.points[-1].steps == steps
        assert run.recipe.schedule.warmup_steps == round(6 * run.fraction)
        last = [row["lr"] for row in sb.read_ledger(run.folder) if row["kind"] == "step"][-1]
        assert last < 0.03 * run.recipe.optimizer.lr


def test_the_table_counts_the_tokens_and_flops_that_the_runs_count(referee: sb.Results) -> None:
    for run in referee.runs:
        rows = [row for row in sb.read_ledger(run.folder) if row["kind"] == "evaluation"]
        assert run.points[-1].tokens == rows[-1]["tokens"]
        assert run.points[-1].flops == pytest.approx(rows[-1]["flops"], rel=1e-6)
        seconds = referee.record.reference.cost(run.recipe, "seconds")
        assert run.points[-1].seconds == pytest.approx(seconds)
        assert run.loss == rows[-1]["loss"]


def test_a_finished_run_keeps_its_model_and_no_checkpoint(referee: sb.Results) -> None:
    for run in referee.runs:
        assert (run.folder / "model" / "model.safetensors").is_file()
        assert not (run.folder / "checkpoints").exists()


def test_a_comparison_that_ends_on_the_plateau_says_so(referee: sb.Results) -> None:
    # Some hundred steps of a tiny model learn word frequencies and no more.
    verdict = judge(referee)
    assert verdict.on_plateau
    assert "shows nothing" in verdict.sentences[0]


def test_the_same_call_again_makes_no_run_again(
    copied: Path, factbook_corpus: sb.Corpus, referee: sb.Results, referee_file: Path
) -> None:
    before = written(copied)
    variants = copied.parent / "finished.yaml"
    variants.write_text(referee_file.read_text().partition("diverging")[0])
    said: list[str] = []
    again = compare(copied, factbook_corpus, variants=[str(variants)], seeds=3, say=said.append)
    assert said == []
    assert {run.folder.name: run.loss for run in again.runs} == {
        run.folder.name: run.loss for run in referee.runs
    }
    assert written(copied) == before


def test_what_is_added_reuses_what_is_there(
    copied: Path, factbook_corpus: sb.Corpus, referee: sb.Results
) -> None:
    before, reference = written(copied), referee.record.reference
    said: list[str] = []
    more = compare(copied, factbook_corpus, seeds=1, say=said.append)
    after = written(copied)
    assert {name: after[name] for name in before} == before
    (new,) = after.keys() - before.keys()
    assert new.startswith("stack-100-seed0")
    assert any("what was added" in text for text in said)
    # Depths 1 and 2 are measured now; what was in the table stays.
    assert {row.kind.depth for row in more.record.reference.steps} == {1, 2, 4}
    assert set(reference.steps) <= set(more.record.reference.steps)
    assert more.variants == (*referee.variants, "stack")
    assert more.losses("scratch") == referee.losses("scratch")
    (run,) = [run for run in more.runs if run.variant == "stack"]
    assert [(g.step, g.source_depth, g.target_depth) for g in run.growths] == [
        (40, 1, 2),
        (80, 2, 4),
    ]
    rows = {row["step"]: row for row in sb.read_ledger(run.folder) if row["kind"] == "growth"}
    for growth in run.growths:
        assert growth.after == rows[growth.step]["loss_after"]
        # There are two points at a growth: before and after.
        around = [point.loss for point in run.points if point.steps == growth.step]
        assert around == [growth.before, growth.after]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"budget": "60steps"}, ["budget", BUDGET, "60steps"]),
        ({"budget": None}, ["budget", BUDGET]),
        ({"jobs": 2}, ["jobs"]),
        ({"rates": (0.5, 1.0)}, ["rates"]),
    ],
)
def test_another_question_is_refused_in_a_folder_that_holds_one(
    options, named, referee: sb.Results, factbook_corpus: sb.Corpus
) -> None:
    sentence = refusal(lambda: compare(referee.folder, factbook_corpus, **options))
    assert [word for word in named if word not in sentence] == []
    assert str(referee.folder) in sentence


def test_a_variant_that_was_changed_is_not_taken_for_the_one_of_its_name(
    copied: Path, factbook_corpus: sb.Corpus, tmp_path: Path
) -> None:
    changed = tmp_path / "changed.yaml"
    changed.write_text("half: {stages: [{depth: 2, steps: 60}, {depth: 4, steps: 60}]}")
    sentence = refusal(lambda: compare(copied, factbook_corpus, variants=[str(changed)]))
    assert "'half'" in sentence


def test_a_folder_of_something_else_is_refused(tmp_path: Path, factbook_corpus: sb.Corpus) -> None:
    (tmp_path / "thesis.tex").touch()
    assert "thesis.tex" in refusal(lambda: compare(tmp_path, factbook_corpus))


@pytest.mark.parametrize(
    "options", [{"seeds": 0}, {"jobs": 0}, {"rates": ()}, {"rates": (0.0,)}, {"budget": "soon"}]
)
def test_a_wrong_option_is_refused_before_anything_is_measured(
    options, tmp_path: Path, factbook_corpus: sb.Corpus
) -> None:
    refusal(lambda: compare(tmp_path / "comparison", factbook_corpus, **options))


def test_a_recipe_of_one_depth_has_nothing_to_compare(
    tmp_path: Path, factbook_corpus: sb.Corpus
) -> None:
    recipe = scratch_of(tiny_recipe())
    out = tmp_path / "comparison"
    assert "one depth" in refusal(lambda: sb.compare(recipe, corpus=factbook_corpus, out=out))


def test_a_stopped_comparison_says_how_to_go_on(stopped) -> None:
    assert stopped.first.code == 128 + 15
    assert "The same command goes on" in stopped.first.err
    assert "Traceback" not in stopped.first.err
    # Both runs were on their way: neither at its beginning nor at its end.
    assert stopped.finished == ()
    assert len(stopped.reached) == 2
    assert min(stopped.reached.values()) >= STOPPED_AT


def test_a_report_of_a_stopped_comparison_names_no_folder_of_the_machine(stopped) -> None:
    assert len(stopped.missing) == 2
    for said in stopped.missing:
        assert "not finished (Stopped at step" in said
        assert str(stopped.folder) not in said


def test_a_stopped_comparison_goes_on_and_ends(stopped) -> None:
    assert stopped.again.code == 0, stopped.again.err
    results = sb.read_results(stopped.folder)
    assert results.missing == ()
    for run in results.runs:
        log = run.folder.with_name(run.folder.name + ".log").read_text()
        assert "resuming at step" in log


@needs_affinity
def test_comparisons_of_the_same_steps_give_identical_losses(stopped, referee: sb.Results) -> None:
    # One was stopped and made its runs two at a time, the other did neither. Both had one core, so
    # every run had one thread: only then does rounding not depend on --jobs.
    assert threads_each(1) == threads_each(2) == 1
    ours = sb.read_results(stopped.folder)
    assert (ours.record.question.jobs, referee.record.question.jobs) == (2, 1)
    assert ours.record.threads == referee.record.threads == 1
    mine, theirs = ours.first("scratch"), referee.first("scratch")
    assert mine is not None
    assert theirs is not None
    assert ledger(mine.folder) == ledger(theirs.folder)
    # Their tables of seconds differ, as clocks do; a budget in steps does not look at them.
    assert ours.record.reference.steps != referee.record.reference.steps


def test_the_table_is_measured_by_as_many_processes_as_runs_are_made(
    stopped, referee: sb.Results
) -> None:
    for row in referee.record.reference.steps:
        assert len(row.readings) == 1
    for row in sb.read_results(stopped.folder).record.reference.steps:
        assert len(row.readings) == 2
        assert min(row.readings) <= row.seconds <= max(row.readings)


def test_deeper_steps_take_longer_and_more_flops(stopped) -> None:
    record = sb.read_results(stopped.folder).record
    rows = sorted(record.reference.steps, key=lambda row: row.kind.depth)
    assert [row.kind.depth for row in rows] == [1, 2, 4]
    assert rows[0].seconds < rows[2].seconds
    assert rows[0].flops < rows[1].flops < rows[2].flops
    assert [(g.source_depth, g.target_depth) for g in record.reference.growths] == [(1, 2), (2, 4)]
    assert all(growth.seconds > 0.0 for growth in record.reference.growths)


def test_the_command_prints_the_verdict_and_writes_the_report(stopped) -> None:
    results = sb.read_results(stopped.folder)
    for sentence in judge(results).sentences:
        assert sentence in stopped.again.out
    html = (stopped.folder / "report.html").read_text(encoding="utf-8")
    assert "shows nothing" in html
    assert f"{results.losses('stack')[0]:.3f}" in html


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--budget", "soon"], "soon"),
        (["--variants", "stak"], "stak"),
        (["--fractions", "half"], "--fractions"),
        (["--fractions", "0"], "fraction"),
        (["--learning-rates", "fast"], "--learning-rates"),
        (["--switch-at", "early"], "--switch-at"),
        (["--switch-at", "inf"], "--switch-at"),
        (["--switch-at", "10", "--budget", "60steps"], "--budget"),
        (["--set", "stages=[{depth: 4, steps: 900}]"], "one depth"),
    ],
)
def test_a_wrong_option_exits_with_2_and_one_sentence(
    options, named, tmp_path: Path, factbook_corpus: sb.Corpus
) -> None:
    out = tmp_path / "comparison"
    begin = ["compare", "small-cpu", "--corpus", factbook_corpus.folder, "--out", out]
    called = command_line([*begin, *options])
    assert called.code == 2
    assert called.err.startswith("stackbert: ")
    assert called.err.count("\n") == 1
    assert named in called.err
    assert not (out / "comparison.json").exists()


def test_the_report_shows_what_the_comparison_is_made_of(
    referee: sb.Results, tmp_path: Path
) -> None:
    page = comparison_page(referee.folder)
    assert page.verdict[: len(judge(referee).sentences)] == judge(referee).sentences
    parts = {part.title: part for part in page.parts}
    standings = parts["Final validation loss"].rows
    assert [row[0] for row in standings] == ["scratch", "same", "twin", "half"]
    assert [row[-1] for row in standings[1:]] == ["no difference", "one seed", "worse"]
    assert {row[0] for row in parts["What differs from the recipe"].rows} >= {"scratch", "half"}
    assert len(parts["Runs"].rows) == 9
    assert "diverging" in parts["Runs"].note
    out = sb.report([referee.folder], tmp_path / "report.html")
    html = out.read_text(encoding="utf-8")
    assert "shows nothing" in html
    assert "no difference" in html


def test_a_run_that_is_refused_ends_the_comparison_with_its_sentence(
    tmp_path: Path, factbook_corpus: sb.Corpus
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(tiny_recipe().to_yaml())
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.tex").touch()
    task = Task("stack", recipe, factbook_corpus.folder, taken)
    ended: list[Task] = []
    with pytest.raises(RunError, match=r"stack failed: .*thesis\.tex"):
        run_all([task, task], jobs=1, threads=1, say=lambda text: None, done=ended.append)
    assert ended == []


def test_a_model_that_cannot_be_built_is_wrong_input_and_begins_nothing(
    factbook_corpus: sb.Corpus, tmp_path: Path
) -> None:
    recipe = tiny_recipe(model__hidden_dropuot_prob=0.1)
    out = tmp_path / "comparison"
    sentence = refusal(lambda: sb.compare(recipe, corpus=factbook_corpus, out=out, budget=BUDGET))
    assert sentence.startswith("model.hidden_dropuot_prob: ")
    assert not (out / "comparison.json").exists()


def test_when_to_switch_is_answered_for_every_growth(
    factbook_corpus: sb.Corpus, tmp_path: Path
) -> None:
    out = tmp_path / "when"
    switches = sb.compare_switches(
        tiny_recipe(), corpus=factbook_corpus, out=out, switch_at=[20], then=10, seeds=1
    )
    assert [(s.source, s.target, s.at) for s in switches] == [(1, 2, 20), (2, 4, 20)]
    record = read_record(out)
    results = sb.read_results(out)
    assert results.missing == ()
    for switch in switches:
        name = f"{switch.source}-to-{switch.target}-at-20"
        grown, alone = results.first(name), results.first(f"scratch-{name}")
        assert grown is not None
        assert alone is not None
        stages = [(stage.depth, stage.steps) for stage in grown.recipe.stages]
        assert stages == [(switch.source, 20), (switch.target, 10)]
        assert {stage.depth for stage in alone.recipe.stages} == {switch.target}
        # Scratch fills the same seconds: not one step more would fit.
        step = record.reference.cost(alone.recipe, "seconds") / alone.recipe.total_steps
        left = record.reference.cost(grown.recipe, "seconds") - step * alone.recipe.total_steps
        assert -1e-9 < left < step
        assert switch.difference is not None
        assert switch.difference.mean == pytest.approx(grown.loss - alone.loss)
        assert math.isfinite(switch.grown.mean)
    html = sb.report([out], tmp_path / "when.html").read_text(encoding="utf-8")
    assert "1 → 2" in html
    assert "2 → 4" in html
    assert all(is_finished(run.folder) for run in results.runs)
