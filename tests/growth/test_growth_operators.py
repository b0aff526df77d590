"""Depth maps: pure functions of two depths, and refusals that say what would work."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackbert.errors import UserError
from stackbert.growth.operators import OPERATORS, LayerOrigin, get_operator

depths = st.integers(1, 40)


def sources(name, source, target):
    return [origin.source for origin in OPERATORS[name].depth_map(source, target)]


def test_the_five_operators_draw_the_papers_diagrams():
    assert sources("stack", 3, 6) == [0, 1, 2, 0, 1, 2]
    assert sources("stack", 2, 6) == [0, 1, 0, 1, 0, 1]
    assert sources("interleave", 3, 6) == [0, 0, 1, 1, 2, 2]
    for name, outputs in (("identity", "zeroed"), ("identity-noise", "noised"), ("random", "kept")):
        assert OPERATORS[name].depth_map(2, 4) == (
            LayerOrigin(0),
            LayerOrigin(1),
            LayerOrigin(None, outputs),
            LayerOrigin(None, outputs),
        )


@given(depths, depths)
def test_every_depth_is_either_mapped_or_refused_with_depths_that_work(source, target):
    for operator in OPERATORS.values():
        if operator.reaches(source, target):
            depth_map = operator.depth_map(source, target)
            assert len(depth_map) == target > source
            used = [origin.source for origin in depth_map if origin.source is not None]
            assert set(used) == set(range(source)), "a trained layer was lost"
        else:
            with pytest.raises(UserError) as refusal:
                operator.depth_map(source, target)
            near = operator.nearest_depths(source, target)
            reachable = [depth for depth in range(1, 200) if operator.reaches(source, depth)]
            below = [depth for depth in reachable if depth < target]
            above = [depth for depth in reachable if depth > target]
            assert near == (*below[-1:], *above[:1])
            for depth in near:
                assert str(depth) in str(refusal.value)
                assert len(operator.depth_map(source, depth)) == depth


@given(depths, st.integers(2, 6))
def test_block_operators_use_each_layer_equally_often(source, copies):
    for name in ("stack", "interleave"):
        used = sources(name, source, source * copies)
        assert all(used.count(layer) == copies for layer in range(source))


@given(depths, st.integers(2, 4), st.integers(2, 4))
def test_stacking_in_two_hops_is_stacking_in_one(source, first, second):
    lower = sources("stack", source, source * first)
    upper = sources("stack", source * first, source * first * second)
    assert [lower[layer] for layer in upper] == sources("stack", source, source * first * second)


@given(depths, st.integers(1, 40))
def test_operators_on_top_leave_the_trained_layers_at_the_bottom(source, more):
    for name in ("identity", "identity-noise", "random"):
        depth_map = OPERATORS[name].depth_map(source, source + more)
        assert depth_map[:source] == tuple(LayerOrigin(layer) for layer in range(source))
        assert all(origin.source is None for origin in depth_map[source:])


def test_refusals_name_the_nearest_depths_on_both_sides():
    with pytest.raises(UserError, match=r"'stack' cannot grow 4 layers to 10.*8 or 12\."):
        get_operator("stack").depth_map(4, 10)
    with pytest.raises(UserError, match=r"from 6: 12\."):
        get_operator("stack").depth_map(6, 6)
    with pytest.raises(UserError, match=r"from 6: 7\."):
        get_operator("random").depth_map(6, -3)
    with pytest.raises(UserError, match="1 layer or more"):
        get_operator("stack").depth_map(0, 3)


def test_an_unknown_operator_is_answered_with_the_list():
    with pytest.raises(UserError, match=r"'stak'.*stack, interleave, identity, identity-noise"):
        get_operator("stak")


def test_only_identity_claims_to_preserve_the_function():
    assert [name for name, op in OPERATORS.items() if op.preserves_function] == ["identity"]


@pytest.mark.parametrize("module", ["stackbert.growth", "stackbert.growth.operators"])
def test_importing_operators_does_not_import_torch(module):
    code = (
        f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
