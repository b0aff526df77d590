"""The door: folders, models and runs in; a result that survives JSON, a table and sentences out."""

import json
import re

import numpy as np
import pytest
import torch

from stackbert.attention.measure import measure_attention
from stackbert.attention.result import AttentionResult, Contrast, read_result
from stackbert.attention.statements import (
    likeness_share,
    statements,
    top_and_bottom_statement,
)
from stackbert.attention.table import layer_table
from stackbert.errors import UserError


@pytest.fixture
def text(tmp_path, sentences):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(sentences), encoding="utf-8")
    return path


def test_a_folder_and_a_model_give_the_same(make_model, save, tokenizer, text):
    model = make_model(depth=3)
    state = torch.random.get_rng_state()
    one = measure_attention(save(model), text=text)
    other = measure_attention(model, text=text, tokenizer=tokenizer)
    assert torch.equal(state, torch.random.get_rng_state())
    assert (one.model.name, one.text) == ("model", "text.txt")
    assert (one.model.type, one.model.depth, one.model.heads) == ("bert", 3, 2)
    assert other.measures.profile == pytest.approx(one.measures.profile, abs=1e-6)
    assert other.likeness.heads == pytest.approx(one.likeness.heads, abs=1e-6)
    blanks = [each.untrained.likeness.heads for each in (one, other)]
    assert blanks[0] == pytest.approx(blanks[1], abs=1e-6)


def test_a_result_survives_json(make_model, save, text, tmp_path):
    deep = save(make_model(depth=4), "deep")
    result = measure_attention(save(make_model(), "shallow"), text=text, compare=deep)
    result.write(tmp_path / "attention.json")
    again = read_result(tmp_path / "attention.json")
    assert json.dumps(again.to_json()) == json.dumps(result.to_json())
    assert again.measures.within.shape == (4, 2, 2)
    assert again.likeness.heads.dtype == np.float64
    assert again.likeness.matching.dtype == np.int64
    assert again.measures.classes.tolist() == result.measures.classes.tolist()
    assert again.other.model.depth == 4
    assert statements(again) == statements(result)


@pytest.mark.parametrize("content", ["{}", "[]", '{"format": 1}', "no json"])
def test_another_file_is_no_result(content, tmp_path):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError):
        read_result(tmp_path / "x.json")


def test_the_likeness_of_a_model_with_itself_is_zero_on_the_diagonal(make_model, tokenizer, text):
    found = measure_attention(make_model(depth=3), text=text, tokenizer=tokenizer).likeness
    assert np.diag(found.divergence) == pytest.approx(0, abs=1e-6)
    assert found.divergence == pytest.approx(found.divergence.T, abs=1e-6)
    assert (found.divergence <= found.random_pairs + 1e-9).all()


def test_stacking_is_seen_as_likeness(make_model, tokenizer, text):
    from stackbert.growth.model import grow

    # Uniform queries and keys of position alone, so that a copied layer has its source's maps.
    shallow = make_model("megatron-bert", depth=2)
    with torch.no_grad():
        for layer in shallow.bert.encoder.layer:
            layer.attention.output.dense.weight.zero_(), layer.attention.output.dense.bias.zero_()
            layer.output.dense.weight.zero_(), layer.output.dense.bias.zero_()
    deep = grow(shallow, 4)
    result = measure_attention(shallow, text=text, tokenizer=tokenizer, compare=deep)
    assert result.other.contrast.matched == pytest.approx(0, abs=1e-5)
    assert result.other.likeness.divergence[0, 2] == pytest.approx(0, abs=1e-5)
    assert (
        "Claim 3, a shallow model's maps look like a deep one's: holds (" in statements(result)[2]
    )


def test_a_head_that_looks_at_itself_is_found_in_a_real_model(make_model, tokenizer, text):
    model = make_model(depth=1, heads=1)
    own = model.bert.encoder.layer[0].attention.self
    with torch.no_grad():
        own.key.weight.copy_(own.query.weight), own.key.bias.copy_(own.query.bias)
        own.query.weight.mul_(100), own.query.bias.mul_(100)
    measures = measure_attention(model, text=text, tokenizer=tokenizer).measures
    assert measures.itself.item() > 3 * measures.itself_uniform


@pytest.mark.parametrize(
    ("matched", "untrained", "share", "verdict"),
    [
        (0.50, 0.5, 0.0, "does not hold"),
        (0.60, 0.5, 0.0, "does not hold"),
        (0.44, 0.5, 0.15, "hardly holds"),
        (0.30, 0.5, 0.5, "holds in part"),
        (0.20, 0.5, 0.75, "holds"),
        (0.05, 0.5, 1.0, "holds"),
        (0.20, 0.1, 0.0, "does not hold"),
        (0.05, 0.1, 1.0, "holds"),
        (0.00, 0.01, 1.0, "cannot be told, "),
    ],
)
def test_the_verdict_lies_between_untrained_and_dealt(matched, untrained, share, verdict):
    contrast = Contrast(matched, 0.7, 0.6, 0.1, untrained, 0.0)
    assert likeness_share(contrast) == pytest.approx(share)
    assert re.search(
        rf"bottom layers: {verdict}( \(|as the maps)", top_and_bottom_statement(contrast)
    )


def test_statements_have_the_numbers(make_model, tokenizer, text):
    result = measure_attention(make_model(depth=2), text=text, tokenizer=tokenizer)
    patterns, halves = statements(result)
    counts = [
        int(n) for n in re.findall(r"(\d+) (?:local|\[CLS\]|mixed|\[SEP\]|broad|other)", patterns)
    ]
    assert len(counts) == 6
    assert sum(counts) == 4
    for number in (result.contrast.matched, result.contrast.dealt, result.contrast.untrained):
        assert f"{number:.3f}" in halves


def test_the_table_has_a_line_a_layer(make_model, tokenizer, text):
    result = measure_attention(make_model(depth=3), text=text, tokenizer=tokenizer)
    lines = [line.split() for line in layer_table(result).splitlines()]
    rows = {line[0]: line for line in lines if line}
    assert [name for name in rows if name.isdigit()] == ["1", "2", "3"]
    assert "[CLS]" in rows["layer"]
    assert f"{result.measures.entropy.mean():.3f}" in rows["all"]
    assert f"{result.measures.first[1].mean():.3f}" == rows["2"][5]
    assert rows["untrained"][-2:] == ["6", "broad"]


def test_models_of_two_tokenizers_are_not_compared(make_model, save, words_tokenizer, text):
    other = save(make_model(), "other", words_tokenizer([f"x{number}" for number in range(90)]))
    with pytest.raises(UserError, match=r"different vocabularies \(90 of 95 tokens"):
        measure_attention(save(make_model()), text=text, compare=other)


def test_a_model_without_a_tokenizer_is_refused(make_model, text):
    with pytest.raises(UserError, match="needs its tokenizer"):
        measure_attention(make_model(), text=text)


def test_an_empty_list_of_sentences_is_refused(make_model, tokenizer):
    with pytest.raises(UserError, match="empty"):
        measure_attention(make_model(), text=[], tokenizer=tokenizer)


def test_the_command_writes_the_result_and_says_it(stackbert, make_model, save, text, tmp_path):
    folder, out = save(make_model()), tmp_path / "new" / "out"
    code, printed, _ = stackbert(
        "attention", folder, "--text", text, "--out", out, "--sentences", 5
    )
    assert code == 0
    result = AttentionResult.from_json(json.loads((out / "attention.json").read_text()))
    assert result.measures.sentences == 5
    assert layer_table(result) in printed
    for sentence in statements(result):
        assert sentence in printed


def test_a_users_mistake_is_a_sentence_and_exit_code_two(
    stackbert, save, make_model, text, tmp_path
):
    mistakes = {
        "is not a folder": (tmp_path / "none", text),
        "There is no": (save(make_model()), tmp_path / "none.txt"),
    }
    for sentence, (model, path) in mistakes.items():
        code, _, said = stackbert("attention", model, "--text", path, "--out", tmp_path / "out")
        assert code == 2
        assert sentence in said
        assert "Traceback" not in said
