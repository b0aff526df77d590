"""The ledger says what was done: fields, sums, growth, evaluations; a cut-off line is tolerated."""

import contextlib
import itertools
import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from pretraining_helpers import DEPTHS, GROWTHS, TOTAL, At, Crash, checkpoints, crash, tiny_recipe
from stackbert.models import create_model, model_class, training_flops
from stackbert.pretraining.evaluation import evaluation_batch
from stackbert.pretraining.rundir import read_record
from stackbert.vocabulary import load_vocabulary

import stackbert as sb
from stackbert.pretraining.ledger import LEDGER, WORK, Ledger, Stopwatch
from stackbert.pretraining.schedule import learning_rate_factor
from stackbert.pretraining.trainer import Trainer

RECIPE = tiny_recipe(checkpoint__keep=99, optimizer__name="muon", model__hidden_dropout_prob=0.2)


def rows_of(run: Path, kind: str) -> list[dict]:
    return [row for row in sb.read_ledger(run) if row["kind"] == kind]


def test_step_lines_have_every_field(undisturbed) -> None:
    rows = rows_of(undisturbed(RECIPE), "step")
    assert [row["step"] for row in rows] == list(range(1, TOTAL + 1))
    for row in rows:
        stage = (row["step"] - 1) // 6
        assert row["stage"] == stage
        assert row["depth"] == DEPTHS[stage]
        assert row["tokens"] == row["step"] * 4 * 16
        factor = learning_rate_factor(RECIPE, row["step"] - 1)
        assert row["lr"] == pytest.approx(factor * RECIPE.optimizer.lr)
        assert row["loss"] == row["masked_lm"]
        assert row["next_sentence"] is None
        assert row["gradient_norm"] > 0
        assert row["tokens_per_second"] > 0
        assert 0 < row["mfu"] < 1


def test_speed_and_mfu_follow_from_the_other_fields(undisturbed) -> None:
    run = undisturbed(RECIPE)
    rate = json.loads((run / "run.json").read_text())["matrix_rate"]
    rows = rows_of(run, "step")
    for before, row in itertools.pairwise(rows):
        seconds = row["seconds"] - before["seconds"]
        tokens = row["tokens"] - before["tokens"]
        assert row["tokens_per_second"] == pytest.approx(tokens / seconds)
        assert row["mfu"] == pytest.approx((row["flops"] - before["flops"]) / seconds / rate)


def test_flops_add_up_over_the_depths(undisturbed, corpus) -> None:
    flops, total = [], 0
    for depth in DEPTHS:
        model = create_model(
            RECIPE.model, depth=depth, vocabulary=load_vocabulary(corpus), sequence_length=16
        )
        # 14 tokens a row beside [CLS] and [SEP]; 15 % of them are two.
        step = training_flops(model, rows=4, sequence_length=16, masked=4 * 2)
        for _ in range(6):
            total += step
            flops.append(total)
    assert [row["flops"] for row in rows_of(undisturbed(RECIPE), "step")] == flops


def test_a_line_every_few_steps_and_at_each_stages_end_averages_the_steps(
    undisturbed, corpus
) -> None:
    each = [row["loss"] for row in rows_of(undisturbed(RECIPE), "step")]
    run = undisturbed(RECIPE.model_copy(update={"log_every": 5}))
    rows = rows_of(run, "step")
    assert [row["step"] for row in rows] == [5, 6, 10, 12, 15, 18]
    before = 0
    for row in rows:
        mean = sum(each[before : row["step"]]) / (row["step"] - before)
        assert row["loss"] == pytest.approx(mean, abs=1e-9)
        before = row["step"]


def test_growth_lines_have_the_loss_just_before_and_just_after(undisturbed) -> None:
    run = undisturbed(RECIPE)
    growths = rows_of(run, "growth")
    evaluations = {row["step"]: row["loss"] for row in rows_of(run, "evaluation")}
    assert [row["step"] for row in growths] == list(GROWTHS)
    for row, depths in zip(growths, itertools.pairwise(DEPTHS), strict=True):
        assert (row["source_depth"], row["target_depth"]) == depths
        assert row["operator"] == "stack"
        assert row["optimizer_state"] == "reset"
        assert row["loss_before"] == evaluations[row["step"]]
        assert row["loss_after"] != row["loss_before"]
        assert row["growth_seconds"] > 0


def test_an_operator_that_preserves_the_function_preserves_the_loss(undisturbed) -> None:
    run = undisturbed(tiny_recipe(growth__operator="identity"))
    for row in rows_of(run, "growth"):
        assert row["loss_after"] == pytest.approx(row["loss_before"], abs=1e-5)


def test_growth_keeps_its_loss_before_when_the_run_resumes_at_the_boundary(
    corpus, undisturbed, tmp_path
) -> None:
    with pytest.raises(Crash):
        sb.pretrain(RECIPE, corpus=corpus, out=tmp_path, reporter=At(7, crash))
    sb.pretrain(RECIPE, corpus=corpus, out=tmp_path)
    again, alone = (rows_of(r, "growth") for r in (tmp_path, undisturbed(RECIPE)))
    assert [r["loss_before"] for r in again] == [r["loss_before"] for r in alone]


def test_evaluations_see_the_same_rows_and_masks_every_time_whatever_the_seed(
    corpus, tmp_path, monkeypatch
) -> None:
    seen = []
    true = Trainer.evaluate

    def spy(trainer, batch):
        seen.append((batch.input_ids.tobytes(), batch.columns.tobytes(), batch.labels.tobytes()))
        return true(trainer, batch)

    monkeypatch.setattr(Trainer, "evaluate", spy)
    for seed, step in ((0, 8), (0, TOTAL), (1, 14)):
        recipe = tiny_recipe(seed=seed)
        with pytest.raises(Crash):
            sb.pretrain(recipe, corpus=corpus, out=tmp_path / str(seed), reporter=At(step, crash))
    assert len(seen) > 12
    assert len(set(seen)) == 1


@pytest.mark.parametrize("step", [6, 9, TOTAL])
def test_an_evaluation_is_transformers_dense_loss_of_the_checkpoint(
    step, undisturbed, corpus
) -> None:
    """Computed anew from the folder: every position through the head, dropout off."""
    run = undisturbed(RECIPE)
    logged = next(r for r in rows_of(run, "evaluation") if r["step"] == step)["loss"]
    batch = evaluation_batch(RECIPE, corpus, load_vocabulary(corpus))
    labels = torch.full(batch.input_ids.shape, -100)
    labels.scatter_(1, torch.from_numpy(batch.columns), torch.from_numpy(batch.labels))
    model = model_class("megatron-bert", next_sentence=False).from_pretrained(
        checkpoints(run)[step]
    )
    with torch.no_grad():
        dense = model(input_ids=torch.from_numpy(batch.input_ids), labels=labels).loss
    assert float(dense) == pytest.approx(logged, abs=1e-5)


def test_kinds_of_work_are_timed_apart(undisturbed) -> None:
    from stackbert.pretraining.checkpoints import read_state

    run = undisturbed(RECIPE)
    seconds = read_state(checkpoints(run)[TOTAL]).seconds
    assert set(seconds) == set(WORK)
    assert {kind for kind, value in seconds.items() if value == 0} == {"compilation"}
    assert seconds["training"] >= rows_of(run, "step")[-1]["seconds"]


def test_every_second_of_a_run_is_accounted_for(corpus, tmp_path: Path) -> None:
    """In two processes' worth of calls: the kinds of work add up to the wall time."""
    took = 0.0
    for reporter in (At(10, crash), None):
        start = time.perf_counter()
        with contextlib.suppress(Crash):
            sb.pretrain(RECIPE, corpus=corpus, out=tmp_path, reporter=reporter)
        took += time.perf_counter() - start
    (end,) = rows_of(tmp_path, "end")
    assert set(end["wall"]) == set(WORK)
    # What the crash threw away, the export and the model card are not in it.
    assert 0.5 * took < sum(end["wall"].values()) < took
    stages = [row["wall"] for row in rows_of(tmp_path, "time")]
    assert len(stages) == 3
    for before, after in itertools.pairwise([*stages, end["wall"]]):
        assert all(before[kind] <= after[kind] for kind in WORK)


def test_a_stopwatch_gives_every_moment_to_the_innermost_kind(monkeypatch) -> None:
    clock = iter(range(100))
    waits = []
    monkeypatch.setattr("stackbert.pretraining.ledger.time.perf_counter", lambda: next(clock))
    watch = Stopwatch(lambda: waits.append(1))  # 0
    with watch.measuring("training"):  # from 1
        with watch.measuring("input", on_device=False):  # 2 to 3
            pass
        with pytest.raises(Crash), watch.measuring("growth"):  # 4 to 5
            raise Crash
        assert watch.read("training") == 3  # at 6
    assert len(waits) == 5, "two kinds that use the device, and a reading"
    watch.carry_over({"growth": 4.0})
    expected = {"training": 4.0, "input": 1.0, "growth": 5.0}
    assert {kind: value for kind, value in watch.seconds.items() if value} == expected


def test_the_summary_and_its_table_follow_from_the_ledger(undisturbed) -> None:
    from stackbert.pretraining.report import stage_table

    run = undisturbed(RECIPE)
    summary = sb.summarise(run)
    evaluations = {row["step"]: row for row in rows_of(run, "evaluation")}
    assert summary.steps == TOTAL
    assert summary.loss == evaluations[TOTAL]["loss"]
    assert [s.loss for s in summary.stages] == [evaluations[e]["loss"] for e in (6, 12, 18)]
    assert [s.tokens for s in summary.stages] == [384, 384, 384]
    assert sum(s.flops for s in summary.stages) == evaluations[TOTAL]["flops"]
    trained = evaluations[TOTAL]["seconds"] - evaluations[0]["seconds"]
    assert summary.seconds == pytest.approx(trained)
    last = summary.stages[-1].seconds
    assert summary.scratch_seconds == pytest.approx(last / 6 * TOTAL)
    for index, stage in enumerate(summary.stages):
        rate = read_record(run)[1].matrix_rate
        assert stage.mfu == pytest.approx(stage.flops / stage.seconds / rate), index
    (end,) = rows_of(run, "end")
    assert summary.wall == end["wall"]
    table = stage_table(summary)
    assert f"{summary.loss:.3f}" in table
    assert f"({summary.seconds / summary.scratch_seconds:.0%})" in table


@pytest.fixture
def copied(undisturbed, tmp_path: Path) -> Path:
    """A run directory with a ledger to damage."""
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(undisturbed(RECIPE) / LEDGER, run)
    return run


def test_a_last_line_that_was_cut_off_is_left_out(copied: Path) -> None:
    path = copied / LEDGER
    rows = sb.read_ledger(copied)
    whole = path.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    for cut in (1, 2, last // 2, last - 1):
        path.write_bytes(whole[:-cut])
        # Without its newline alone, a line is whole all the same.
        assert sb.read_ledger(copied) == (rows if cut == 1 else rows[:-1])
    path.write_bytes(whole[:-last] + "é".encode()[:1])
    assert sb.read_ledger(copied) == rows[:-1]


@pytest.mark.parametrize("damage", [b"{", b"\xff\xfe\n", b"nonsense\n", b"[1]\n", b"\n", b"7\n"])
def test_a_damaged_line_in_the_middle_is_named(damage: bytes, copied: Path) -> None:
    lines = (copied / LEDGER).read_bytes().splitlines(keepends=True)
    lines[4] = damage
    (copied / LEDGER).write_bytes(b"".join(lines))
    with pytest.raises(sb.UserError, match=r"metrics\.jsonl, line 5 ") as refused:
        sb.read_ledger(copied)
    assert "\n" not in str(refused.value)


def test_a_folder_without_ledger_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(sb.UserError, match="not a run directory"):
        sb.read_ledger(tmp_path)
    with pytest.raises(sb.UserError, match="not a run directory"):
        sb.summarise(tmp_path)


def test_a_ledger_shorter_than_its_checkpoint_is_refused(corpus, tmp_path: Path) -> None:
    with pytest.raises(Crash):
        sb.pretrain(RECIPE, corpus=corpus, out=tmp_path, reporter=At(5, crash))
    (tmp_path / LEDGER).write_text("")
    with pytest.raises(sb.UserError, match="shorter than when the last checkpoint was saved"):
        sb.pretrain(RECIPE, corpus=corpus, out=tmp_path)


def test_numbers_that_are_none_become_null(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / LEDGER)
    ledger.write("test", loss=float("nan"), mfu=float("inf"), step=3)
    ledger.sync()
    size = ledger.size
    ledger.close()
    assert size == (tmp_path / LEDGER).stat().st_size
    assert sb.read_ledger(tmp_path) == [{"kind": "test", "loss": None, "mfu": None, "step": 3}]
