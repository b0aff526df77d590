"""What growth promises of single models, and what it refuses."""

import pytest
import torch
from tiny_models import SIZES, build
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
from stackbert.growth.grow import find_layers, grow

TWO = BertConfig(num_hidden_layers=2, **SIZES)


def states_equal(one, other):
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


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
    # In another dtype the same fresh layers, rounded.
    again = grow(model.bfloat16(), 4, name, seed=5)
    assert states_equal(again, one.bfloat16())


def test_dtypes_mode_attention_and_frozen_parameters_carry_over(logits):
    model = build("modernbert", 3).to(torch.bfloat16).eval()
    model.model.layers[1].mlp_norm.float()
    model.set_attn_implementation("eager")
    model.model.embeddings.requires_grad_(False)
    grown = grow(model, 6, "random", seed=1)
    norms = [layer.mlp_norm.weight.dtype == torch.float32 for layer in grown.model.layers]
    assert norms == [False, True, False, False, False, False]
    assert grown.model.layers[5].mlp.Wi.weight.dtype == torch.bfloat16
    assert not grown.training
    assert grow(model.train(), 6).training
    assert grown.config._attn_implementation == "eager"
    assert not grown.model.embeddings.tok_embeddings.weight.requires_grad
    assert grown.model.layers[5].mlp.Wo.weight.requires_grad
    assert {b.dtype for b in grown.buffers()} == {b.dtype for b in model.buffers()}


def test_ties_follow_the_model_and_not_its_config_or_constructor():
    model = build("bert", 2, tie_word_embeddings=False)
    model.config.tie_word_embeddings = True  # as transformers loads a checkpoint that differs
    grown = grow(model, 4)
    decoder, embeddings = grown.cls.predictions.decoder, grown.bert.embeddings.word_embeddings
    assert torch.equal(decoder.weight, model.cls.predictions.decoder.weight)
    assert not torch.equal(decoder.weight, embeddings.weight)

    class Tied(BertModel):
        def __init__(self, config):
            super().__init__(config)
            self.embeddings.token_type_embeddings = self.embeddings.position_embeddings

    grown = grow(Tied(TWO), 4).embeddings
    assert grown.token_type_embeddings.weight is grown.position_embeddings.weight
    tied = grow(build("bert", 2), 4)
    assert tied.cls.predictions.decoder.weight is tied.bert.embeddings.word_embeddings.weight


@pytest.mark.parametrize(
    ("name", "expected"),
    [("stack", "fssfss"), ("interleave", "ffssss"), ("random", "fssfss"), ("identity", "fssfss")],
)
def test_modernberts_layer_types_follow_the_depth_map(name, expected):
    grown = grow(build("modernbert", 3), 6, name)
    assert "".join(kind[0] for kind in grown.config.layer_types) == expected
    assert "".join(layer.attention_type[0] for layer in grown.model.layers) == expected
    odd = build("modernbert", 2, layer_types=["sliding_attention", "full_attention"])
    kinds = "".join(kind[0] for kind in grow(odd, 4, name).config.layer_types)
    assert kinds == ("ssff" if name == "interleave" else "sfsf")


def test_lists_that_are_as_long_as_the_model_is_deep_by_chance_stay():
    three = build("llama", 3, eos_token_id=[2, 5, 7])
    grown = grow(three, 6)
    assert grown.config.eos_token_id == [2, 5, 7]
    assert [layer.self_attn.layer_idx for layer in grown.model.layers] == list(range(6))
    three.config.sparse_layers = [0, 2]
    with pytest.raises(UserError, match=r"'sparse_layers' speaks of single layers \(\[0, 2\]\)"):
        grow(three, 6)


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
    assert grow(BertModel(TWO), 4).pooler is not None
    assert grow(BertModel(TWO, add_pooling_layer=False), 4).pooler is None
    distil = DistilBertModel(DistilBertConfig(n_layers=2, dim=32, n_heads=2, vocab_size=128))
    # A list inside a layer (experts, heads) may be as long as the model is deep.
    distil.transformer.layer[0].experts = torch.nn.ModuleList([torch.nn.Linear(2, 2)] * 2)
    assert find_layers(distil)[0] == "transformer.layer"
    resized = build("bert", 2)
    resized.resize_token_embeddings(150)
    assert grow(resized, 4).bert.embeddings.word_embeddings.weight.shape == (150, 32)


def test_what_cannot_be_grown_is_refused_with_a_sentence():
    albert = AlbertModel(AlbertConfig(num_hidden_layers=1, embedding_size=16, **SIZES))
    with pytest.raises(UserError, match=r"exactly one list.* none of 2 layers in this AlbertModel"):
        grow(albert, 2)
    t5 = T5Model(T5Config(d_model=16, d_ff=16, d_kv=8, num_heads=2, num_layers=2, vocab_size=128))
    with pytest.raises(UserError, match=r"encoder.block, decoder.block of 2 layers in this T5"):
        grow(t5, 4)
    with pytest.raises(UserError, match=r"not a Linear\. Pass the model"):
        grow(torch.nn.Linear(2, 2), 4)
    with torch.device("meta"):
        hollow = BertModel(TWO)
    with pytest.raises(UserError, match="on the device 'meta'"):
        grow(hollow, 4)
    codes = BertModel(TWO)
    output = codes.encoder.layer[1].output.dense
    output.weight = torch.nn.Parameter(output.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(UserError, match=r"layer\.1\.output\.dense\.weight' is torch\.int8"):
        grow(codes, 4)


def test_fresh_layers_of_unknown_layout_or_initialisation_are_refused():
    mpt = MptModel(MptConfig(d_model=32, n_heads=2, n_layers=2, vocab_size=128, max_seq_len=32))
    decoder = BertConfig(num_hidden_layers=2, is_decoder=True, add_cross_attention=True, **SIZES)
    for model in (mpt, BertModel(decoder)):
        with pytest.raises(UserError, match="no output projections known by name"):
            grow(model, 4, "identity")
        assert len(find_layers(grow(model, 4, "stack"))[1]) == 4

    class Forgetful(BertModel):
        def _init_weights(self, module):
            if not isinstance(module, torch.nn.LayerNorm):
                super()._init_weights(module)

    with pytest.raises(UserError, match=r"BertLayer does not initialise '.*LayerNorm"):
        grow(Forgetful(TWO), 4, "random")


def test_tensors_without_a_place_are_named_and_never_passed_over():
    model = build("bert", 2)
    model.bert.encoder.layer[1].register_buffer("scale", torch.ones(3))
    model.cls.predictions.transform.LayerNorm = torch.nn.Identity()
    with pytest.raises(UserError, match="do not fit a deeper one") as refusal:
        grow(model, 4)
    for name in ("layer.3.scale", "transform.LayerNorm.weight"):
        assert name in str(refusal.value)
