"""Optimiser state follows its parameter's name through growth; never its position."""

import pytest
import torch

from stackbert.errors import UserError
from stackbert.growth import LayerOrigin, grow_by_map, grow_optimizer_state, grow_with_origins


def state_of(model):
    """A state as a loop keeps it: by name, each tensor unlike any other."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: {
            "exp_avg": torch.randn(p.shape, generator=generator),
            "exp_avg_sq": torch.rand(p.shape, generator=generator),
            "step": torch.tensor(float(len(name))),
        }
        for name, p in model.named_parameters()
    }


@pytest.mark.parametrize("operator", ["stack", "interleave", "identity", "random"])
def test_copy_gives_each_copied_parameter_its_sources_state_bit_for_bit(kind, operator, make_model):
    model = make_model(kind, 2)
    growth = grow_with_origins(model, 4, operator)
    state = state_of(model)
    # A mapping in another order than the model's: position must not matter.
    state = dict(sorted(state.items(), reverse=True))
    grown = grow_optimizer_state(state, growth, "copy")
    copied = {name for name, origin in growth.origins.items() if origin is not None}
    assert set(grown) == copied
    storages = set()
    for name in copied:
        source = state[growth.origins[name]]
        assert grown[name].keys() == source.keys()
        for key, tensor in grown[name].items():
            assert torch.equal(tensor, source[key]), (name, key)
            storages.add(tensor.untyped_storage().data_ptr())
    assert len(storages) == 3 * len(copied), "two parameters share one state"
    # Names are the link between the two: a layer's state comes from the layer that it copies.
    for name, parameter in growth.model.named_parameters():
        if name in grown:
            assert grown[name]["exp_avg"].shape == parameter.shape


def test_the_copied_state_loads_into_an_optimizer_and_trains(make_model, token_ids):
    model = make_model("bert", 2).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(token_ids, labels=token_ids).loss.backward()
    optimizer.step()
    state = {name: optimizer.state[p] for name, p in model.named_parameters()}
    growth = grow_with_origins(model, 4)
    new = torch.optim.AdamW(growth.model.parameters(), lr=1e-3)
    grown = grow_optimizer_state(state, growth, "copy")
    for name, parameter in growth.model.named_parameters():
        new.state[parameter] = grown[name]
    growth.model(token_ids, labels=token_ids).loss.backward()
    new.step()
    assert all(new.state[p]["step"].item() == 2 for p in growth.model.parameters())
    assert all(s["step"].item() == 1 for s in state.values()), "the old state was changed"


def test_reset_really_resets(make_model):
    model = make_model("bert", 2)
    growth = grow_with_origins(model, 4)
    assert grow_optimizer_state(state_of(model), growth, "reset") == {}
    with pytest.raises(UserError, match="'rest'; choose 'reset' or 'copy'"):
        grow_optimizer_state(state_of(model), growth, "rest")


def test_parameters_without_state_stay_without(make_model):
    model = make_model("bert", 2)
    growth = grow_with_origins(model, 4)
    name = "bert.encoder.layer.1.output.dense.weight"
    grown = grow_optimizer_state({name: {"momentum_buffer": torch.ones(2)}}, growth, "copy")
    assert set(grown) == {name, name.replace("layer.1", "layer.3")}


def test_a_parameter_that_was_changed_starts_anew(make_model):
    model = make_model("bert", 2)
    growth = grow_by_map(model, (LayerOrigin(0), LayerOrigin(1), LayerOrigin(1, "zeroed")))
    grown = grow_optimizer_state(state_of(model), growth, "copy")
    assert "bert.encoder.layer.2.output.dense.bias" not in grown
    assert "bert.encoder.layer.2.intermediate.dense.bias" in grown


@pytest.mark.parametrize("policy", ["copy", "reset"])
@pytest.mark.parametrize(
    "name", ["0", "module.bert.pooler.weight", "cls.predictions.decoder.weight"]
)
def test_state_under_a_name_that_no_parameter_has_is_an_error(policy, name, make_model):
    model = make_model("bert", 2)
    growth = grow_with_origins(model, 4)
    with pytest.raises(UserError, match=f"state names {name}, which"):
        grow_optimizer_state({name: {}}, growth, policy)
