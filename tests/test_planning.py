"""A plan: its arithmetic by hand, its memory against torch's, its sentences, its measuring."""

import subprocess
import sys
import time
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import stackbert as sb
from stackbert.__main__ import main
from stackbert.batches import StageShape
from stackbert.models import create_model
from stackbert.planning import pace
from stackbert.planning.devices import DEVICES, GIB, find_device
from stackbert.planning.memory import footprint
from stackbert.planning.rehearsal import random_batch, stand_in_vocabulary
from stackbert.planning.table import duration, plan_table
from stackbert.pretraining.budget import evaluations_by_stage
from stackbert.pretraining.evaluation import to_device
from stackbert.pretraining.trainer import POSITIONS_AT_ONCE, Trainer
from stackbert.vocabulary import load_vocabulary

SMALL = [
    "model={type: bert, hidden_size: 32, num_attention_heads: 2, intermediate_size: 64}",
    "batch.sequences=4",
    "batch.sequence_length=16",
    "batch.micro_batch=2",
    "objective.mask_rate=0.5",
    "optimizer.name=adamw",
    "precision=fp32",
    "evaluation.sequences=8",
    "evaluation.mask_rate=0.15",
    "schedule.warmup_steps=2",
    "stages=[{depth: 1, steps: 10}, {depth: 2, steps: 20}, {depth: 4, steps: 30}]",
]


def small(*overrides: str) -> sb.Recipe:
    return sb.load_recipe("demo", [*SMALL, *overrides])


@pytest.fixture(autouse=True)
def _on_one_thread_of_the_cpu(monkeypatch):
    # Threads of steps so small wait for one another more than they work.
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def stackbert(monkeypatch, capsys):
    """Runs the command line as a shell would; gives exit code, output and errors."""

    def run(*arguments: object) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["stackbert", *map(str, arguments)])
        code: object = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run


# Arithmetic


def test_flops_are_those_counted_by_hand() -> None:
    planned = sb.plan(small(), device="A100", vocab_size=128)
    rows, length, hidden, inner, vocabulary = 4, 16, 32, 64, 128
    positions, masked = rows * length, rows * 7  # half of 14 tokens a row
    linear = 4 * hidden * hidden + 2 * hidden * inner
    layer = 2 * positions * linear + 4 * positions * length * hidden
    # The last layer: keys and values everywhere, the rest at the masked positions.
    last = 2 * positions * 2 * hidden * hidden + 2 * masked * (linear - 2 * hidden * hidden)
    last += 4 * masked * length * hidden
    head = 2 * masked * (hidden * hidden + hidden * vocabulary)
    for stage, (depth, steps) in zip(planned.stages, ((1, 10), (2, 20), (4, 30)), strict=True):
        assert (stage.depth, stage.steps) == (depth, steps)
        assert stage.tokens == steps * positions
        assert stage.flops == steps * 3 * ((depth - 1) * layer + last + head)
    assert planned.flops == sum(stage.flops for stage in planned.stages)
    assert planned.scratch.flops == 60 * 3 * (3 * layer + last + head)
    assert (planned.scratch.depth, planned.scratch.steps) == (4, 60)


def test_a_named_device_takes_flops_over_peak_times_mfu() -> None:
    recipe = small("precision=auto")
    planned = sb.plan(recipe, device="h100", mfu=0.5)
    assert (planned.precision, planned.mfu) == ("bf16", 0.5)
    for stage in planned.stages:
        assert stage.step_seconds == pytest.approx(stage.flops / stage.steps / (0.5 * 989e12))
        assert stage.flops_per_second == pytest.approx(0.5 * 989e12)
    assert sb.plan(recipe, device="H100").stages[0].step_seconds == pytest.approx(
        planned.stages[0].step_seconds * 0.5 / 0.4
    )
    on_cpu = sb.plan(recipe, device="cpu")
    assert on_cpu.precision == "fp32"
    assert on_cpu.stages[0].flops_per_second == pytest.approx(0.4 * 0.1e12)
    in_fp32 = sb.plan(small(), device="A100")
    assert in_fp32.stages[0].flops_per_second == pytest.approx(0.4 * 19.5e12)


def test_the_papers_recipe_takes_the_share_that_its_layers_predict() -> None:
    recipe = sb.load_recipe("bert-base-gong2019")
    layer_steps = sum(stage.depth * stage.steps for stage in recipe.stages)
    assert layer_steps / (12 * recipe.total_steps) == pytest.approx(0.82, abs=0.002)
    planned = sb.plan(recipe, device="A100")
    assert planned.vocabulary_size == 32768
    share = planned.training_seconds / planned.scratch.training_seconds
    assert share == pytest.approx(0.82, abs=0.02)
    assert planned.saving == pytest.approx(1 - planned.seconds / planned.scratch.seconds)
    # 110 million parameters, the pooler and the next-sentence head included.
    assert planned.scratch.parameters == pytest.approx(112e6, rel=0.01)


def test_time_and_money_add_up() -> None:
    planned = sb.plan(small(), device="L4", price=2.0)
    training = sum(stage.steps * stage.step_seconds for stage in planned.stages)
    evaluating = sum(stage.evaluations * stage.evaluation_seconds for stage in planned.stages)
    assert planned.training_seconds == pytest.approx(training)
    assert planned.seconds == pytest.approx(training + evaluating)
    assert planned.cost == pytest.approx(2.0 * planned.seconds / 3600)
    assert planned.scratch_cost == pytest.approx(2.0 * planned.scratch.seconds / 3600)
    assert planned.scratch.step_seconds == planned.stages[-1].step_seconds
    assert sb.plan(small(), device="L4").cost is None


def test_evaluation_costs_a_forward_pass_of_its_rows() -> None:
    # The evaluation of eight rows at the training rate of masks is two training steps' forward.
    planned = sb.plan(small("evaluation.mask_rate=0.5"), device="A100")
    for stage in planned.stages:
        assert stage.evaluation_seconds == pytest.approx(2 / 3 * stage.step_seconds)


@pytest.mark.parametrize("every", [None, 4, 100])
def test_a_run_evaluates_as_often_as_planned(every, factbook_corpus, tmp_path) -> None:
    recipe = small(
        f"evaluation.every_steps={every or 'null'}",
        "stages=[{depth: 1, steps: 3}, {depth: 2, steps: 5}, {depth: 2, steps: 4}, "
        "{depth: 4, steps: 9}]",
    )
    sb.pretrain(recipe, corpus=factbook_corpus, out=tmp_path)
    rows = sb.read_ledger(tmp_path)
    seen = dict.fromkeys((1, 2, 4), 0)
    for row in rows:
        if row["kind"] in ("evaluation", "growth"):
            seen[row["depth"] if row["kind"] == "evaluation" else row["target_depth"]] += 1
    one, two, two_more, four = evaluations_by_stage(recipe)
    assert seen == {1: one, 2: two + two_more, 4: four}


def test_steps_and_budget_scale_the_stages() -> None:
    assert sb.plan(small(), device="A100", steps=12).recipe.total_steps == 12
    whole = sb.plan(sb.load_recipe("bert-base"), device="H200", budget="2h")
    assert whole.seconds == pytest.approx(7200, rel=0.01)
    assert whole.recipe.stages[0].steps == pytest.approx(whole.recipe.total_steps / 4, abs=1)
    assert sum(stage.steps for stage in whole.stages) == whole.recipe.total_steps


def test_a_corpus_sizes_vocabulary_and_evaluation(factbook_corpus, factbook_vocabulary) -> None:
    recipe = small("evaluation.sequences=100000")
    planned = sb.plan(recipe, device="A100", corpus=factbook_corpus)
    assert planned.vocabulary_size == factbook_vocabulary.size
    without = sb.plan(recipe, device="A100", vocab_size=factbook_vocabulary.tokenizer_size)
    assert planned.flops == without.flops
    fit = len(factbook_corpus.validation) // 14
    assert planned.scratch.evaluation_seconds == pytest.approx(
        without.scratch.evaluation_seconds * fit / 100000
    )


# Memory


class Live(TorchDispatchMode):
    """Bytes of all tensors alive, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._known = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        torch.utils._pytree.tree_map_only(torch.Tensor, self.add, result)
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


def model_of(recipe: sb.Recipe, vocabulary, shape: StageShape, depth: int):
    return create_model(
        recipe.model,
        depth=depth,
        vocabulary=vocabulary,
        sequence_length=shape.sequence_length,
        next_sentence=recipe.objective.next_sentence,
    )


def planned_footprint(
    recipe: sb.Recipe, vocabulary, shape: StageShape, depth: int, precision="fp32", is_cpu=True
):
    with torch.device("meta"):
        model = model_of(recipe, vocabulary, shape, depth)
    return footprint(
        model,
        recipe.optimizer,
        shape,
        vocabulary,
        next_sentence=recipe.objective.next_sentence,
        precision=precision,
        is_cpu=is_cpu,
    )


@pytest.mark.parametrize(
    ("kind", "optimizer", "pairs", "precision"),
    [
        ("bert", "adamw", "false", "bf16"),
        ("bert", "muon", "true", "fp32"),
        ("megatron-bert", "muon", "false", "fp32"),
        ("roberta-prelayernorm", "adamw", "false", "fp32"),
        ("modernbert", "adamw", "false", "fp32"),
    ],
)
def test_memory_is_what_torch_allocates(kind, optimizer, pairs, precision) -> None:
    recipe = small(
        f"model.type={kind}", f"optimizer.name={optimizer}", f"objective.next_sentence={pairs}"
    )
    vocabulary = stand_in_vocabulary(640)
    shape = StageShape(1, 12, 48, 0.3)
    batch = random_batch(shape, vocabulary, next_sentence=recipe.objective.next_sentence)
    trainer = Trainer(
        model_of(recipe, vocabulary, shape, depth=3),
        recipe.optimizer,
        device=torch.device("cpu"),
        precision=precision,
        micro_batch=shape.rows,
        seed=0,
    )
    memory = planned_footprint(recipe, vocabulary, shape, 3, precision).at(shape.rows)

    parameters = list(trainer.model.parameters())
    weights = sum(p.untyped_storage().nbytes() for p in parameters)
    assert memory.weights == memory.gradients == weights

    trainer.step(0, batch, 0.1)
    state = [t for each in trainer.optimizers.state().values() for t in each.values()]
    assert memory.optimizer == sum(t.untyped_storage().nbytes() for t in state)

    inputs = to_device(batch, torch.device("cpu"))
    with Live() as live:
        for tensor in [*parameters, *state]:
            live.add(tensor)
        for _ in range(2):  # the second micro-batch meets the gradients of the first
            trainer.backward(inputs, batch.columns.size, shape.rows)
    assert 0.95 < memory.total / live.peak < 1.1


def test_a_gpus_attention_keeps_no_probabilities_under_dropout() -> None:
    vocabulary, shape = stand_in_vocabulary(128), StageShape(1, 4, 64, 0.15)
    kept = {
        (rate, is_cpu): planned_footprint(
            small(f"model.attention_probs_dropout_prob={rate}"),
            vocabulary,
            shape,
            2,
            "fp32",
            is_cpu,
        ).activations_a_row
        for rate in (0.0, 0.1)
        for is_cpu in (True, False)
    }
    # Two heads of 64 × 64 probabilities in fp32, before and after dropout at least.
    assert kept[0.1, True] > kept[0.0, True] + 2 * 2 * 64 * 64 * 4
    assert kept[0.1, False] == kept[0.0, False] == kept[0.0, True]


def test_auto_micro_batches_fit_the_device() -> None:
    long = small("batch={sequences: 4096, sequence_length: 512}", "precision=bf16")
    planned = sb.plan(long, device="H200")
    assert {stage.micro_batch for stage in planned.stages} == {POSITIONS_AT_ONCE["cuda"] // 512}
    wide = small(
        "model.hidden_size=2048",
        "model.intermediate_size=8192",
        "model.num_attention_heads=16",
        "batch={sequences: 4096, sequence_length: 512}",
        "precision=bf16",
        "stages=[{depth: 12, steps: 9}]",
    )
    (stage,) = sb.plan(wide, device="L4").stages
    assert 1 <= stage.micro_batch < POSITIONS_AT_ONCE["cuda"] // 512
    usable = 0.9 * find_device("L4").memory
    a_row = stage.memory.activations / stage.micro_batch
    assert usable - 2 * a_row < stage.memory.total <= usable
    assert sb.plan(wide, device="L4").notes == ()


def test_what_does_not_fit_is_said_in_a_sentence() -> None:
    huge = small(
        "model.hidden_size=8192",
        "model.intermediate_size=32768",
        "model.num_attention_heads=64",
        "stages=[{depth: 1, steps: 9}, {depth: 2, steps: 9}]",
    )
    planned = sb.plan(huge, device="RTX 4090")
    (note,) = planned.notes
    assert note.startswith("Depth 2 does not fit on RTX 4090: even with one row a micro-batch")
    assert note in plan_table(planned)
    assert sb.plan(huge, device="H200").notes == ()
    (note,) = sb.plan(small("batch={sequences: 65536, micro_batch: 65536}"), device="L4").notes[:1]
    assert "micro-batches of 65536 rows need about" in note
    assert "rows fit (batch.micro_batch)" in note


# Measured on the spot


def test_here_trains_steps_of_every_depth(monkeypatch) -> None:
    monkeypatch.setattr(pace, "_PATIENCE", 0.0)
    recipe = small("stages=[{depth: 1, steps: 10}, {depth: 16, steps: 20}]")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    planned = sb.plan(recipe, device="here", vocab_size=128, steps=60, price=1.0)
    assert torch.equal(torch.get_rng_state(), before), "the caller's random state is untouched"
    shallow, deep = planned.stages
    assert 0 < shallow.step_seconds < deep.step_seconds < 10
    assert 0 < shallow.evaluation_seconds < deep.evaluation_seconds < 10
    assert (shallow.steps, deep.steps) == (20, 40)
    assert planned.mfu is None
    assert planned.device.memory > GIB
    assert planned.notes == ()
    assert 0 < planned.saving < 1
    text = plan_table(planned)
    assert "measured here" in text
    assert "Matrix products run at" in text


def test_here_measures_on_the_corpus_if_there_is_one(factbook_corpus, monkeypatch) -> None:
    monkeypatch.setattr(pace, "_PATIENCE", 0.0)
    seen = []
    step = Trainer.step

    def listening(self, number, batch, factor):
        seen.append(batch)
        return step(self, number, batch, factor)

    monkeypatch.setattr(Trainer, "step", listening)
    recipe = small("objective.next_sentence=true")
    planned = sb.plan(recipe, corpus=factbook_corpus)
    assert planned.stages[0].step_seconds > 0
    plan = pace.batch_plan(recipe, factbook_corpus, load_vocabulary(factbook_corpus))
    assert (seen[0].input_ids == plan.batch(0).input_ids).all()
    assert (seen[4].input_ids == plan.batch(10 + 1).input_ids).all(), "second turn, second stage"


def test_patience_buys_more_turns_and_ends(monkeypatch) -> None:
    counts = {}
    step = Trainer.step

    def counting(self, number, batch, factor):
        counts[self.depth] = counts.get(self.depth, 0) + 1
        return step(self, number, batch, factor)

    monkeypatch.setattr(Trainer, "step", counting)
    monkeypatch.setattr(pace, "_PATIENCE", 0.0)
    sb.plan(small())
    assert counts == {1: 7, 2: 7, 4: 7}
    counts.clear()
    monkeypatch.setattr(pace, "_PATIENCE", 1000.0)
    sb.plan(small())
    assert counts == {1: 32, 2: 32, 4: 32}


def test_each_stage_is_timed_with_its_own_micro_batch(monkeypatch) -> None:
    seen = []
    step = Trainer.step

    def listening(self, number, batch, factor):
        seen.append((self.depth, self.micro_batch))
        return step(self, number, batch, factor)

    monkeypatch.setattr(Trainer, "step", listening)
    monkeypatch.setattr(pace, "_PATIENCE", 0.0)
    planned = sb.plan(small("stages=[{depth: 1, steps: 9, micro_batch: 4}, {depth: 1, steps: 9}]"))
    assert set(seen) == {(1, 4), (1, 2)}
    assert [stage.micro_batch for stage in planned.stages] == [4, 2]


def test_here_settles_what_a_run_would_settle(monkeypatch) -> None:
    monkeypatch.setattr(pace, "_PATIENCE", 0.0)
    monkeypatch.setattr("stackbert.pretraining.tuning.TUNE_FROM", 0.0)
    planned = sb.plan(small("batch.micro_batch=auto", "batch.sequences=64"))
    chosen = [stage.micro_batch for stage in planned.recipe.stages]
    assert all(isinstance(rows, int) for rows in chosen)
    assert [stage.micro_batch for stage in planned.stages] == chosen
    assert planned.recipe.compile is False


def test_a_step_too_long_is_timed_on_fewer_rows_and_scaled_up(monkeypatch) -> None:
    rows = set()
    step = Trainer.step

    def slow(self, number, batch, factor):
        rows.add(len(batch.input_ids))
        time.sleep(0.02)
        return step(self, number, batch, factor)

    monkeypatch.setattr(Trainer, "step", slow)
    monkeypatch.setattr(pace, "_PATIENCE", 0.0)
    monkeypatch.setattr(pace, "_LONGEST_TURN", 1e-12)
    planned = sb.plan(small("batch.sequences=40", "stages=[{depth: 1, steps: 10}]"))
    assert rows == {1}
    assert planned.stages[0].step_seconds > 40 * 0.02
    assert any("scaled up" in note for note in planned.notes)


def test_too_little_memory_to_measure_in_is_a_sentence(monkeypatch) -> None:
    monkeypatch.setattr(pace, "measure_batches", lambda *_, **__: pytest.fail("it measured"))
    monkeypatch.setattr(
        "stackbert.planning.planner.this_machine",
        lambda *_: replace(find_device("cpu"), memory=10**5),
    )
    with pytest.raises(sb.UserError, match=r"Measuring 'demo' here takes about .* GiB"):
        sb.plan(small())


# Sentences


@pytest.mark.parametrize("name", [*(device.name for device in DEVICES), "rtx4090", "RTX-4090"])
def test_devices_are_found_by_name(name) -> None:
    assert find_device(name).name.lower().replace(" ", "") == name.lower().replace(" ", "").replace(
        "-", ""
    )


def test_an_unknown_device_is_a_sentence_with_the_names(stackbert) -> None:
    done = stackbert("plan", "demo", "--device", "TPU")
    assert done.code == 2
    assert "There is no device 'TPU'" in done.err
    for name in ("A100", "H100", "H200", "L4", "RTX 4090", "cpu", "here"):
        assert name in done.err
    assert "Traceback" not in done.err


def test_an_unknown_recipe_is_a_sentence(stackbert) -> None:
    done = stackbert("plan", "bert-bass", "--device", "H100")
    assert done.code == 2
    assert "There is no recipe 'bert-bass'" in done.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": "1h", "steps": 9}, "not both"),
        ({"corpus": "here", "vocab_size": 99}, "Give a corpus"),
        ({"mfu": 0.0}, "above 0 and at most 1"),
        ({"mfu": 1.5}, "above 0 and at most 1"),
        ({"mfu": 0.5, "device": "here"}, "no MFU to assume"),
        ({"price": -1.0}, "USD an hour"),
        ({"price": float("nan")}, "USD an hour"),
        ({"vocab_size": 3}, "too small"),
        ({"budget": "soon"}, "not a duration"),
        ({"corpus": "/nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be_planned_is_a_sentence(options, message) -> None:
    with pytest.raises(sb.UserError, match=message):
        sb.plan(small(), **{"device": "A100", **options})


def test_a_rate_that_the_table_lacks_is_a_sentence() -> None:
    with pytest.raises(sb.UserError, match="precision=fp32"):
        sb.plan(small("precision=bf16"), device="cpu")


def test_the_command_prints_the_plan(stackbert) -> None:
    done = stackbert("plan", "demo", "--device", "H200", "--price", "3", "--mfu", "0.3")
    assert done.code == 0, done.err
    planned = sb.plan(sb.load_recipe("demo"), device="H200", price=3.0, mfu=0.3)
    assert done.out.rstrip("\n") == plan_table(planned)
    assert "Plan of demo on H200, bf16, at an assumed MFU of 0.3" in done.out
    assert f"stacking saves {planned.saving:.0%}" in done.out
    assert f"{planned.cost:,.2f} USD stacked" in done.out
    assert "Peak 989 TFLOP/s" in done.out
    assert "Vocabulary 32,768 (the paper's" in done.out
    assert all(len(line) < 120 for line in done.out.splitlines())


def test_help_has_an_example_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, stackbert.cli; from typer.testing import CliRunner; "
        "result = CliRunner().invoke(stackbert.cli.app, ['plan', '--help']); "
        "assert 'Example: stackbert plan' in ' '.join(result.output.split()), result.output; "
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules); "
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (99.4, "99 s"), (100, "1.7 min"), (5999, "100.0 min"), (4.5e6, "1,250.0 h")],
)
def test_durations_in_a_readers_unit(seconds, text) -> None:
    assert duration(seconds) == text
