"""Maps of real models: probabilities, and of one pass; the model is left as it was."""

import numpy as np
import pytest
import torch

from stackbert.attention import maps
from stackbert.attention.maps import attention_maps
from stackbert.errors import UserError
from tiny_encoders import KINDS


def maps_of(model, tokenizer, sentences):
    return sorted(attention_maps(model, tokenizer, sentences), key=lambda each: each.index)


@pytest.mark.parametrize("kind", list(KINDS))
def test_maps_are_those_of_transformers_without_padding(kind, make_model, tokenizer, sentences):
    model = make_model(kind, depth=3)
    together = maps_of(model, tokenizer, sentences)
    model.set_attn_implementation("eager")
    model.eval()
    for text, found in zip(sentences, together, strict=True):
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            theirs = torch.cat(model(**inputs, output_attentions=True).attentions).numpy()
        assert found.tokens == ("[CLS]", *text.split(), "[SEP]")
        assert found.separators == (len(found.tokens) - 1,)
        assert found.maps_LHSS.dtype == np.float32
        assert np.allclose(found.maps_LHSS, theirs, atol=2e-6)
        assert np.allclose(found.maps_LHSS.sum(-1), 1, atol=1e-5)


def test_the_model_is_left_as_it_was(make_model, tokenizer, sentences, monkeypatch):
    model, shapes = make_model(attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.5), []
    model.base_model.register_forward_pre_hook(
        lambda _, inputs: shapes.append(tuple(inputs[0].shape))
    )
    model.train()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    monkeypatch.setattr(maps, "BATCH_TOKENS", 50)
    first = next(attention_maps(model, tokenizer, sentences))  # nobody asks for the rest
    assert model.config._attn_implementation == "sdpa"
    assert all(module.training for module in model.modules())
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    again = next(attention_maps(model, tokenizer, sentences))
    assert np.array_equal(first.maps_LHSS, again.maps_LHSS)  # no dropout
    assert shapes == [(1, 13)] * 2  # those of one length together


def damaged(model):
    model.bert.encoder.layer[0].attention.self.query.weight.data[0, 0] = torch.nan
    return model


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda make: make("squeezebert", embedding_size=32), "not probabilities"),
        (lambda make: damaged(make()), "not probabilities: .*nan"),
        (lambda make: make(vocab_size=30), "out of range.* with its own tokenizer"),
    ],
    ids=["raw scores", "NaN", "another tokenizer"],
)
def test_what_gives_no_probabilities_is_refused(build, says, make_model, tokenizer, sentences):
    with pytest.raises(UserError, match=says):
        list(attention_maps(build(make_model).eval(), tokenizer, sentences))
