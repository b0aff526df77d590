"""The laws of growth, for every operator on every masked-LM type (DESIGN.md, "A growth operator").

In the first step after growth every parameter receives a gradient and moves, with two exceptions
that are theorems:

- The bias of the attention keys adds the same amount q·b to all scores of a query, and softmax does
  not see that: its gradient is zero for any model (in floating point, rounding).
- Behind a zeroed output projection W nothing receives a gradient, W^T g = 0. In a new layer of a
  pre-norm model everything lies behind one of the two: in the first step exactly the projections
  move, and the rest from the second step on.

test_growth_operators.py looks at what is copied, at shared storage, and at the way to disk.
"""

import copy

import pytest
import torch
from tiny_models import build

from stackbert.growth.grow import grow, grow_optimizer_state, grow_with_origins
from stackbert.growth.operators import OPERATORS
from stackbert.pretraining.optimizers import Optimizers
from stackbert.recipe import OptimizerSpec

SHALLOW, DEEP = 2, 4
ENDS = ("attention.output.dense.", ".output.dense.", "attn.Wo.", "mlp.Wo.")


@pytest.fixture(scope="module", params=list(OPERATORS))
def operator(request):
    return request.param


@pytest.fixture(scope="module")
def grown(kind, operator):
    """A model and its growth, shared by the tests that change neither."""
    model = build(kind, SHALLOW).eval()
    return model, grow_with_origins(model, DEEP, operator, seed=3)


def train_step(model, optimizers, token_ids):
    """(gradient of each parameter, names of those that moved)."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(input_ids=token_ids, labels=token_ids.roll(1, dims=1)).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    optimizers.step(1.0)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    return gradients, moved


def test_every_parameter_is_optimized_receives_a_gradient_and_moves(
    grown, kind, operator, token_ids
):
    source, growth = grown
    model = copy.deepcopy(growth.model)
    # Without weight decay, only a gradient can move a parameter.
    optimizers = Optimizers(model, OptimizerSpec(name="muon", lr=1e-2, weight_decay=0.0))
    names = {name for name, _ in model.named_parameters()}
    assert optimizers.places.keys() == names, "none forgotten"
    assert growth.origins.keys() == names
    for name, origin in growth.origins.items():
        assert not origin or torch.equal(model.get_parameter(name), source.get_parameter(origin))

    gradients, moved = train_step(model, optimizers, token_ids)
    assert all(gradient is not None for gradient in gradients.values())
    key_biases = {name for name in names if name.endswith("self.key.bias")}
    for name in key_biases:
        query = gradients[name.replace("key", "query")]
        # Rounding of the query's gradient passes through; for a zeroed layer both are zero.
        assert gradients[name].abs().max() <= 1e-4 * query.abs().max() + 1e-9
    zeroed = [place for place, o in enumerate(growth.depth_map) if o.outputs == "zeroed"]
    inside = {n for n in names for place in zeroed if f".{place}." in n}
    behind = {name for name in inside if not any(end in name for end in ENDS)}
    if kind in ("bert", "roberta"):
        # Post-norm layers normalise the stream itself: their norms lie after the projections.
        behind = {name for name in behind if "LayerNorm" not in name}
    assert names - moved - key_biases == behind - key_biases
    assert not any(gradients[name].any() for name in behind)
    for _ in range(2 if zeroed else 0):
        moved |= train_step(model, optimizers, token_ids)[1]
    assert names - moved <= key_biases


def test_the_source_model_is_left_untouched(kind, operator):
    model, untouched = build(kind, SHALLOW), build(kind, SHALLOW)
    grown = grow(model, DEEP, operator)
    for value in vars(grown.config).values():
        if isinstance(value, dict | list):
            value.clear()
    assert model.config.to_dict() == untouched.config.to_dict()
    with torch.no_grad():
        for tensor in grown.state_dict().values():
            tensor.fill_(1.0)
    old = untouched.state_dict()
    assert all(torch.equal(tensor, old[name]) for name, tensor in model.state_dict().items())


def test_copied_optimizer_state_is_its_sources_by_name_bit_for_bit(grown):
    model, growth = grown
    names = sorted((name for name, _ in model.named_parameters()), reverse=True)
    # A mapping in another order than the model's: position must not matter.
    state = {name: {"exp_avg": torch.randn(3), "step": torch.tensor(1.0)} for name in names}
    copied = grow_optimizer_state(state, growth, "copy")
    assert set(copied) == {name for name, origin in growth.origins.items() if origin is not None}
    for name, tensors in copied.items():
        source = state[growth.origins[name]]
        assert tensors.keys() == source.keys()
        assert all(torch.equal(tensor, source[key]) for key, tensor in tensors.items())
    tensors = [tensor for entry in copied.values() for tensor in entry.values()]
    assert len({t.untyped_storage().data_ptr() for t in tensors}) == len(tensors), "shared state"
    assert grow_optimizer_state(state, growth, "reset") == {}
    split = grow_optimizer_state(state, growth, "split")
    lowest = {origin: name for name, origin in reversed(growth.origins.items()) if origin}
    assert split.keys() == set(lowest.values()), "the lowest copy is the only heir"
