"""A plan for several devices: what they exchange, by hand, and what is refused."""

import pytest
from stackbert.planning.table import plan_table

import stackbert as sb

# At 128 tokens a row; 24 layers would be the same arithmetic, only slower to count.
RECIPE = sb.load_recipe(
    "bert-base",
    [
        "batch.sequences=1024",
        "stages=[{depth: 3, steps: 9}, {depth: 6, steps: 9}]",
        "schedule.warmup_steps=2",
        "batch.micro_batch=64",
    ],
)


def planned(devices: int, recipe: sb.Recipe = RECIPE, device: str = "H100") -> sb.Plan:
    return sb.plan(recipe, device=device, price=2.0, devices=devices, steps=18)


def test_devices_share_the_arithmetic_and_wait_for_what_the_backward_pass_does_not_hide() -> None:
    alone, machine, rack = planned(1), planned(8), planned(64)
    for before, within, between in zip(alone.stages, machine.stages, rack.stages, strict=True):
        # A micro-batch of 64 rows: a machine's devices make two passes, the rack's a part of one.
        compute = before.step_seconds / 8
        ring = 2 * 7 / 8 * 4 * before.parameters / (0.7 * 450e9)
        waited = max(0.0, ring - 2 / 3 * compute / 2)
        assert within.waiting_seconds == pytest.approx(waited)
        assert within.step_seconds == pytest.approx(compute + waited)
        compute = before.step_seconds / 64
        ring = 2 * 63 / 64 * 4 * before.parameters / (0.7 * 50e9)
        waited = ring - 2 / 3 * compute
        assert between.waiting_seconds == pytest.approx(waited, rel=1e-6)
        assert waited > 0.5 * between.step_seconds, "beyond a machine it is the network that counts"
    assert machine.flops == alone.flops
    assert machine.cost == pytest.approx(8 * 2.0 * machine.seconds / 3600)


def test_pieces_take_less_memory_and_more_exchange() -> None:
    cut = RECIPE.model_copy(update={"engine": "fsdp"})
    copies, pieces = planned(64), planned(64, cut)
    for whole, part in zip(copies.stages, pieces.stages, strict=True):
        assert part.memory.weights == whole.memory.weights // 64
        assert part.memory.optimizer == whole.memory.optimizer // 64
        assert part.memory.activations == whole.memory.activations
        assert part.waiting_seconds > whole.waiting_seconds
    assert planned(1, cut).memory == planned(1).memory


def test_the_table_says_how_many_and_where_they_wait() -> None:
    text = plan_table(planned(64))
    assert "on 64 × H100" in text
    assert "2.00 USD an hour and device" in text
    assert "over each link a step" in text
    assert "A device has 2,048 positions a step: too few" in text
    assert "link" not in plan_table(planned(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "H100", "devices": 3}, "1024 rows a step.*3 devices cannot share"),
        ({"device": "here", "devices": 2}, "cannot be measured here"),
        ({"device": "cpu", "devices": 2}, "no link between devices of 'cpu'"),
        ({"device": "H100", "devices": 0}, "at least one device"),
    ],
)
def test_what_cannot_be_shared_is_a_sentence(options, message) -> None:
    recipe = RECIPE
    if options["device"] == "cpu":
        recipe = RECIPE.model_copy(update={"precision": "fp32"})
    with pytest.raises(sb.UserError, match=message):
        sb.plan(recipe, **options)
