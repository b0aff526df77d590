"""Depth maps: pure functions of two depths, and refusals that say what would work."""

import re
import runpy
import subprocess
import sys
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
depths = st.integers(1, 40)
SHIPPED = ("stack", "interleave", "identity", "identity-noise", "random")


def sources(name, source, target):
    return [origin.source for origin in OPERATORS[name].depth_map(source, target)]


def test_the_five_operators_draw_the_papers_diagrams():
    assert sources("stack", 3, 6) == [0, 1, 2, 0, 1, 2]
    assert sources("stack", 2, 6) == [0, 1, 0, 1, 0, 1]
    assert sources("interleave", 3, 6) == [0, 0, 1, 1, 2, 2]
    for name, outputs in (("identity", "zeroed"), ("identity-noise", "noised"), ("random", "kept")):
        fresh = Origin(None, outputs)
        assert OPERATORS[name].depth_map(2, 4) == (Origin(0), Origin(1), fresh, fresh)


@given(st.sampled_from(SHIPPED), depths, st.integers(-3, 60))
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
    reachable = [depth for depth in range(1, 200) if operator.reaches(source, depth)]
    below = [depth for depth in reachable if depth < target]
    above = [depth for depth in reachable if depth > target]
    assert near == [*below[-1:], *above[:1]]


@given(st.sampled_from(["stack", "interleave"]), depths, st.integers(2, 4), st.integers(2, 4))
def test_block_operators_use_each_layer_equally_and_two_hops_are_one(name, source, first, second):
    lower = sources(name, source, source * first)
    assert all(lower.count(layer) == first for layer in range(source))
    upper = sources(name, source * first, source * first * second)
    assert [lower[layer] for layer in upper] == sources(name, source, source * first * second)


def test_only_identity_claims_to_preserve_the_function():
    assert [name for name, op in OPERATORS.items() if op.preserves_function] == ["identity"]


def test_an_unknown_operator_is_answered_with_the_list():
    with pytest.raises(UserError, match=r"'stak'.*stack, interleave, identity, identity-noise"):
        get_operator("stak")


@pytest.fixture
def own_registry(monkeypatch):
    monkeypatch.setattr("stackbert.growth.operators.OPERATORS", dict(OPERATORS))


def test_an_operator_of_ones_own_is_known_by_its_name(own_registry):
    mirror = Operator("mirror", lambda old, new: [*range(old), *reversed(range(new - old))])
    register_operator(mirror)
    register_operator(mirror)  # a notebook cell runs twice
    assert get_operator("mirror").depth_map(2, 4) == tuple(map(Origin, (0, 1, 1, 0)))
    with pytest.raises(UserError, match="'stack' is built in"):
        register_operator(Operator("stack", mirror.rule))
    with pytest.raises(UserError, match=r"gives 5 layers, copying \{.*2.*\}; it should give 5"):
        get_operator("mirror").depth_map(2, 5)
    with pytest.raises(UserError, match=r"gives 1 layers.*should give 4"):
        Operator("short", lambda old, new: [0]).depth_map(2, 4)


def test_the_example_of_an_own_operator_runs(own_registry, capsys):
    runpy.run_path(str(ROOT / "examples" / "own_operator.py"))
    assert "grows with 'expand'" in capsys.readouterr().out


@pytest.mark.parametrize("family", range(15))
def test_fifteen_architectures_grow_tensor_by_tensor(family):
    """By code that shares nothing with the package; the script does it for every operator."""
    independent = runpy.run_path(str(ROOT / "benchmarks" / "independent" / "growth.py"))
    name, ending, *layout = independent["ARCHITECTURES"][family]
    model = independent["trained"](name, ending)
    for operator in ("stack", "identity"):
        assert independent["check"](model, operator, *layout) > 20


@pytest.mark.parametrize("module", ["stackbert.growth", "stackbert.growth.operators"])
def test_importing_operators_does_not_import_torch(module):
    code = (
        f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
