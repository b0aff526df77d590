"""Maps of real models: padding changes nothing, the model is left as it was, errors are said."""

import numpy as np
import pytest
import torch
from transformers import BertConfig, FNetConfig, FNetModel, PreTrainedModel

from stackbert.attention.maps import attention_maps, longest_sentence
from stackbert.errors import UserError


def maps_of(model, tokenizer, sentences, **options):
    return sorted(attention_maps(model, tokenizer, sentences, **options), key=lambda m: m.index)


def test_every_sentence_gets_maps_whose_rows_sum_to_one(kind, make_model, tokenizer, sentences):
    found = maps_of(make_model(kind, depth=3, heads=4), tokenizer, sentences)
    assert [each.index for each in found] == list(range(len(sentences)))
    for each, text in zip(found, sentences, strict=True):
        length = len(text.split()) + 2
        assert each.tokens == ("[CLS]", *text.split(), "[SEP]")
        assert each.separators == (length - 1,)
        assert each.maps.shape == (3, 4, length, length)
        assert each.maps.dtype == np.float32
        assert np.allclose(each.maps.sum(-1), 1, atol=1e-5)


def test_padding_changes_nothing(kind, make_model, tokenizer, sentences):
    model = make_model(kind)
    together = maps_of(model, tokenizer, sentences, batch_tokens=10_000)
    for text, batched in zip(sentences, together, strict=True):
        (alone,) = maps_of(model, tokenizer, [text])
        assert np.allclose(alone.maps, batched.maps, atol=2e-6)


def test_maps_are_what_transformers_computes(kind, make_model, tokenizer, sentences):
    model = make_model(kind)
    (ours,) = maps_of(model, tokenizer, sentences[:1])
    model.set_attn_implementation("eager")
    model.eval()
    with torch.no_grad():
        theirs = model(**tokenizer(sentences[0], return_tensors="pt"), output_attentions=True)
    assert np.allclose(ours.maps, torch.cat(theirs.attentions).numpy(), atol=1e-6)


def test_a_pass_holds_no_more_tokens_than_asked(make_model, tokenizer, sentences):
    model = make_model()
    shapes = []
    model.base_model.register_forward_pre_hook(
        lambda _, __, inputs: shapes.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    list(attention_maps(model, tokenizer, sentences, batch_tokens=60))
    assert sum(rows for rows, _ in shapes) == len(sentences)
    assert all(rows * length <= 60 for rows, length in shapes)
    assert len(shapes) < len(sentences)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_model_is_left_as_it_was(implementation, make_model, tokenizer, sentences):
    model = make_model()
    model.set_attn_implementation(implementation)
    model.train()
    model.bert.encoder.layer[1].eval()
    modes = [module.training for module in model.modules()]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    looking = attention_maps(model, tokenizer, sentences, batch_tokens=50)
    for _ in range(2):  # also between two sentences, and when nobody asks for the rest
        next(looking)
        assert model.config._attn_implementation == implementation
        assert [module.training for module in model.modules()] == modes
    looking.close()
    assert model.config._attn_implementation == implementation
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_dropout_is_off(make_model, tokenizer, sentences):
    model = make_model(attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.5)
    model.train()
    first, second = (maps_of(model, tokenizer, sentences[:1])[0].maps for _ in range(2))
    assert np.array_equal(first, second)


def test_a_long_sentence_is_cut(make_model, tokenizer, sentences):
    (found,) = maps_of(make_model(), tokenizer, [sentences[1]], max_length=20)
    assert len(found.tokens) == 20
    assert found.tokens[-1] == "[SEP]"


def test_a_sentence_may_be_as_long_as_the_positions_go(kind, make_model, tokenizer):
    model = make_model(kind, max_position_embeddings=34)
    longest = longest_sentence(model, tokenizer, 128)
    assert longest == (33 if kind.startswith("roberta") else 34)
    long = " ".join(["w1"] * 60)
    (found,) = maps_of(model, tokenizer, [long], max_length=longest)
    assert len(found.tokens) == longest


def test_modernberts_window_is_seen(make_model, tokenizer, sentences):
    model = make_model("modernbert", depth=3)
    assert model.config.layer_types[1] == "sliding_attention"
    (found,) = maps_of(model, tokenizer, [sentences[1]])
    place = np.arange(len(found.tokens))
    outside = np.abs(place[:, None] - place) > model.config.local_attention // 2
    assert found.maps[1][:, outside].max() == 0
    assert found.maps[0][:, outside].min() > 0


def test_half_precision_weights_give_maps_too(make_model, tokenizer, sentences):
    model = make_model().to(torch.float16)
    (found,) = maps_of(model, tokenizer, sentences[:1])
    assert found.maps.dtype == np.float32
    assert np.allclose(found.maps.sum(-1), 1, atol=1e-3)


def test_a_model_without_attention_is_refused_in_a_sentence(tokenizer, sentences):
    model = FNetModel(
        FNetConfig(vocab_size=96, hidden_size=8, num_hidden_layers=1, intermediate_size=8)
    )
    with pytest.raises(UserError, match=r"FNetModel .* gives no attention weights"):
        list(attention_maps(model, tokenizer, sentences))


class Deaf(PreTrainedModel):
    """Takes no `output_attentions`."""

    config_class = BertConfig

    def __init__(self, config):
        super().__init__(config)
        self.embedding = torch.nn.Embedding(config.vocab_size, 4)

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, attention_mask):
        return self.embedding(input_ids)


def test_a_model_that_cannot_be_asked_for_weights_is_refused_in_a_sentence(tokenizer, sentences):
    with pytest.raises(UserError, match=r"Deaf .* gives no attention weights"):
        list(attention_maps(Deaf(BertConfig(vocab_size=96)), tokenizer, sentences))


def test_another_models_tokenizer_is_refused(make_model, words_tokenizer):
    larger = words_tokenizer([f"w{number}" for number in range(200)])
    with pytest.raises(UserError, match="id 204, but BertForMaskedLM has 96"):
        list(attention_maps(make_model(), larger, ["w199"]))


def test_no_sentences_give_no_maps(make_model, tokenizer):
    assert list(attention_maps(make_model(), tokenizer, [])) == []
