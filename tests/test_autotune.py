"""What a run chooses by measuring: micro-batches, compilation, the steps of a budget."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stackbert import machine
from stackbert.errors import Interrupted, UserError
from stackbert.machine import fastest_precision
from stackbert.pretraining import autotune as tuning
from stackbert.pretraining.ledger import read_ledger
from stackbert.pretraining.run import pretrain
from stackbert.pretraining.synthetic import SyntheticCorpus
from stackbert.pretraining.trainer import Trainer
from stackbert.recipe import Recipe
from tiny_runs import tiny_recipe

CPU = torch.device("cpu")
TUNE_FROM = tuning.TUNE_FROM
CORPUS = SyntheticCorpus(128, tokens=20_000)
STAGES = [{"depth": depth, "steps": 6} for depth in (1, 2, 4)]


def tiny(**fields: object) -> Recipe:
    return tiny_recipe(**{"stages": STAGES, "batch__sequences": 8, **fields})


def tuned(recipe: Recipe, seconds: float | None = None) -> tuple[Recipe, list[str]]:
    """The tuned recipe, and what was said of it."""
    said: list[str] = []
    recipe, rate = tuning.autotune(recipe, CORPUS, device=CPU, seconds=seconds, say=said.append)
    assert rate > 0
    return recipe, said


def test_a_short_run_and_what_the_recipe_says_are_not_measured(monkeypatch) -> None:
    monkeypatch.setattr(tuning, "_pass_seconds", None)
    monkeypatch.setattr(tuning, "compiling_lacks", lambda device: None)
    said = tiny(batch__micro_batch=2, compile=True)
    assert tuned(said, seconds=1e9) == (said, [])
    recipe, _ = tuned(tiny(batch__micro_batch="auto", compile="auto", precision="auto"))
    assert recipe.compile is False
    assert recipe.batch.micro_batch == "auto"
    assert [stage.micro_batch for stage in recipe.stages] == [None, None, None]
    assert recipe.precision in ("bf16", "fp32")


def test_a_long_run_measures_each_depth_and_leaves_nothing_open() -> None:
    recipe, said = tuned(tiny(batch__micro_batch="auto", compile="auto"), seconds=TUNE_FROM["cpu"])
    sizes = [stage.micro_batch for stage in recipe.stages]
    assert all(size and 8 % size == 0 for size in sizes)
    measured = f"micro-batch at depth 1: {sizes[0]} rows"
    assert said[:2] == ["measuring micro-batches at depth 1 …", measured]
    assert tuned(recipe, seconds=TUNE_FROM["cpu"]) == (recipe, [])


@pytest.mark.parametrize(("compiled", "chosen"), [(0.7, True), (0.99, False)])
def test_compiling_is_chosen_where_it_is_faster(compiled, chosen, monkeypatch) -> None:
    def timed(batch, tried):
        return [compiled if trainer.will_compile(batch) else 1.0 for trainer, _ in tried]

    monkeypatch.setattr(tuning, "compiling_lacks", lambda device: None)
    monkeypatch.setattr(tuning, "_pass_seconds", timed)
    recipe, _ = tuned(tiny(compile="auto"), seconds=1e9)
    assert recipe.compile is chosen


def test_a_compiler_that_is_missing_or_fails_leaves_the_run_uncompiled(monkeypatch) -> None:
    def failing(batch, tried):
        raise RuntimeError("no Python.h\nand more")

    monkeypatch.setattr(tuning, "_pass_seconds", failing)
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "compiling_lacks", lambda device: None)
        recipe, said = tuned(tiny(compile="auto"), seconds=1e9)
    assert recipe.compile is False
    assert said[1:] == ["torch.compile fails here (RuntimeError: no Python.h)"]
    for name in ("PATH", "CC", "CXX"):
        monkeypatch.setenv(name, "")
    assert tuned(tiny(compile="auto"), seconds=1e9)[0].compile is False
    with pytest.raises(UserError, match=r"compile: .* needs a C\+\+ compiler"):
        tuned(tiny(compile=True))


def test_a_signal_while_torch_compiles_is_not_taken_for_its_failure(monkeypatch) -> None:
    def stopped(batch, tried):
        try:
            raise Interrupted("Stopped by SIGINT.", 2)
        except Exception as error:  # as torch does
            raise RuntimeError(str(error)) from None

    monkeypatch.setattr(tuning, "compiling_lacks", lambda device: None)
    monkeypatch.setattr(tuning, "_pass_seconds", stopped)
    with pytest.raises(Interrupted):
        tuned(tiny(compile="auto"), seconds=1e9)


def test_micro_batches_that_divide_the_step_are_tried_until_memory_ends(monkeypatch) -> None:
    tried: list[int] = []

    def timed(batch, pairs):
        tried.append(pairs[0][1])
        if tried[-1] > 16:
            raise torch.OutOfMemoryError
        return [0.1 for _ in pairs]

    monkeypatch.setattr(tuning, "_pass_seconds", timed)
    recipe = tiny(batch={"sequences": 64, "sequence_length": 64}, stages=[{"depth": 1, "steps": 6}])
    assert tuned(recipe, seconds=TUNE_FROM["cpu"])[0].stages[0].micro_batch == 16
    assert tried == [8, 16, 32]


@pytest.mark.parametrize("busy", range(10))
def test_a_busy_while_does_not_change_what_is_chosen(busy: int, monkeypatch) -> None:
    """Eight seconds in which everything takes three times as long, whenever they begin."""
    now = [0.0]

    def backward(self, batch, masked, rows) -> None:
        slow = 3.0 if busy <= now[0] < busy + 8 else 1.0
        now[0] += slow * (0.3 + 0.02 * len(batch) + 0.002 * max(0, len(batch) - 16) ** 2)

    monkeypatch.setattr(tuning, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(Trainer, "backward", backward)
    recipe = tiny(batch={"sequences": 64, "sequence_length": 64}, stages=[{"depth": 1, "steps": 6}])
    assert tuned(recipe, seconds=TUNE_FROM["cpu"])[0].stages[0].micro_batch == 16


def test_precision_is_what_an_x86_processor_has_and_else_is_measured(monkeypatch) -> None:
    has = {"amx_bf16": False, "avx512_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    monkeypatch.setattr(machine, "matrix_rate", None)  # nothing is measured
    assert fastest_precision(CPU) == "bf16"
    has["avx512_bf16"] = False
    assert fastest_precision(CPU) == "fp32"
    has.clear()
    monkeypatch.setattr(machine, "matrix_rate", lambda _, kind: {"fp32": 2.0, "bf16": 4.0}[kind])
    assert fastest_precision(CPU) == "bf16"


def test_steps_and_evaluations_are_timed_in_the_stages_micro_batches(monkeypatch) -> None:
    seen: list[tuple[int, object]] = []
    step = Trainer.step

    def listening(self, number, batch, factor):
        seen.append((self.depth, self.micro_batch))
        return step(self, number, batch, factor)

    monkeypatch.setattr(Trainer, "step", listening)
    stages = [{"depth": 1, "steps": 3, "micro_batch": 8}, {"depth": 12, "steps": 3}]
    timing = tuning.measure(tiny(stages=stages), CORPUS, device=CPU)
    assert 0 < timing.step[0] < timing.step[1] < 60
    assert 0 < timing.evaluation[0] < timing.evaluation[1] < 60
    assert seen == [(1, 8), (12, 4)] * 7
    seen.clear()
    tuning.measure(tiny(stages=stages[:1]), CORPUS, device=CPU, patience=1000.0)
    assert len(seen) == 32, "patience buys more turns, and ends"


STEPS = st.integers(1, 10**5)


@given(
    steps=st.tuples(STEPS, STEPS, STEPS),
    times=st.tuples(*[st.floats(1e-4, 10.0)] * 3),
    evaluation=st.floats(1e-4, 20.0),
    every=st.none() | st.integers(1, 1000),
    seconds=st.floats(1.0, 10**6),
)
def test_the_steps_of_a_budget_fill_it_and_each_stage_keeps_its_share(
    steps, times, evaluation, every, seconds
) -> None:
    stages = [{"depth": d, "steps": s} for d, s in zip((1, 2, 4), steps, strict=True)]
    recipe = tiny(stages=stages, evaluation__every_steps=every)
    try:
        scaled = tuning.scaled_to(recipe, tuning.Timing(times, (evaluation,) * 3), seconds)
    except UserError:
        # Three steps, one a stage, would have taken longer.
        assert 3 * max(times) + evaluation > 0.9 * seconds
        return
    total = scaled.total_steps
    for before, after in zip(recipe.stages, scaled.stages, strict=True):
        share = before.steps / recipe.total_steps * total
        assert abs(after.steps - share) <= 2, "boundaries are rounded, no stage is left empty"
    spent = sum(s.steps * t for s, t in zip(scaled.stages, times, strict=True))
    if every is None:
        share = tuning.EVALUATION_SHARE * seconds
        spent += min((tuning.EVALUATIONS + 4) * evaluation, share)
        most = max(share, 6 * evaluation)  # beside the growths, the beginning and the end
        assert sum(tuning.evaluations_by_stage(scaled)) * evaluation <= most + 3 * evaluation
    else:
        spent += total / every * evaluation
    assert spent <= seconds * (1 + 1e-9) + 3 * max(times)
    assert spent >= seconds - 4 * max(times) - evaluation, "not much is left over"


@pytest.mark.parametrize("every", [None, 4])
def test_a_run_evaluates_as_often_as_counted(every, factbook_corpus, tmp_path) -> None:
    depths = ((1, 3), (2, 5), (2, 4), (4, 9))
    stages = [{"depth": depth, "steps": steps} for depth, steps in depths]
    recipe = tiny(stages=stages, evaluation__every_steps=every)
    pretrain(recipe, corpus=factbook_corpus, out=tmp_path / "run")
    ledger = read_ledger(tmp_path / "run")
    at = ledger[ledger.kind == "evaluation"].depth.tolist()
    at += ledger[ledger.kind == "growth"].target_depth.tolist()
    one, two, two_more, four = tuning.evaluations_by_stage(recipe)
    assert {depth: at.count(depth) for depth in (1, 2, 4)} == {1: one, 2: two + two_more, 4: four}
