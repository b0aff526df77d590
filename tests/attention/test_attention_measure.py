"""The door: folders, models and texts in; a result that survives its files, and sentences out."""

import numpy as np
import pandas as pd
import pytest
import torch

from stackbert.attention.likeness import Contrast
from stackbert.attention.measure import measure_attention, read_attention, sample_sentences
from stackbert.attention.statements import statements
from stackbert.errors import UserError
from stackbert.growth.grow import grow
from tiny_encoders import tiny_encoder, word_tokenizer


def test_a_folder_and_a_model_give_the_same(make_model, save, tokenizer, sentences, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(sentences))
    model = make_model(depth=3)
    state = torch.random.get_rng_state()
    one = measure_attention(save(model), text=text)
    other = measure_attention(model, text=text, tokenizer=tokenizer)
    assert torch.equal(state, torch.random.get_rng_state())
    about = one.about()
    assert (about["name"], about["type"], one.text) == ("model", "bert", "text.txt")
    assert (about["depth"], about["heads_per_layer"], about["sentences"]) == (3, 2, 8)
    pd.testing.assert_frame_equal(one.heads, other.heads)


def test_a_result_survives_its_files(make_model, save, sentences, tmp_path):
    out = tmp_path / "new" / "out"
    shallow, deep = save(make_model(), "shallow"), save(make_model(depth=4), "deep")
    result = measure_attention(shallow, text=sentences, compare=deep, out=out)
    again = read_attention(out)
    pd.testing.assert_frame_equal(again.heads, result.heads, check_exact=True)
    assert statements(again) == statements(result)
    assert again.arrays.keys() == result.arrays.keys()
    assert all(np.array_equal(again.arrays[name], each) for name, each in result.arrays.items())
    assert again.about("compared")["depth"] == 4


def test_stacking_is_seen_as_likeness(make_model, tokenizer, sentences):
    # No layer adds to the stream, so that a copied layer has its source's maps.
    shallow = make_model("megatron-bert", depth=2)
    with torch.no_grad():
        for layer in shallow.bert.encoder.layer:
            for dense in (layer.attention.output.dense, layer.output.dense):
                dense.weight.zero_(), dense.bias.zero_()
    deep = grow(shallow, 4)
    result = measure_attention(shallow, text=sentences, tokenizer=tokenizer, compare=deep)
    assert result.shallow_deep.matched == pytest.approx(0, abs=1e-6)
    assert result.shallow_deep.untrained > 0.05
    (claim,) = [line for line in statements(result) if line.startswith("Claim 3")]
    assert ": holds (100%)." in claim


@pytest.fixture(scope="module")
def measured(tokenizer, sentences):
    return measure_attention(tiny_encoder(depth=3), text=sentences, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("matched", "untrained", "share", "verdict"),
    [
        (0.44, 0.5, 0.15, "hardly holds (15%)"),
        (0.30, 0.5, 0.5, "holds in part (50%)"),
        (0.20, 0.1, 0.0, "does not hold (0%)"),
        (0.00, 0.01, 1.0, "cannot be judged, as the maps hardly differ from an untrained model's"),
    ],
)
def test_the_verdict_lies_between_untrained_and_dealt(matched, untrained, share, verdict, measured):
    contrast = Contrast(matched, dealt=0.1, untrained=untrained)
    assert contrast.share == pytest.approx(share)
    claim = statements(measured.model_copy(update={"top_bottom": contrast}))[1]
    assert claim.startswith(f"Claim 2, top layers look like bottom layers: {verdict}. ")
    assert f"by {matched:.3f} (" in claim


@pytest.mark.parametrize(("local", "verdict"), [(3, "does not hold"), (4, "holds")])
def test_the_first_claim_holds_for_more_than_half_of_the_heads(local, verdict, measured):
    heads = measured.heads.copy()
    heads.loc[: local - 1, ["near_4", "class"]] = (0.9, "local")
    said = statements(measured.model_copy(update={"heads": heads}))[0]
    assert f"at [CLS]: {verdict}. {local} of 6 heads ({local / 6:.0%}) do; in an untr" in said
    assert f"By class: {local} local, 0 [CLS], 0 mixed, 0 [SEP], {6 - local} broad" in said


def test_users_mistakes_are_sentences(make_model, save, tokenizer, sentences, tmp_path):
    model = make_model()
    other = save(model, "other", word_tokenizer([f"x{number}" for number in range(90)]))
    folder, short = save(model), tmp_path / "short.txt"
    short.write_text("Too short. This one, too.")
    for says, options in (
        ("different vocabularies", {"model": folder, "compare": other}),
        ("needs tokenizer=", {"model": model}),
        ("The list of sentences is empty", {"model": folder, "text": []}),
        ("no sentence of at least 12 tokens", {"model": folder, "text": short}),
    ):
        with pytest.raises(UserError, match=says):
            measure_attention(**{"text": sentences, **options})


# The sample of sentences.


def long_sentence(number):
    return " ".join(["w1"] * 10 + [f"w{number}"]) + f" s{number}."


@pytest.fixture
def text(tmp_path):
    """Sixty long sentences in two files, with short ones, headings and a repetition between."""
    documents = []
    for start in (0, 20, 40):
        lines = ["A heading."]
        lines += [f"{long_sentence(at)} Too short." for at in range(start, start + 20)]
        documents.append("\n".join([*lines, long_sentence(start)]))
    (tmp_path / "a.txt").write_text("\n\n".join(documents[:2]))
    (tmp_path / "b.txt").write_text(documents[2].replace("w1 w1", "w1  \tw1"))
    return tmp_path


def test_a_sample_is_of_long_sentences_once_each_a_function_of_text_and_seed(text, tokenizer):
    found = sample_sentences(text, tokenizer, 1000)
    assert sorted(found) == sorted(long_sentence(number) for number in range(60))
    some = sample_sentences(text, tokenizer, 10, seed=3)
    assert len(some) == 10
    assert sample_sentences(text, tokenizer, 10, seed=4) != some
    assert sample_sentences(text, tokenizer, 25, seed=3)[:10] == some
