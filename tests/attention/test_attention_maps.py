"""Maps of real models: probabilities, whatever the padding; the model is left as it was."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    CanineConfig,
    CanineModel,
    FNetConfig,
    FNetModel,
    PreTrainedTokenizerFast,
    SqueezeBertConfig,
    SqueezeBertModel,
)

from stackbert.attention.maps import attention_maps, longest_sentence
from stackbert.errors import UserError
from tiny_encoders import KINDS, word_tokenizer

every_kind = pytest.mark.parametrize("kind", list(KINDS))


def maps_of(model, tokenizer, sentences, **options):
    return sorted(attention_maps(model, tokenizer, sentences, **options), key=lambda m: m.index)


@every_kind
def test_maps_are_those_of_transformers_whatever_the_padding(
    kind, make_model, tokenizer, sentences
):
    model = make_model(kind, depth=3)
    together = maps_of(model, tokenizer, sentences, batch_tokens=10_000)
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


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_model_is_left_as_it_was(implementation, make_model, tokenizer, sentences):
    model, shapes = make_model(attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.5), []
    model.base_model.register_forward_pre_hook(
        lambda _, __, inputs: shapes.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    model.set_attn_implementation(implementation)
    model.train()
    model.bert.encoder.layer[1].eval()
    modes = [module.training for module in model.modules()]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    looking = attention_maps(model, tokenizer, sentences, batch_tokens=50)
    first = next(looking)  # also between two sentences, and when nobody asks for the rest
    assert model.config._attn_implementation == implementation
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    again = next(attention_maps(model, tokenizer, sentences, batch_tokens=50))
    assert np.array_equal(first.maps_LHSS, again.maps_LHSS)  # no dropout
    assert shapes[0] == (2, 14)  # with the third, of 17 tokens, a pass would hold 51


@every_kind
def test_a_sentence_is_cut_where_the_positions_end(kind, make_model, tokenizer):
    model = make_model(kind, max_position_embeddings=34)
    longest = longest_sentence(model, tokenizer, 128)
    assert longest == (33 if kind.startswith("roberta") else 34)
    (found,) = maps_of(model, tokenizer, [" ".join(["w1"] * 60)], max_length=longest)
    assert len(found.tokens) == longest
    assert found.tokens[-1] == "[SEP]"


def test_modernberts_window_is_seen(make_model, tokenizer, sentences):
    model = make_model("modernbert", depth=3)
    (found,) = maps_of(model, tokenizer, [sentences[1]])
    position = np.arange(len(found.tokens))
    outside = np.abs(position[:, None] - position) > model.config.local_attention // 2
    assert found.maps_LHSS[1][:, outside].max() == 0
    assert found.maps_LHSS[0][:, outside].min() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_give_maps_too(dtype, make_model, tokenizer, sentences):
    (found,) = maps_of(make_model().to(dtype), tokenizer, sentences[1:2])
    assert np.allclose(found.maps_LHSS.sum(-1), 1, atol=0.01)


SHAPE = {
    "vocab_size": 96,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "pad_token_id": 0,
}


def damaged(model):
    model.bert.encoder.layer[0].attention.self.query.weight.data[0, 0] = torch.nan
    return model


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda _: FNetModel(FNetConfig(**SHAPE)), "no attention weights of every token"),
        (
            lambda _: SqueezeBertModel(SqueezeBertConfig(**SHAPE, embedding_size=16)),
            "not probabilities",
        ),
        (lambda make: damaged(make()), "not probabilities: .*nan"),
        (lambda _: CanineModel(CanineConfig(**SHAPE)), "CanineModel"),
    ],
    ids=["no attention", "raw scores", "NaN", "characters"],
)
def test_what_gives_no_probabilities_is_refused(build, says, make_model, tokenizer, sentences):
    with pytest.raises(UserError, match=says):
        list(attention_maps(build(make_model).eval(), tokenizer, sentences))


def test_another_models_tokenizer_is_refused(make_model):
    larger = word_tokenizer([f"w{number}" for number in range(200)])
    with pytest.raises(UserError, match="id 204, but BertForMaskedLM knows only 96"):
        list(attention_maps(make_model(), larger, ["w199"]))


def test_tokens_of_a_byte_level_tokenizer_are_text(make_model):
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(["the old mill by the river"] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, sep_token="</s>")
    (found,) = maps_of(make_model(vocab_size=310), tokenizer, ["the Müller 東 👍 mill</s>"])
    assert found.tokens[0] == "the"
    assert found.tokens[-1] == "</s>"
    # A character of several tokens is shown by each of them.
    assert "".join(dict.fromkeys(found.tokens)).startswith("the Mül")
    assert found.tokens.count("東") == 3
    assert found.tokens.count("👍") == 4
    assert not set("ĠÃæ") & set("".join(found.tokens))
