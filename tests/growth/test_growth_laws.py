"""The laws of growth, for every operator on every masked-LM type (DESIGN.md, "A growth operator").

In the first step after growth every parameter receives a gradient and moves, with two exceptions
that are theorems, not tolerances:

- The bias of the attention keys adds the same amount q·b to all scores of a query, and softmax does
  not see that: its gradient is zero for any model, grown or not (in floating point, rounding).
- `identity` sets both output projections of a new layer to zero. What lies before a projection
  receives W^T g = 0 through it. In a pre-norm layer everything else lies before one of the two, so
  in the first step exactly the projections move, and the rest from the second step on.
"""

import pytest
import torch

from stackbert.growth import OPERATORS, grow_with_origins

SHALLOW, DEEP = 2, 4


@pytest.fixture(params=list(OPERATORS))
def operator(request):
    return request.param


@pytest.fixture
def grown(kind, operator, make_model):
    model = make_model(kind, SHALLOW)
    return model, grow_with_origins(model, DEEP, operator, seed=3)


def train_step(model, optimizer, token_ids):
    """One step without weight decay, so that only a gradient can move a parameter."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    labels = token_ids.roll(1, dims=1)
    optimizer.zero_grad(set_to_none=True)
    types = torch.arange(token_ids.shape[1]).remainder(2).expand_as(token_ids)
    extra = {} if model.config.model_type == "modernbert" else {"token_type_ids": types}
    if "roberta" in model.config.model_type:
        extra = {}  # one token type only
    model(input_ids=token_ids, labels=labels, **extra).loss.backward()
    optimizer.step()
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


def adamw(model):
    return torch.optim.AdamW(
        [{"params": [p for _, p in model.named_parameters()]}], lr=1e-2, weight_decay=0.0
    )


def is_key_bias(name):
    return name.endswith("self.key.bias")


def projections(model, layer):
    """Names of the parameters of a layer's two output projections."""
    ends = ("attention.output.dense", "output.dense", "attn.Wo", "mlp.Wo")
    stack = next(
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == DEEP
    )
    prefix = f"{stack}.{layer}."
    return {
        name
        for name, _ in model.named_parameters()
        if name.startswith(prefix) and name.removeprefix(prefix).rpartition(".")[0] in ends
    }, {name for name, _ in model.named_parameters() if name.startswith(prefix)}


def test_every_parameter_is_optimised_receives_a_gradient_and_moves(
    grown, kind, operator, token_ids
):
    _, growth = grown
    model = growth.model.train()
    optimizer = adamw(model)
    optimised = [id(p) for group in optimizer.param_groups for p in group["params"]]
    parameters = dict(model.named_parameters())
    assert sorted(optimised) == sorted(map(id, parameters.values())), "once each, none forgotten"
    assert len(growth.origins) == len(optimised)

    moved = train_step(model, optimizer, token_ids)
    still = {name for name in set(parameters) - moved if not is_key_bias(name)}
    without = {name for name, p in parameters.items() if p.grad is None}
    assert without == set()
    for name, parameter in parameters.items():
        if is_key_bias(name):
            query = parameters[name.replace("key", "query")].grad
            # Rounding of the query's gradient passes through; for a zeroed layer both are zero.
            assert parameter.grad.abs().max() <= 1e-4 * query.abs().max() + 1e-9

    pre_norm = kind in ("roberta-prelayernorm", "megatron-bert", "modernbert")
    if operator != "identity":
        assert still == set()
        return
    behind = set()
    for layer in range(SHALLOW, DEEP):
        ends, everything = projections(model, layer)
        assert ends
        assert ends <= moved
        behind |= everything - ends
    if not pre_norm:
        # Post-norm layers normalise the stream itself: their norms lie behind the projections.
        behind = {name for name in behind if "LayerNorm" not in name}
    assert still == {name for name in behind if not is_key_bias(name)}
    for name in behind:
        assert not parameters[name].grad.any(), f"{name} lies behind a zero matrix"
    moved = train_step(model, optimizer, token_ids)
    moved |= train_step(model, optimizer, token_ids)
    assert {name for name in parameters if not is_key_bias(name)} <= moved


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


def test_copied_tensors_equal_their_source_bit_for_bit(grown, operator):
    model, growth = grown
    old, new = model.state_dict(), growth.model.state_dict()
    for name, origin in growth.origins.items():
        if origin is not None:
            assert torch.equal(new[name], old[origin]), name
            assert new[name].dtype == old[origin].dtype
    fresh = {name for name, origin in growth.origins.items() if origin is None}
    if operator in ("stack", "interleave"):
        # ModernBERT's first layer has no norm before attention; its copies further up need one.
        assert all("attn_norm" in name for name in fresh)
    outside = {name for name in growth.origins if ".layer." not in name and ".layers." not in name}
    assert all(growth.origins[name] == name for name in outside)
    for place, origin in enumerate(growth.depth_map):
        part = f".{place}."
        named = {o for n, o in growth.origins.items() if part in n and o is not None}
        if origin.source is not None:
            assert named
            assert all(f".{origin.source}." in name for name in named)
        else:
            assert not named


def test_the_source_model_is_left_untouched(kind, operator, make_model):
    model = make_model(kind, SHALLOW)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = model.config.to_dict()
    growth = grow_with_origins(model, DEEP, operator)
    with torch.no_grad():
        for parameter in growth.model.parameters():
            parameter.fill_(1.0)
    assert model.config.to_dict() == config
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    for name, value in vars(model.config).items():
        if isinstance(value, dict | list):
            assert getattr(growth.model.config, name) is not value, name


def test_the_grown_model_comes_back_from_disk_with_the_same_logits(grown, tmp_path, token_ids):
    _, growth = grown
    model = growth.model.eval()
    model.save_pretrained(tmp_path)
    again, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert again.config.num_hidden_layers == DEEP
    with torch.no_grad():
        assert torch.equal(again(token_ids).logits, model(token_ids).logits)
    # Buffers that are not on disk as well: rotary frequencies, position ids.
    fresh = dict(again.named_buffers())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, fresh[name]), name
        assert buffer.dtype == fresh[name].dtype
