"""What a plan predicts, by hand and by measuring; its memory, next to what torch allocates."""

import weakref
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from stackbert import planner
from stackbert.batches.batches import Batch, training_plan
from stackbert.devices import find_device
from stackbert.errors import UserError
from stackbert.planner import Plan, plan
from stackbert.pretraining.memory import footprint
from stackbert.pretraining.synthetic import SyntheticCorpus
from stackbert.pretraining.trainer import Trainer, recipe_model, stage_flops
from stackbert.recipe import Recipe
from stackbert.recipes import load_recipe
from tiny_runs import recipe_of, tiny_recipe

SMALL = {
    "stages": [{"depth": 1, "steps": 10}, {"depth": 2, "steps": 20}],
    "objective__mask_rate": 0.5,
    "optimizer": {"name": "adamw"},
    "batch__micro_batch": 2,
    "evaluation__mask_rate": 0.15,
}


def small(**fields: object) -> Recipe:
    return tiny_recipe(**{**SMALL, **fields})


@pytest.fixture
def _without_memory(monkeypatch) -> None:
    """Memory takes a second of every plan, and these tests look at something else."""
    monkeypatch.setattr(planner, "footprint", lambda *_, **__: (0, 1))


@pytest.mark.usefixtures("_without_memory")
def test_a_named_device_takes_the_stages_flops_over_its_peak_times_the_mfu() -> None:
    def rates(recipe: Recipe, device: str, **options: object) -> list[float]:
        table = plan(recipe, device=device, **options).table
        return (table.flops / table.training_seconds).tolist()

    table, corpus = plan(small(), device="A100", vocab_size=128).table, SyntheticCorpus(128)
    one, two = map(int.__mul__, (10, 20), stage_flops(small(), corpus))
    assert table.flops.tolist() == [one, two, one + two, two * 30 // 20]
    assert table.tokens.tolist() == [steps * 4 * 16 for steps in (10, 20, 30, 30)]
    auto = small(precision="auto")
    assert rates(auto, "rtx-4090", mfu=0.5) == pytest.approx([0.5 * 165e12] * 4)
    assert rates(auto, "CPU") == pytest.approx([0.4 * 0.1e12] * 4)
    assert rates(small(), "A100") == pytest.approx([0.4 * 156e12] * 4)
    # An evaluation of eight rows with as many masks is the forward pass of two steps.
    stage = plan(small(evaluation__mask_rate=0.5), device="A100").table.loc["stage 2"]
    assert stage.evaluation_seconds / stage.evaluations == pytest.approx(2 / 3 * stage.step_seconds)


@pytest.mark.usefixtures("_without_memory")
def test_the_papers_recipe_takes_the_share_that_its_layers_predict() -> None:
    planned = plan(load_recipe("bert-base-gong2019"), device="A100", price=2.0)
    seconds = planned.table.seconds
    assert planned.saving == pytest.approx(0.18, abs=0.02)  # 0.82 of the layers' steps
    assert seconds["stacked"] == pytest.approx(seconds.iloc[:3].sum())
    assert planned.table.cost["scratch"] == pytest.approx(2.0 * seconds["scratch"] / 3600)
    # 110 million parameters, the pooler and the next-sentence head included.
    assert planned.table.parameters["scratch"] == pytest.approx(112e6, rel=0.01)


@pytest.mark.usefixtures("_without_memory")
def test_steps_budget_and_corpus_scale_the_stages_and_the_evaluation(factbook_corpus) -> None:
    assert plan(small(), device="A100", steps=12).recipe.total_steps == 12
    whole = plan(small(), device="cpu", budget="2h")
    assert whole.table.seconds["stacked"] == pytest.approx(7200, rel=0.01)
    assert whole.recipe.stages[0].steps == pytest.approx(whole.recipe.total_steps / 3, abs=1)
    recipe = small(evaluation__sequences=100_000)
    table = plan(recipe, device="A100", corpus=factbook_corpus.folder).table
    size = factbook_corpus.vocabulary.tokenizer_size
    without = plan(recipe, device="A100", vocab_size=size).table
    assert table.flops.tolist() == without.flops.tolist()
    rows = table.evaluation_seconds["scratch"] / without.evaluation_seconds["scratch"] * 100_000
    assert rows == pytest.approx(len(factbook_corpus.validation) // 14)


def on_h100s(devices: int, engine: str = "ddp") -> Plan:
    """1,024 rows of 32."""
    batch = {"sequences": 1024, "sequence_length": 32, "micro_batch": 64}
    stages = [{"depth": 2, "steps": 20}]
    recipe = small(batch=batch, precision="auto", engine=engine, stages=stages)
    return plan(recipe, device="H100", price=2.0, devices=devices)


def test_devices_share_the_arithmetic_and_wait_for_what_the_backward_pass_does_not_hide() -> None:
    alone, machine, rack = (on_h100s(devices) for devices in (1, 8, 64))
    # A micro-batch of 64 rows: a machine's devices make two passes, the rack's a part of one.
    for planned, devices, passes, link in ((machine, 8, 2, 450e9), (rack, 64, 1, 50e9)):
        before, stage = alone.table.loc["stage 1"], planned.table.loc["stage 1"]
        compute = before.step_seconds / devices
        ring = 2 * (devices - 1) / devices * 4 * before.parameters / (0.7 * link)
        assert stage.waiting_seconds == pytest.approx(max(0.0, ring - 2 / 3 * compute / passes))
        assert stage.step_seconds == pytest.approx(compute + stage.waiting_seconds)
        assert stage.waiting_seconds > 0
    together = machine.table.loc["stacked"]
    assert together.flops == alone.table.flops["stacked"]
    assert together.cost == pytest.approx(8 * 2.0 * together.seconds / 3600)
    sharded = on_h100s(64, "fsdp").table.loc["stage 1"]
    assert sharded.waiting_seconds > stage.waiting_seconds
    saved = stage.memory - sharded.memory  # weights, gradients and the two moments of AdamW
    assert saved == pytest.approx(63 / 64 * 4 * 4 * stage.parameters, rel=1e-2)
    assert "64 × H100" in rack.text()
    assert "Devices wait for each other" in rack.text()


@pytest.mark.usefixtures("_without_memory")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": "1h", "steps": 9}, "not both"),
        ({"corpus": "here", "vocab_size": 99}, "Give a corpus"),
        ({"devices": 2, "device": "cpu"}, "no link between CPUs"),
        ({"devices": 3}, r"4 rows cannot be shared equally by 3"),
        ({"vocab_size": 3}, "too small"),
        ({"device": "TPU"}, "no device 'TPU'. Choose A100, .* RTX 4090, cpu, or 'here'"),
        ({"device": "cpu", "precision": "bf16"}, "--set precision=fp32"),
    ],
)
def test_what_cannot_be_planned_is_a_sentence(options, message) -> None:
    options = {"device": "A100", "precision": "fp32", **options}
    recipe = small(precision=options.pop("precision"))
    with pytest.raises(UserError, match=message):
        plan(recipe, **options)


@pytest.fixture
def steps(monkeypatch) -> list[Batch]:
    """The batches that are trained on, without patience."""
    seen: list[Batch] = []
    step = Trainer.step

    def listening(self, number, batch, factor):
        seen.append(batch)
        return step(self, number, batch, factor)

    monkeypatch.setattr(planner, "MAX_TIMING_SECONDS", 0.0)
    monkeypatch.setattr(Trainer, "step", listening)
    return seen


def test_here_measures_what_a_run_would_do_and_touches_nothing_of_the_caller(
    steps, factbook_corpus, monkeypatch
) -> None:
    monkeypatch.setattr("stackbert.pretraining.autotune.TUNE_FROM", {"cpu": 0.0})
    stages = [{"depth": 1, "steps": 10}, {"depth": 4, "steps": 20}]
    batch = {"sequences": 64, "sequence_length": 16}
    recipe = small(objective__next_sentence=True, batch=batch, stages=stages)
    before = torch.get_rng_state()
    planned = plan(recipe, corpus=factbook_corpus, steps=60)
    assert torch.equal(torch.get_rng_state(), before)
    batches = training_plan(recipe.scaled(60), factbook_corpus)
    assert torch.equal(steps[0].input_ids_BS, batches.batch(0).input_ids_BS)
    second_turn_of_stage_2 = batches.batch(20 + 1).input_ids_BS
    assert torch.equal(steps[3].input_ids_BS, second_turn_of_stage_2)
    chosen = [stage.micro_batch for stage in planned.recipe.stages]
    assert planned.table.micro_batch.iloc[:2].tolist() == chosen, "micro-batches were autotuned"
    shallow, deep = planned.table.loc["stage 1"], planned.table.loc["stage 2"]
    assert 0 < shallow.step_seconds < deep.step_seconds < 60
    assert "measured here" in planned.title
    assert "Matrix products run at" in planned.text()


@pytest.mark.usefixtures("_without_memory")
def test_the_command_prints_the_plan(stackbert) -> None:
    done = stackbert("plan", "demo", "--device", "H200", "--price", "3", "--mfu", "0.3")
    assert done.code == 0, done.err
    planned = plan(load_recipe("demo"), device="H200", price=3.0, mfu=0.3)
    assert done.out.rstrip("\n") == planned.text()
    assert "Plan of demo on H200, bf16, at an assumed MFU of 0.3" in done.out
    assert f"stacking saves {planned.saving:.0%}" in done.out


WIDER = {
    "name": "wider",
    "model": {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64},
    "stages": [{"depth": 2, "steps": 9}],
    "batch": {"sequences": 12, "sequence_length": 64},
    "objective": {"mask_rate": 0.3},
    "precision": "fp32",
}
CORPUS = SyntheticCorpus(1280, tokens=20_000)  # the loss of a CPU takes more than one part


class Live(TorchDispatchMode):
    """Bytes of all tensors alive, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._known = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self.add, result)
        return result

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known.add(storage)
            weakref.finalize(storage, self._gone, storage.nbytes())
            self.bytes += storage.nbytes()
            self.peak = max(self.peak, self.bytes)

    def _gone(self, count: int) -> None:
        self.bytes -= count


def planned_memory(recipe: Recipe, is_cpu: bool = True) -> tuple[int, int]:
    row = training_plan(recipe, CORPUS).batch(0).rows(0, 1)
    with torch.device("meta"):
        model = recipe_model(recipe, CORPUS.vocabulary, recipe.stages[0].depth)
    return footprint(model, recipe.optimizer, row, precision=recipe.precision, is_cpu=is_cpu)


@pytest.mark.parametrize(
    ("kind", "optimizer", "pairs", "precision"),
    [
        ("bert", "adamw", False, "bf16"),
        ("bert", "muon", True, "fp32"),
        ("megatron-bert", "muon", False, "fp32"),
        ("roberta-prelayernorm", "adamw", False, "fp32"),
        ("modernbert", "adamw", False, "fp32"),
    ],
)
def test_memory_is_what_torch_allocates(kind, optimizer, pairs, precision) -> None:
    fields = {"model__type": kind, "optimizer__name": optimizer, "precision": precision}
    recipe = recipe_of(WIDER, objective__next_sentence=pairs, **fields)
    batch = training_plan(recipe, CORPUS).batch(0)
    model = recipe_model(recipe, CORPUS.vocabulary, 2)
    trainer = Trainer(model, recipe, device=torch.device("cpu"))
    trainer.step(0, batch, 0.1)
    state = [t for each in trainer.optimizers.state().values() for t in each.values()]
    with Live() as live:
        for tensor in [*trainer.model.parameters(), *state]:
            live.add(tensor)
        for _ in range(2):  # the second micro-batch meets the gradients of the first
            trainer.backward(batch, batch.columns_BK.numel(), 12)
    fixed, row = planned_memory(recipe)
    assert 0.95 < (fixed + 12 * row) / live.peak < 1.1


def test_a_gpus_attention_keeps_no_probabilities_under_dropout() -> None:
    def row(rate: float, is_cpu: bool) -> int:
        recipe = recipe_of(WIDER, model__attention_probs_dropout_prob=rate)
        return planned_memory(recipe, is_cpu)[1]

    # Two heads of 64 × 64 probabilities in fp32, before and after dropout.
    assert row(0.1, True) > row(0.0, True) + 2 * 2 * 64 * 64 * 4
    assert row(0.1, False) == row(0.0, False)


def test_micro_batches_are_planned_to_fit_and_what_does_not_fit_is_said(monkeypatch) -> None:
    recipe = recipe_of(WIDER, batch={"sequences": 64, "sequence_length": 64})
    fixed, row = planned_memory(recipe, is_cpu=False)
    memory = int((fixed + 20.5 * row) / planner.USABLE)
    scarce = replace(find_device("L4"), memory=memory)
    monkeypatch.setattr(planner, "find_device", lambda _: scarce)
    planned = plan(recipe, device="L4", vocab_size=1280)
    assert planned.table.micro_batch["stage 1"] == 20
    assert planned.table.memory["stage 1"] == pytest.approx(fixed + 20 * row)
    assert "does not fit" not in planned.text()
    asked = recipe_of(WIDER, batch={"sequences": 64, "sequence_length": 64, "micro_batch": 32})
    assert "32 rows need about" in plan(asked, device="L4", vocab_size=1280).text()
