"""What growth refuses, each in a sentence that names what is wrong."""

import re

import pytest
import torch
from tiny_models import build
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    MptConfig,
    MptModel,
    T5Config,
    T5Model,
)

from stackbert.errors import UserError
from stackbert.growth.grow import find_layers, grow
from stackbert.growth.operators import OPERATORS

TINY = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "vocab_size": 128}


def test_what_cannot_be_grown_is_refused_with_a_sentence():
    albert = AlbertModel(AlbertConfig(num_hidden_layers=1, embedding_size=16, **TINY))
    with pytest.raises(UserError, match=r"each with weights of its own\. In AlbertModel"):
        grow(albert, 2)
    t5 = T5Model(T5Config(d_model=16, d_ff=16, d_kv=8, num_heads=2, num_layers=2, vocab_size=128))
    with pytest.raises(UserError, match="encoder-decoder or composite"):
        grow(t5, 4)
    with pytest.raises(UserError, match=r"not a Linear\. Pass the model"):
        grow(torch.nn.Linear(2, 2), 4)
    two = BertConfig(num_hidden_layers=2, **TINY)
    with torch.device("meta"):
        hollow = BertModel(two)
    with pytest.raises(UserError, match="on the meta device"):
        grow(hollow, 4)
    codes = BertModel(two)
    weight = codes.encoder.layer[1].output.dense.weight.detach()
    coded = torch.nn.Parameter(weight.to(torch.int8), requires_grad=False)
    codes.encoder.layer[1].output.dense.weight = coded
    with pytest.raises(UserError, match=r"layer\.1\.output\.dense\.weight.* is quantised, torch"):
        grow(codes, 4)
    single = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **TINY))
    single.config.per_layer_config = {1: {"intermediate_size": 24}}
    with pytest.raises(UserError, match="configs of their own"):
        grow(single, 4)
    shared = BertModel(two)
    shared.encoder.layer[1] = shared.encoder.layer[0]
    with pytest.raises(UserError, match="each with weights of its own"):
        grow(shared, 4)
    for name in OPERATORS:
        for depth in (2, 1, 0, -1):
            with pytest.raises(UserError, match=f"cannot grow 2 layers to {depth}"):
                grow(build("bert", 2), depth, name)


def test_fresh_layers_of_unknown_layout_or_initialisation_are_refused():
    mpt = MptModel(MptConfig(d_model=32, n_heads=2, n_layers=2, vocab_size=128, max_seq_len=32))
    decoder = BertConfig(num_hidden_layers=2, is_decoder=True, add_cross_attention=True, **TINY)
    for model in (mpt, BertModel(decoder)):
        for name in ("identity", "identity-noise"):
            with pytest.raises(UserError, match="no output projections known by name"):
                grow(model, 4, name)
        assert len(find_layers(grow(model, 4, "stack"))[1]) == 4

    class Forgetful(BertModel):
        def _init_weights(self, module):
            if not isinstance(module, torch.nn.LayerNorm):
                super()._init_weights(module)

    model = Forgetful(BertConfig(num_hidden_layers=2, **TINY))
    with pytest.raises(UserError, match=r"does not initialise 'encoder\.layer\.2\..*LayerNorm"):
        grow(model, 4, "random")
    assert grow(model, 4, "stack").config.num_hidden_layers == 4


def test_tensors_without_a_place_are_named_and_never_passed_over():
    def refused(change, name):
        model = build("bert", 2)
        change(model)
        with pytest.raises(UserError, match=f"do not fit a deeper one: .*{re.escape(name)}"):
            grow(model, 4)

    def other_positions(model):
        model.bert.embeddings.position_embeddings = torch.nn.Embedding(65, 32)

    def without_norm(model):
        model.cls.predictions.transform.LayerNorm = torch.nn.Identity()

    extra = torch.nn.Parameter(torch.ones(3))
    refused(lambda m: m.bert.register_parameter("mine", extra), "bert.mine")
    refused(lambda m: m.bert.encoder.layer[1].register_buffer("scale", extra.data), "layer.3.scale")
    refused(without_norm, "transform.LayerNorm.weight")
    refused(other_positions, "position_embeddings.weight")
