"""What growth promises of single models."""

import pytest
import torch
from tiny_models import build
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
)

from stackbert.errors import UserError
from stackbert.growth.grow import (
    depth_key,
    find_layers,
    grow,
    grow_optimizer_state,
    grow_with_origins,
)
from stackbert.growth.operators import OPERATORS, Operator, Origin
from stackbert.pretraining.optimizers import Optimizers
from stackbert.recipe import OptimizerSpec

TINY = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "vocab_size": 128}
PRE_NORM = ("roberta-prelayernorm", "megatron-bert", "modernbert", "gpt2", "llama")


def by_hand(*entries):
    return Operator("by hand", lambda old, new: entries, reaches=lambda old, new: True)


def states_equal(one, other):
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_stacking_3_6_12_equals_stacking_3_12(kind, logits):
    model = build(kind, 3)
    twice, once = grow(grow(model, 6), 12), grow(model, 12)
    assert twice.config.to_dict() == once.config.to_dict()
    assert states_equal(twice, once)
    assert torch.equal(logits(twice), logits(once))


@pytest.mark.parametrize("pre_norm", PRE_NORM)
@pytest.mark.parametrize("name", [n for n, op in OPERATORS.items() if op.preserves_function])
def test_operators_that_claim_it_preserve_the_logits_of_pre_norm_models(pre_norm, name, logits):
    for depth, target in ((1, 2), (3, 4), (3, 8)):
        model = build(pre_norm, depth)
        assert torch.equal(logits(grow(model, target, name)), logits(model))


@pytest.mark.parametrize("name", ["random", "identity-noise"])
def test_fresh_layers_are_a_pure_function_of_the_seed(kind, name):
    model = build(kind, 2)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    one = grow(model, 4, name, seed=5)
    assert torch.equal(torch.get_rng_state(), before), "the global random state moved"
    torch.manual_seed(12)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert states_equal(one, grow(model, 4, name, seed=5))
    finally:
        torch.set_default_dtype(torch.float32)
    assert not states_equal(one, grow(model, 4, name, seed=6))
    # Other trained weights in another dtype: the same fresh layers, rounded.
    again = grow_with_origins(model.bfloat16(), 4, name, seed=5)
    for parameter, origin in again.origins.items():
        if origin is None:
            fresh = again.model.state_dict()[parameter]
            assert torch.equal(fresh, one.state_dict()[parameter].bfloat16())


def test_fresh_layers_have_the_architectures_own_statistics():
    model = build("bert", 1, hidden_size=256, intermediate_size=512)
    layer = grow(model, 2, "random").bert.encoder.layer[1]
    assert layer.output.dense.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not layer.output.dense.bias.any()
    assert (layer.output.LayerNorm.weight == 1).all()
    noisy = grow(model, 2, "identity-noise").bert.encoder.layer[1]
    for projection in (noisy.attention.output.dense, noisy.output.dense):
        assert projection.weight.std().item() == pytest.approx(0.03, rel=0.05)
        assert not projection.bias.any()
    assert noisy.intermediate.dense.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_identity_zeroes_biases_too_where_the_architecture_would_not():
    class Biased(BertModel):
        def _init_weights(self, module):
            super()._init_weights(module)
            if isinstance(module, torch.nn.Linear):
                module.bias.fill_(1.0)

    layer = grow(Biased(BertConfig(num_hidden_layers=1, **TINY)), 2, "identity").encoder.layer[1]
    assert (layer.intermediate.dense.bias == 1).all()
    for projection in (layer.attention.output.dense, layer.output.dense):
        assert not projection.bias.any()
        assert not projection.weight.any()


def test_dtypes_mode_attention_and_frozen_parameters_carry_over(logits):
    model = build("modernbert", 3).to(torch.bfloat16).eval()
    model.model.layers[1].mlp_norm.float()
    model.set_attn_implementation("eager")
    model.model.embeddings.requires_grad_(False)
    grown = grow(model, 6, "random", seed=1)
    assert [layer.mlp_norm.weight.dtype == torch.float32 for layer in grown.model.layers] == [
        False, True, False, False, False, False,
    ]  # fmt: skip
    assert grown.model.layers[5].mlp.Wi.weight.dtype == torch.bfloat16
    assert not grown.training
    assert grow(model.train(), 6).training
    assert grown.config._attn_implementation == "eager"
    assert not grown.model.embeddings.tok_embeddings.weight.requires_grad
    assert grown.model.layers[5].mlp.Wo.weight.requires_grad
    names = dict(model.named_buffers())
    assert all(buffer.dtype == names[name].dtype for name, buffer in grown.named_buffers())
    model.model.layers[1].mlp_norm.bfloat16()
    assert torch.equal(logits(grow(model, 6, "identity")), logits(model))


def test_ties_follow_the_model_and_not_its_config_or_constructor():
    model = build("bert", 2, tie_word_embeddings=False)
    model.config.tie_word_embeddings = True  # as transformers loads a checkpoint that differs
    grown = grow(model, 4)
    decoder, embeddings = grown.cls.predictions.decoder, grown.bert.embeddings.word_embeddings
    assert torch.equal(decoder.weight, model.cls.predictions.decoder.weight)
    assert torch.equal(embeddings.weight, model.bert.embeddings.word_embeddings.weight)
    assert not torch.equal(decoder.weight, embeddings.weight)

    class Tied(BertModel):
        def __init__(self, config):
            super().__init__(config)
            self.embeddings.token_type_embeddings.weight = (
                self.embeddings.position_embeddings.weight
            )

    sizes = {"type_vocab_size": 64, "max_position_embeddings": 64}
    model = Tied(BertConfig(num_hidden_layers=2, **sizes, **TINY))
    grown = grow(model, 4).embeddings
    assert grown.token_type_embeddings.weight is grown.position_embeddings.weight
    model.embeddings.token_type_embeddings.weight = torch.nn.Parameter(torch.ones(64, 32))
    grown = grow(model, 4).embeddings
    assert (grown.token_type_embeddings.weight == 1).all()
    assert not (grown.position_embeddings.weight == 1).any()


@pytest.mark.parametrize(
    ("name", "expected", "odd_expected"),
    [
        ("stack", "fssfss", "sfsf"),
        ("interleave", "ffssss", "ssff"),
        ("random", "fssfss", "sfsf"),
        ("identity", "fssfss", "sfsf"),
    ],
)
def test_modernberts_layer_types_follow_the_depth_map(name, expected, odd_expected):
    grown = grow(build("modernbert", 3), 6, name)
    assert "".join(kind[0] for kind in grown.config.layer_types) == expected
    assert "".join(layer.attention_type[0] for layer in grown.model.layers) == expected
    # A source whose pattern is not the default one: copies follow it, fresh ones the default.
    odd = build("modernbert", 2, layer_types=["sliding_attention", "full_attention"])
    assert "".join(kind[0] for kind in grow(odd, 4, name).config.layer_types) == odd_expected


def test_lists_that_are_as_long_as_the_model_is_deep_by_chance_stay():
    three = build("llama", 3, eos_token_id=[2, 5, 7])
    three.config.labels_of_mine = ["a", "b", "c"]
    three.config.special_ids = [0, 2]
    grown = grow(three, 6)
    assert grown.config.eos_token_id == [2, 5, 7]
    assert grown.config.labels_of_mine == ["a", "b", "c"]
    assert grown.config.special_ids == [0, 2]
    assert [layer.self_attn.layer_idx for layer in grown.model.layers] == list(range(6))
    three.config.my_layer_kinds = ["a", "b", "c"]
    assert grow(three, 6).config.my_layer_kinds == ["a", "b", "c"] * 2
    with pytest.raises(UserError, match=r"my_layer_kinds' has no entry for a fresh layer"):
        grow(three, 6, "random")
    three.config.sparse_layers = [0, 2]
    with pytest.raises(UserError, match=r"'sparse_layers' names layers by number \(\[0, 2\]\)"):
        grow(three, 6)


def test_an_operator_of_ones_own_may_also_shrink_a_model(kind):
    model = build(kind, 4)
    grown = grow(model, 2, by_hand(3, 1))
    for layer, source in zip(find_layers(grown)[1], (3, 1), strict=True):
        state = find_layers(model)[1][source].state_dict()
        for name, tensor in layer.state_dict().items():
            assert torch.equal(tensor, state[name]), name


def test_a_copied_layer_can_have_its_outputs_zeroed(logits):
    model = build("megatron-bert", 2)
    growth = grow_with_origins(model, 3, by_hand(0, 1, Origin(0, "zeroed")))
    assert torch.equal(logits(growth.model), logits(model))
    changed = "bert.encoder.layer.2.output.dense.bias"
    copied = "bert.encoder.layer.2.intermediate.dense.bias"
    assert growth.origins[changed] is None
    assert growth.origins[copied] == copied.replace("2", "0")
    state = {name: {"exp_avg": p.detach()} for name, p in model.named_parameters()}
    grown = grow_optimizer_state(state, growth, "copy")
    assert changed not in grown, "a changed parameter starts anew"
    assert copied in grown


def test_the_copied_state_loads_into_an_optimizer_and_trains(token_ids):
    model = build("bert", 2)
    optimizers = Optimizers(model, OptimizerSpec())
    model(token_ids, labels=token_ids).loss.backward()
    optimizers.step(1.0)
    growth = grow_with_origins(model, 4)
    new = Optimizers(growth.model, OptimizerSpec())
    new.load_state(grow_optimizer_state(optimizers.state(), growth, "copy"))
    growth.model(token_ids, labels=token_ids).loss.backward()
    new.step(1.0)
    assert {s["step"].item() for s in new.state().values()} == {2}
    assert {s["step"].item() for s in optimizers.state().values()} == {1}, "old state was changed"
    name = "bert.encoder.layer.1.output.dense.weight"
    some = grow_optimizer_state({name: {"momentum_buffer": torch.ones(2)}}, growth, "copy")
    assert set(some) == {name, name.replace("layer.1", "layer.3")}


def test_growth_holds_one_copy_of_the_target_in_memory():
    def memory(key):
        with open("/proc/self/status") as file:  # noqa: PTH123
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))

    model = build("bert", 2, hidden_size=512, intermediate_size=2048)
    with open("/proc/self/clear_refs", "w") as file:  # noqa: PTH123
        file.write("5")  # the peak starts anew
    before = memory("VmRSS")
    grown = grow(model, 16)
    size = sum(p.numel() * 4 for p in grown.parameters())
    assert size > 150e6
    assert memory("VmHWM") - before < 1.1 * size


def test_models_without_a_head_and_with_other_names_grow():
    bare = grow(BertModel(BertConfig(num_hidden_layers=2, **TINY)), 4)
    assert bare.config.num_hidden_layers == len(bare.encoder.layer) == 4
    assert bare.pooler is not None
    without = BertModel(BertConfig(num_hidden_layers=2, **TINY), add_pooling_layer=False)
    assert grow(without, 4).pooler is None
    distil = DistilBertModel(DistilBertConfig(n_layers=2, dim=32, n_heads=2, vocab_size=128))
    assert depth_key(distil.config) == "n_layers"
    assert len(grow(distil, 6, "interleave").transformer.layer) == 6
    assert len(grow(distil, 3, "identity").transformer.layer) == 3
    # A list inside a layer (experts, heads) may be as long as the model is deep.
    distil.transformer.layer[0].experts = torch.nn.ModuleList([torch.nn.Linear(2, 2)] * 2)
    assert find_layers(distil)[0] == "transformer.layer"
    resized = build("bert", 2)
    resized.resize_token_embeddings(150)
    assert grow(resized, 4).bert.embeddings.word_embeddings.weight.shape == (150, 32)
