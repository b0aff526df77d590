"""What a run settles by measuring is written down, kept on resuming, and changes no result."""

import itertools

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pretraining_helpers import (
    DEPTHS,
    At,
    Crash,
    Listening,
    crash,
    tiny_recipe,
    untimed_ledger,
    weights,
)
from stackbert.models import create_model
from stackbert.pretraining.machine import compiling_lacks
from stackbert.pretraining.start import batch_plan
from stackbert.vocabulary import load_vocabulary

import stackbert as sb
from stackbert.pretraining import tuning
from stackbert.pretraining.trainer import Trainer
from stackbert.recipe import OptimizerSpec

CPU = torch.device("cpu")
OPEN = tiny_recipe(batch__micro_batch="auto", batch__sequences=8, compile="auto", precision="auto")


def settled(corpus, recipe: sb.Recipe = OPEN, seconds: float | None = None) -> sb.Recipe:
    vocabulary = load_vocabulary(corpus)
    plan = batch_plan(recipe, corpus, vocabulary)
    return tuning.settle(recipe, vocabulary, plan, device=CPU, seconds=seconds).recipe


def test_a_short_run_measures_neither_micro_batches_nor_compilation(corpus, monkeypatch) -> None:
    monkeypatch.setattr(tuning, "_time_backward", None)
    recipe = settled(corpus)
    assert recipe.compile is False
    assert recipe.batch.micro_batch == "auto"
    assert [stage.micro_batch for stage in recipe.stages] == [None, None, None]
    assert recipe.precision in ("bf16", "fp32")


def test_a_long_run_measures_each_depth(corpus) -> None:
    recipe = settled(corpus, seconds=tuning.TUNE_FROM)
    sizes = [stage.micro_batch for stage in recipe.stages]
    assert all(size and 8 % size == 0 for size in sizes)
    assert settled(corpus, recipe, seconds=tuning.TUNE_FROM) == recipe, "nothing is left open"


def test_what_the_recipe_says_is_not_measured(corpus, monkeypatch) -> None:
    monkeypatch.setattr(tuning, "compiling_lacks", lambda device: None)
    monkeypatch.setattr(tuning, "_time_backward", None)
    given = tiny_recipe(batch__micro_batch=2, compile=True)
    assert settled(corpus, given, seconds=1e9) == given


def test_compiling_is_chosen_where_it_is_faster(corpus, monkeypatch) -> None:
    monkeypatch.setattr(tuning, "compiling_lacks", lambda device: None)
    for eager, compiled, chosen in ((1.0, 0.7, True), (1.0, 0.99, False), (1.0, 1.5, False)):

        def timed(trainer, batch, size, eager=eager, compiled=compiled):
            return compiled if trainer.will_compile(batch) else eager

        monkeypatch.setattr(tuning, "_time_backward", timed)
        recipe = tiny_recipe(compile="auto")
        assert settled(corpus, recipe, seconds=1e9).compile is chosen


def test_without_a_compiler_nothing_is_compiled(corpus, monkeypatch) -> None:
    for name in ("PATH", "CC", "CXX"):
        monkeypatch.setenv(name, "")
    assert settled(corpus, tiny_recipe(compile="auto"), seconds=1e9).compile is False
    with pytest.raises(sb.UserError, match=r"needs a C\+\+ compiler"):
        settled(corpus, tiny_recipe(compile=True))


def test_torch_in_a_folder_with_a_space_is_a_sentence(corpus, monkeypatch) -> None:
    monkeypatch.setattr(torch, "__file__", "/my venv/torch/__init__.py")
    assert settled(corpus, tiny_recipe(compile="auto"), seconds=1e9).compile is False
    with pytest.raises(sb.UserError, match="folder with a space"):
        settled(corpus, tiny_recipe(compile=True))


def test_the_estimate_is_flops_over_half_the_rate(corpus) -> None:
    vocabulary = load_vocabulary(corpus)
    recipe = tiny_recipe()
    plan = batch_plan(recipe, corpus, vocabulary)
    whole = tuning.estimate(recipe, vocabulary, plan, 1e9)
    longer = tiny_recipe(
        stages=[{"depth": d, "steps": 12} for d in (1, 2, 4)], schedule__warmup_steps=2
    )
    assert tuning.estimate(longer, vocabulary, plan, 1e9) == pytest.approx(2 * whole)
    assert tuning.estimate(recipe, vocabulary, plan, 2e9) == pytest.approx(whole / 2)


@given(rows=st.integers(1, 5000), length=st.sampled_from([8, 64, 128, 384, 4096]))
def test_candidates_divide_the_rows_and_rise(rows: int, length: int) -> None:
    sizes = list(tuning._even_divisions(rows, length, "cpu"))
    assert all(size * length <= 1 << 15 for size in sizes)
    assert sizes or rows * length > 1 << 15, "one that fits is found"
    assert all(rows % size == 0 for size in sizes)
    assert all(b >= 1.5 * a for a, b in itertools.pairwise(sizes))
    assert len(sizes) < 20


def test_a_micro_batch_that_does_not_fit_ends_the_search(corpus, monkeypatch) -> None:
    vocabulary = load_vocabulary(corpus)
    model = create_model(OPEN.model, depth=1, vocabulary=vocabulary, sequence_length=16)
    trainer = Trainer(
        model, OptimizerSpec(), device=CPU, precision="fp32", micro_batch="auto", seed=0
    )
    recipe = tiny_recipe(batch__sequences=64, batch__sequence_length=64)
    tried = []

    def timed(trainer, batch, size):
        tried.append(size)
        if size > 16:
            raise torch.OutOfMemoryError
        return 0.1

    monkeypatch.setattr(tuning, "_time_backward", timed)
    batch = batch_plan(recipe, corpus, vocabulary).batch(0)
    assert tuning.fastest_micro_batch(trainer, batch) == 16
    assert tried == [8, 16, 32]


def test_rows_that_no_number_divides_leave_the_micro_batch_open(corpus) -> None:
    """997 rows of 128 are too many at once, and one is too few."""
    recipe = tiny_recipe(
        batch__sequences=997,
        batch__sequence_length=128,
        batch__micro_batch="auto",
        stages=[{"depth": 1, "steps": 1}],
        schedule__warmup_steps=0,
    )
    (stage,) = settled(corpus, recipe, seconds=tuning.TUNE_FROM).stages
    assert stage.micro_batch is None


def test_a_compiler_that_fails_leaves_an_automatic_run_uncompiled(corpus, monkeypatch) -> None:
    monkeypatch.setattr(tuning, "compiling_lacks", lambda device: None)
    true = tuning._time_backward

    def timed(trainer, batch, size):
        if trainer.will_compile(batch):
            raise RuntimeError("no Python.h\nand more")
        return true(trainer, batch, size)

    monkeypatch.setattr(tuning, "_time_backward", timed)
    vocabulary = load_vocabulary(corpus)
    recipe = tiny_recipe(compile="auto")
    plan = batch_plan(recipe, corpus, vocabulary)
    found = tuning.settle(recipe, vocabulary, plan, device=CPU, seconds=1e9)
    assert found.recipe.compile is False
    assert found.notes[-1] == "torch.compile fails here (RuntimeError: no Python.h)"


def test_a_gpu_without_enough_memory_is_a_sentence(corpus, tmp_path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Trainer, "step", full)
    with pytest.raises(sb.RunError, match=r"memory is full\. Set batch\.micro_batch"):
        sb.pretrain(tiny_recipe(), corpus=corpus, out=tmp_path)


def test_choices_are_written_down_and_kept_when_the_run_goes_on(
    corpus, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(tuning, "TUNE_FROM", 0.0)
    monkeypatch.setattr(tuning, "fastest_micro_batch", lambda trainer, batch: 2)
    recipe = OPEN.model_copy(update={"precision": "fp32"})
    listening = Listening()
    with pytest.raises(Crash):
        sb.pretrain(recipe, corpus=corpus, out=tmp_path / "a", reporter=At(8, crash))
    written = yaml.safe_load((tmp_path / "a" / "recipe.yaml").read_text())
    assert [stage["micro_batch"] for stage in written["stages"]] == [2, 2, 2]
    assert written["compile"] is False
    monkeypatch.setattr(tuning, "fastest_micro_batch", lambda trainer, batch: 8)
    sb.pretrain(recipe, corpus=corpus, out=tmp_path / "a", reporter=listening)

    # The recipe as run repeats the run, whatever this machine would choose now.
    again = sb.load_recipe(str(tmp_path / "a" / "recipe.yaml"))
    sb.pretrain(again, corpus=corpus, out=tmp_path / "b")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


@pytest.mark.parametrize("stopped_at", [7, 9])
def test_a_run_that_goes_on_rounds_as_one_that_was_not_stopped(
    stopped_at, corpus, undisturbed, tmp_path
) -> None:
    """Right after a growth and in a stage, each with a micro-batch of its own."""
    stages = [
        {"depth": depth, "steps": 6, "micro_batch": size}
        for depth, size in zip(DEPTHS, (4, 1, 3), strict=True)
    ]
    recipe = tiny_recipe(stages=stages, batch__micro_batch="auto", evaluation__sequences=13)
    with pytest.raises(Crash):
        sb.pretrain(recipe, corpus=corpus, out=tmp_path, reporter=At(stopped_at, crash))
    sb.pretrain(recipe, corpus=corpus, out=tmp_path)
    assert untimed_ledger(tmp_path) == untimed_ledger(undisturbed(recipe))
    assert weights(tmp_path) == weights(undisturbed(recipe))


@pytest.mark.skipif(compiling_lacks(CPU) is not None, reason=str(compiling_lacks(CPU)))
def test_a_compiled_run_that_goes_on_ends_with_the_same_bits(corpus, undisturbed, tmp_path) -> None:
    stages = [{"depth": 1, "steps": 3}, {"depth": 2, "steps": 3}]
    recipe = tiny_recipe(stages=stages, compile=True)
    with pytest.raises(Crash):
        sb.pretrain(recipe, corpus=corpus, out=tmp_path, reporter=At(5, crash))
    sb.pretrain(recipe, corpus=corpus, out=tmp_path)
    assert weights(tmp_path) == weights(undisturbed(recipe))
    (end,) = (row for row in sb.read_ledger(tmp_path) if row["kind"] == "end")
    assert end["wall"]["compilation"] > 0
