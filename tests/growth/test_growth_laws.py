"""The laws of growth, for every operator on every masked-LM type (DESIGN.md, "A growth operator").

In the first step after growth every parameter receives a gradient and moves, with two exceptions
that are theorems:

- The bias of the attention keys adds the same amount q·b to all scores of a query, and softmax does
  not see that: its gradient is zero for any model (in floating point, rounding).
- `identity` zeroes both output projections of a new layer, so what lies before a projection
  receives W^T g = 0 through it. In a pre-norm layer everything else lies before one of the two: in
  the first step exactly the projections move, and the rest from the second step on.
"""

import copy
import re

import pytest
import torch
from tiny_models import build

from stackbert.growth.grow import grow, grow_optimizer_state, grow_with_origins
from stackbert.growth.operators import OPERATORS
from stackbert.pretraining.optimizers import Optimizers
from stackbert.recipe import OptimizerSpec
from tiny_encoders import KINDS

SHALLOW, DEEP = 2, 4
ENDS = ("attention.output.dense", "output.dense", "attn.Wo", "mlp.Wo")


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request):
    return request.param


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


def is_key_bias(name):
    return name.endswith("self.key.bias")


def new_layers(names):
    """(parameters of the new layers' output projections, the layers' other parameters)."""
    inside = {name: re.search(r"\.layers?\.[23]\.(.*)\.\w+$", name) for name in names}
    ends = {name for name, found in inside.items() if found and found[1] in ENDS}
    return ends, {name for name, found in inside.items() if found} - ends


def test_every_parameter_is_optimized_receives_a_gradient_and_moves(
    grown, kind, operator, token_ids
):
    growth = grown[1]
    model = copy.deepcopy(growth.model)
    # Without weight decay, only a gradient can move a parameter.
    optimizers = Optimizers(model, OptimizerSpec(name="muon", lr=1e-2, weight_decay=0.0))
    names = {name for name, _ in model.named_parameters()}
    optimized = [name for group in optimizers.groups() for name in group]
    assert sorted(optimized) == sorted(names), "once each, none forgotten"
    assert growth.origins.keys() == names

    gradients, moved = train_step(model, optimizers, token_ids)
    assert all(gradient is not None for gradient in gradients.values())
    for name in filter(is_key_bias, names):
        query = gradients[name.replace("key", "query")]
        # Rounding of the query's gradient passes through; for a zeroed layer both are zero.
        assert gradients[name].abs().max() <= 1e-4 * query.abs().max() + 1e-9
    still = {name for name in names - moved if not is_key_bias(name)}
    if operator != "identity":
        assert still == set()
        return
    ends, behind = new_layers(names)
    assert ends
    assert ends <= moved
    if kind in ("bert", "roberta"):
        # Post-norm layers normalise the stream itself: their norms lie after the projections.
        behind = {name for name in behind if "LayerNorm" not in name}
    assert still == {name for name in behind if not is_key_bias(name)}
    assert not any(gradients[name].any() for name in behind)
    for _ in range(2):
        moved |= train_step(model, optimizers, token_ids)[1]
    assert {name for name in names if not is_key_bias(name)} <= moved


def test_no_two_parameters_share_storage_except_tied_ones(grown):
    model, growth = grown
    seen = {}
    for owner in (growth.model, model):
        for name, tensor in [*owner.named_parameters(), *owner.named_buffers()]:
            key = tensor.untyped_storage().data_ptr()
            assert key not in seen, f"{name} shares its storage with {seen[key]}"
            seen[key] = name

    def aliases(m):
        names = {}
        for name, parameter in m.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        return sorted(group for group in names.values() if len(group) > 1)

    assert aliases(growth.model) == aliases(model)
    assert aliases(model), "the tiny models tie their embeddings"


def test_the_source_model_is_left_untouched(kind, operator):
    model = build(kind, SHALLOW)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = model.config.to_dict()
    grown = grow(model, DEEP, operator)
    with torch.no_grad():
        for parameter in grown.parameters():
            parameter.fill_(1.0)
    for value in vars(grown.config).values():
        if isinstance(value, dict | list):
            value.clear()
    assert model.config.to_dict() == config
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["stack", "random"])
def test_the_grown_model_comes_back_from_disk_with_the_same_logits(kind, name, tmp_path, logits):
    model = grow(build(kind, SHALLOW), DEEP, name)
    model.save_pretrained(tmp_path)
    again, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert again.config.num_hidden_layers == DEEP
    assert torch.equal(logits(again), logits(model))
    # Buffers that are not on disk as well: rotary frequencies, position ids.
    buffers = dict(again.named_buffers())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
        assert buffer.dtype == buffers[name].dtype


def test_copied_optimizer_state_is_its_sources_by_name_bit_for_bit(grown):
    model, growth = grown
    generator = torch.Generator().manual_seed(0)
    state = {
        name: {
            "exp_avg": torch.randn(p.shape, generator=generator),
            "step": torch.tensor(float(len(name))),
        }
        for name, p in model.named_parameters()
    }
    # A mapping in another order than the model's: position must not matter.
    copied = grow_optimizer_state(dict(sorted(state.items(), reverse=True)), growth, "copy")
    assert set(copied) == {name for name, origin in growth.origins.items() if origin is not None}
    for name, tensors in copied.items():
        source = state[growth.origins[name]]
        assert tensors.keys() == source.keys()
        assert all(torch.equal(tensor, source[key]) for key, tensor in tensors.items())
    tensors = [tensor for entry in copied.values() for tensor in entry.values()]
    assert len({t.untyped_storage().data_ptr() for t in tensors}) == len(tensors), "shared state"
    assert grow_optimizer_state(state, growth, "reset") == {}
