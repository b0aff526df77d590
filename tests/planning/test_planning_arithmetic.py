"""A plan's arithmetic, by hand."""

import pytest
from planning_helpers import small
from stackbert.pretraining.budget import evaluations_by_stage

import stackbert as sb


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
