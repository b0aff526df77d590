"""What growth promises of single models, and the refusals."""

import re

import pytest
import torch
from stackbert.growth.layers import depth_key, find_layers, is_pre_norm
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    MptConfig,
    MptModel,
    T5Config,
    T5Model,
)

from stackbert.errors import UserError
from stackbert.growth import (
    OPERATORS,
    LayerOrigin,
    grow,
    grow_by_map,
    grow_with_origins,
)

TINY = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "vocab_size": 128}
PRE_NORM = ("roberta-prelayernorm", "megatron-bert", "modernbert", "gpt2", "llama")


def logits(model, token_ids):
    with torch.no_grad():
        return model.eval()(token_ids).logits


def states_equal(one, other):
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_stacking_3_6_12_equals_stacking_3_12(kind, make_model, token_ids):
    model = make_model(kind, 3)
    twice = grow(grow(model, 6), 12)
    once = grow(model, 12)
    assert twice.config.to_dict() == once.config.to_dict()
    assert states_equal(twice, once)
    assert torch.equal(logits(twice, token_ids), logits(once, token_ids))


@pytest.mark.parametrize("pre_norm_kind", PRE_NORM)
@pytest.mark.parametrize("name", [n for n, op in OPERATORS.items() if op.preserves_function])
def test_operators_that_claim_it_preserve_the_logits_of_pre_norm_models(
    pre_norm_kind, name, make_model, token_ids
):
    for depth, target in ((1, 2), (3, 4), (3, 8)):
        model = make_model(pre_norm_kind, depth)
        assert is_pre_norm(model.config)
        assert torch.equal(logits(grow(model, target, name), token_ids), logits(model, token_ids))


def test_post_norm_models_are_not_preserved_and_nobody_says_so(make_model, token_ids):
    model = make_model("bert", 3)
    assert not is_pre_norm(model.config)
    assert not torch.equal(logits(grow(model, 6, "identity"), token_ids), logits(model, token_ids))


@pytest.mark.parametrize("name", ["random", "identity-noise", "identity"])
def test_fresh_layers_are_a_pure_function_of_the_seed(kind, name, make_model):
    model = make_model(kind, 2)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    one = grow(model, 4, name, seed=5)
    assert torch.equal(torch.get_rng_state(), before), "the global random state moved"
    torch.manual_seed(12)
    same, other = grow(model, 4, name, seed=5), grow(model, 4, name, seed=6)
    assert states_equal(one, same)
    assert not states_equal(one, other)
    # Other trained weights, same config: the same fresh layers.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    again = grow_with_origins(model, 4, name, seed=5)
    for parameter, origin in again.origins.items():
        if origin is None:
            assert torch.equal(again.model.state_dict()[parameter], one.state_dict()[parameter])


def test_fresh_layers_have_the_architectures_own_statistics(make_model):
    model = make_model("bert", 1, hidden_size=256, intermediate_size=512)
    layer = grow(model, 2, "random").bert.encoder.layer[1]
    assert layer.output.dense.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not layer.output.dense.bias.any()
    assert (layer.output.LayerNorm.weight == 1).all()
    noisy = grow(model, 2, "identity-noise").bert.encoder.layer[1]
    for projection in (noisy.attention.output.dense, noisy.output.dense):
        assert projection.weight.std().item() == pytest.approx(0.03, rel=0.05)
        assert not projection.bias.any()
    assert noisy.intermediate.dense.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_an_architecture_that_leaves_weights_uninitialised_cannot_have_fresh_layers():
    class Forgetful(BertModel):
        def _init_weights(self, module):
            if not isinstance(module, torch.nn.LayerNorm):
                super()._init_weights(module)

    model = Forgetful(BertConfig(num_hidden_layers=2, **TINY))
    with pytest.raises(UserError, match=r"does not initialise 'encoder\.layer\.2\..*LayerNorm"):
        grow(model, 4, "random")
    assert grow(model, 4, "stack").config.num_hidden_layers == 4


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


def test_dtype_mode_attention_and_frozen_parameters_carry_over(make_model, token_ids):
    model = make_model("modernbert", 3).to(torch.bfloat16).eval()
    model.set_attn_implementation("eager")
    model.model.embeddings.requires_grad_(False)
    grown = grow(model, 6, "random", seed=1)
    assert {p.dtype for p in grown.parameters()} == {torch.bfloat16}
    assert not grown.training
    assert grow(model.train(), 6).training
    assert grown.config._attn_implementation == "eager"
    assert not grown.model.embeddings.tok_embeddings.weight.requires_grad
    assert grown.model.layers[5].mlp.Wo.weight.requires_grad
    # Fresh layers are drawn in float32 and rounded: the same layers in every dtype.
    wide = grow(make_model("modernbert", 3), 6, "random", seed=1)
    assert torch.equal(
        wide.model.layers[5].mlp.Wi.weight.to(torch.bfloat16), grown.model.layers[5].mlp.Wi.weight
    )
    names = dict(model.named_buffers())
    for name, buffer in grown.named_buffers():
        assert buffer.dtype == names[name].dtype
    assert torch.equal(logits(grow(model, 6, "identity"), token_ids), logits(model, token_ids))


def test_single_float32_parameters_in_a_bfloat16_model_stay_so(make_model):
    model = make_model("bert", 2).to(torch.bfloat16)
    model.bert.encoder.layer[1].output.LayerNorm.float()
    grown = grow(model, 4)
    dtypes = [layer.output.LayerNorm.weight.dtype for layer in grown.bert.encoder.layer]
    assert dtypes == [torch.bfloat16, torch.float32] * 2


def test_activation_checkpointing_carries_over(make_model, token_ids):
    model = make_model("bert", 2)
    model.gradient_checkpointing_enable()  # the name that 5.17 has as well
    grown = grow(model, 4).train()
    assert all(layer.gradient_checkpointing for layer in grown.bert.encoder.layer)
    grown(token_ids, labels=token_ids).loss.backward()
    assert not any(
        m.gradient_checkpointing for m in grow(make_model("bert", 2), 4).bert.encoder.layer
    )


def test_a_model_loaded_untied_against_its_config_stays_untied(make_model, tmp_path):
    model = make_model("bert", 2, tie_word_embeddings=False)
    model.config.tie_word_embeddings = True
    model.all_tied_weights_keys = {}
    grown = grow(model, 4)
    decoder, embeddings = grown.cls.predictions.decoder, grown.bert.embeddings.word_embeddings
    assert decoder.weight is not embeddings.weight
    assert torch.equal(decoder.weight, model.cls.predictions.decoder.weight)
    assert torch.equal(embeddings.weight, model.bert.embeddings.word_embeddings.weight)


def test_a_pair_that_the_constructor_ties_is_untied_if_it_is_in_the_source():
    class Tied(BertModel):
        def __init__(self, config):
            super().__init__(config)
            self.embeddings.token_type_embeddings.weight = (
                self.embeddings.position_embeddings.weight
            )

    model = Tied(
        BertConfig(num_hidden_layers=2, type_vocab_size=64, max_position_embeddings=64, **TINY)
    )
    grown = grow(model, 4).embeddings
    assert grown.token_type_embeddings.weight is grown.position_embeddings.weight
    model.embeddings.token_type_embeddings.weight = torch.nn.Parameter(torch.ones(64, 32))
    grown = grow(model, 4).embeddings
    assert (grown.token_type_embeddings.weight == 1).all()
    assert not (grown.position_embeddings.weight == 1).any()


def test_layers_know_their_new_place(make_model):
    grown = grow(make_model("llama", 2), 6)
    assert [layer.self_attn.layer_idx for layer in grown.model.layers] == list(range(6))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("stack", "fssfss"), ("interleave", "ffssss"), ("random", "fssfss"), ("identity", "fssfss")],
)
def test_modernberts_layer_types_follow_the_depth_map(name, expected, make_model):
    grown = grow(make_model("modernbert", 3), 6, name)
    assert "".join(kind[0] for kind in grown.config.layer_types) == expected
    assert "".join(layer.attention_type[0] for layer in grown.model.layers) == expected
    # A source whose pattern is not the default one: copies follow it, fresh ones the default.
    odd = make_model("modernbert", 2, layer_types=["sliding_attention", "full_attention"])
    mixed = grow(odd, 4, name).config.layer_types
    wanted = {"stack": "sfsf", "interleave": "ssff", "random": "sfsf", "identity": "sfsf"}[name]
    assert "".join(kind[0] for kind in mixed) == wanted


def test_lists_that_are_as_long_as_the_model_is_deep_by_chance_stay(make_model):
    one = make_model("bert", 1)
    one.config.architectures = ["BertForMaskedLM"]
    assert grow(one, 3).config.architectures == ["BertForMaskedLM"]
    three = make_model("llama", 3, eos_token_id=[2, 5, 7])
    three.config.labels_of_mine = ["a", "b", "c"]
    grown = grow(three, 6).config
    assert grown.eos_token_id == [2, 5, 7]
    assert grown.labels_of_mine == ["a", "b", "c"]
    three.config.my_layer_kinds = ["a", "b", "c"]
    assert grow(three, 6).config.my_layer_kinds == ["a", "b", "c"] * 2
    with pytest.raises(UserError, match=r"my_layer_kinds.*fresh layer 3"):
        grow(three, 6, "random")
    three.config.my_layer_kinds = ["a", "a", "a"]
    assert grow(three, 5, "random").config.my_layer_kinds == ["a"] * 5
    three.config.special_ids = [0, 2]
    assert grow(three, 6).config.special_ids == [0, 2]
    three.config.sparse_layers = [0, 2, 1]
    with pytest.raises(UserError, match=r"'sparse_layers' names layers by number"):
        grow(three, 6)
    three.config.sparse_layers = [0, 2]
    with pytest.raises(UserError, match=r"'sparse_layers' names layers by number \(\[0, 2\]\)"):
        grow(three, 6)


def test_a_map_by_hand_may_also_shrink_a_model(kind, make_model):
    model = make_model(kind, 4)
    growth = grow_by_map(model, (LayerOrigin(3), LayerOrigin(1)))
    assert getattr(growth.model.config, depth_key(growth.model.config)) == 2
    stack, layers = find_layers(growth.model)
    _, old = find_layers(model)
    for layer, source in zip(layers, (3, 1), strict=True):
        state = old[source].state_dict()
        for name, tensor in layer.state_dict().items():
            assert torch.equal(tensor, state[name]), (stack, name)
    with pytest.raises(UserError, match="copy layer 4, but the model has the layers 0 to 3"):
        grow_by_map(model, (LayerOrigin(4),))
    with pytest.raises(UserError, match="empty"):
        grow_by_map(model, ())


def test_a_copied_layer_can_have_its_outputs_zeroed(make_model, token_ids):
    model = make_model("megatron-bert", 2)
    growth = grow_by_map(model, (LayerOrigin(0), LayerOrigin(1), LayerOrigin(0, "zeroed")))
    assert torch.equal(logits(growth.model, token_ids), logits(model, token_ids))
    prefix = "bert.encoder.layer.2."
    assert growth.origins[f"{prefix}output.dense.weight"] is None
    assert growth.origins[f"{prefix}intermediate.dense.weight"] == (
        "bert.encoder.layer.0.intermediate.dense.weight"
    )


def test_models_without_a_head_and_with_other_names_grow():
    bare = grow(BertModel(BertConfig(num_hidden_layers=2, **TINY)), 4)
    assert bare.config.num_hidden_layers == len(bare.encoder.layer) == 4
    distil = DistilBertModel(DistilBertConfig(n_layers=2, dim=32, n_heads=2, vocab_size=128))
    assert depth_key(distil.config) == "n_layers"
    assert len(grow(distil, 6, "interleave").transformer.layer) == 6
    assert len(grow(distil, 3, "identity").transformer.layer) == 3


def test_depth_keys_follow_the_config_class(make_model):
    assert depth_key(make_model("gpt2", 2).config) == "n_layer"
    assert grow(make_model("gpt2", 2), 4).config.n_layer == 4


def test_architectures_without_one_stack_of_own_layers_are_refused_with_a_sentence(make_model):
    albert = AlbertModel(AlbertConfig(num_hidden_layers=1, embedding_size=16, **TINY))
    with pytest.raises(UserError, match="shares one layer's weights"):
        grow(albert, 2)
    t5 = T5Model(T5Config(d_model=16, d_ff=16, d_kv=8, num_heads=2, num_layers=2, vocab_size=128))
    with pytest.raises(UserError, match="encoder-decoder model with two stacks"):
        grow(t5, 4)
    with pytest.raises(UserError, match=r"not a Linear\. Pass the model"):
        grow(torch.nn.Linear(2, 2), 4)
    with torch.device("meta"):
        hollow = BertModel(BertConfig(num_hidden_layers=2, **TINY))
    with pytest.raises(UserError, match="meta device"):
        grow(hollow, 4)


def test_a_layer_of_unknown_layout_is_refused_by_the_identity_operators_only():
    mpt = MptModel(MptConfig(d_model=32, n_heads=2, n_layers=2, vocab_size=128, max_seq_len=32))
    for name in ("identity", "identity-noise"):
        with pytest.raises(UserError, match="no output projections known by name"):
            grow(mpt, 4, name)
    assert len(grow(mpt, 4, "stack").blocks) == 4
    decoder = BertConfig(num_hidden_layers=2, is_decoder=True, add_cross_attention=True, **TINY)
    with pytest.raises(UserError, match="no output projections known by name"):
        grow(BertModel(decoder), 4, "identity")


@pytest.mark.parametrize("depth", [6, 5, 0, -1])
def test_a_depth_that_is_no_growth_is_refused(depth, make_model):
    for name in OPERATORS:
        with pytest.raises(UserError, match=f"cannot grow 6 layers to {depth}"):
            grow(make_model("bert", 6), depth, name)


def test_tensors_without_a_place_are_named_and_never_passed_over(make_model):
    extra = make_model("bert", 2)
    extra.bert.register_parameter("mine", torch.nn.Parameter(torch.ones(3)))
    with pytest.raises(UserError, match=r"'bert\.mine' has no place"):
        grow(extra, 4)
    inside = make_model("bert", 2)
    inside.bert.encoder.layer[1].register_buffer("scale", torch.ones(3))
    with pytest.raises(UserError, match=r"'bert\.encoder\.layer\.1\.scale' has no place"):
        grow(inside, 4)
    lacking = make_model("bert", 2)
    del lacking.cls.predictions.transform.LayerNorm
    lacking.cls.predictions.transform.LayerNorm = torch.nn.Identity()
    with pytest.raises(UserError, match=re.escape("transform.LayerNorm.weight', which the model")):
        grow(lacking, 4)
    other = make_model("bert", 2)
    other.bert.embeddings.position_embeddings = torch.nn.Embedding(65, 32)
    with pytest.raises(UserError, match=r"position_embeddings.weight' has the shape \(65, 32\)"):
        grow(other, 4)


def test_resized_embeddings_grow_with_their_size(make_model, token_ids):
    model = make_model("bert", 2)
    model.resize_token_embeddings(150)
    assert grow(model, 4).bert.embeddings.word_embeddings.weight.shape == (150, 32)
