"""Depth maps: pure functions of two depths, and refusals that say what would work."""

import re
import runpy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackbert.errors import UserError
from stackbert.growth.operators import (
    OPERATORS,
    Operator,
    Origin,
    get_operator,
    register_operator,
)

ROOT = Path(__file__).parents[2]
INDEPENDENT = runpy.run_path(str(ROOT / "benchmarks" / "independent" / "growth.py"))
depths = st.integers(1, 40)


def sources(name, source, target):
    return [origin.source for origin in OPERATORS[name].depth_map(source, target)]


def test_the_operators_draw_the_papers_diagrams():
    assert sources("stack", 3, 6) == [0, 1, 2, 0, 1, 2]
    assert sources("stack", 2, 6) == [0, 1, 0, 1, 0, 1]
    assert sources("interleave", 3, 6) == [0, 0, 1, 1, 2, 2]
    assert sources("middle", 4, 6) == [0, 1, 2, 1, 2, 3]
    assert sources("middle", 4, 8) == [0, 1, 2, 1, 2, 1, 2, 3]
    assert sources("middle", 6, 8) == [0, 1, 2, 3, 2, 3, 4, 5]
    assert sources("identity-copy", 4, 6) == [0, 1, 1, 2, 3, 3]
    assert [o.outputs == "zeroed" for o in OPERATORS["identity-copy"].depth_map(2, 4)] == [0, 1] * 2
    for name, outputs in (("identity", "zeroed"), ("identity-noise", "noised"), ("random", "kept")):
        fresh = Origin(None, outputs)
        assert OPERATORS[name].depth_map(2, 4) == (Origin(0), Origin(1), fresh, fresh)


@given(st.sampled_from(list(OPERATORS)), depths, st.integers(-3, 60))
def test_every_depth_is_either_mapped_or_refused_with_the_nearest_that_work(name, source, target):
    operator = OPERATORS[name]
    if operator.reaches(source, target):
        depth_map = operator.depth_map(source, target)
        assert len(depth_map) == target > source
        used = {origin.source for origin in depth_map} - {None}
        assert used == set(range(source)), "a trained layer was lost"
        return
    with pytest.raises(UserError, match=f"'{name}' cannot grow {source} layers to") as refusal:
        operator.depth_map(source, target)
    near = [int(n) for n in re.findall(r"\d+", str(refusal.value).rpartition(":")[2])]
    distances = [abs(n - target) for n in range(1, 200) if operator.reaches(source, n)]
    assert sorted(abs(n - target) for n in near) == sorted(distances)[:2]


@given(st.sampled_from(["stack", "interleave"]), depths, st.integers(2, 4), st.integers(2, 4))
def test_block_operators_use_each_layer_equally_and_two_hops_are_one(name, source, first, second):
    lower = sources(name, source, source * first)
    assert all(lower.count(layer) == first for layer in range(source))
    upper = sources(name, source * first, source * first * second)
    assert [lower[layer] for layer in upper] == sources(name, source, source * first * second)


def test_an_operator_of_ones_own_is_known_by_its_name(monkeypatch, capsys):
    monkeypatch.setattr("stackbert.growth.operators.OPERATORS", dict(OPERATORS))
    runpy.run_path(str(ROOT / "examples" / "own_operator.py"))
    assert "grows with 'expand'" in capsys.readouterr().out
    register_operator(Operator("expand", lambda old, new: [*range(old), *range(new - old)]))
    assert get_operator("expand").depth_map(2, 4) == tuple(map(Origin, (0, 1, 0, 1)))
    with pytest.raises(UserError, match=r"gives 5 layers, copying \{.*2.*\}; it should give 5"):
        get_operator("expand").depth_map(2, 5)
    with pytest.raises(UserError, match=r"gives 1 layers.*should give 4"):
        Operator("short", lambda old, new: [0]).depth_map(2, 4)


@pytest.mark.parametrize("architecture", INDEPENDENT["ARCHITECTURES"][2::4], ids=lambda row: row[0])
def test_architectures_grow_tensor_by_tensor_under_every_operator(architecture):
    """By code that shares nothing with the package; the benchmark takes all fifteen."""
    name, ending, *layout = architecture
    model = INDEPENDENT["trained"](name, ending)
    assert INDEPENDENT["MAPS"].keys() == OPERATORS.keys()
    for operator in OPERATORS:
        assert INDEPENDENT["check"](model, operator, *layout) > 20
