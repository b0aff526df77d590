"""Hugging Face folders open one way: every tensor by its name, nothing fetched, no code run."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from stackbert.errors import UserError
from stackbert.model_files import open_model, open_tokenizer, save_model, stored_class
from tiny_encoders import KINDS, edit_config, edit_weights, tiny_encoder


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model").mkdir()
    save_model(tiny_encoder(), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_opens_with_the_same_weights_and_logits(tmp_path, kind, dtype):
    model = tiny_encoder(kind).to(dtype).eval()
    save_model(model, tmp_path)
    opened = open_model(tmp_path, stored_class(tmp_path), dtype=None)
    assert type(opened) is type(model)
    assert not opened.training
    for name, parameter in opened.named_parameters():
        assert parameter.dtype == dtype
        assert torch.equal(parameter, model.get_parameter(name))
        assert parameter.data_ptr() % 64 == 0  # as a fresh tensor's memory
    ids = torch.arange(20).view(2, 10) + 5
    # On transformers 5.17 `to` above rounds RoPE's angles, too, which no file keeps.
    rounds = (kind, dtype) == ("modernbert", torch.bfloat16)
    logits = opened(input_ids=ids).logits, model(input_ids=ids).logits
    torch.testing.assert_close(*logits, rtol=0, atol=2e-3 * rounds)


def test_an_attention_implementation_in_the_config_is_not_obeyed(folder):
    edit_config(folder, attn_implementation="some-org/some-kernels")
    opened = open_model(folder, transformers.AutoModelForMaskedLM)
    assert opened.config._attn_implementation == "sdpa"


def test_a_missing_or_left_over_tensor_is_named_unless_it_may_be(folder):
    head = transformers.AutoModelForSequenceClassification
    with pytest.raises(UserError, match=r"does not fit BertForSequenceClassification: it lacks "):
        open_model(folder, head)
    new, old = r"classifier\..*|bert\.pooler\..*", r"cls\..*"
    with pytest.raises(UserError, match=r"it has no place for cls\."):
        open_model(folder, head, may_miss=new)
    assert open_model(folder, head, may_miss=new, may_ignore=old).config.num_labels == 2


BIAS = "bert.encoder.layer.1.output.dense.bias"
FAULTS: dict[str, Callable[[Path], object]] = {
    "has no config.json.*not looked up": lambda f: shutil.rmtree(f),
    "config.json cannot be read": lambda f: (f / "config.json").write_text("{"),
    "model.safetensors|cannot be read": lambda f: (f / "model.safetensors").write_bytes(b"\t" * 99),
    "auto_map.*never runs code": lambda f: edit_config(f, auto_map={"AutoModel": "my.Mine"}),
    "weights are quantised": lambda f: edit_config(f, quantization_config={"bits": 4}),
    "class of transformers, and names MyBert": lambda f: edit_config(f, architectures=["MyBert"]),
    "class of transformers, and names None": lambda f: edit_config(f, architectures=None),
    "cannot be read.*hidden_size": lambda f: edit_config(f, hidden_size="wide"),
    "cannot be read": lambda f: edit_config(f, hidden_size=33),
    "has no place for bert.encoder.layer.1.*more": lambda f: edit_config(f, num_hidden_layers=1),
    r"it lacks bert\.encoder\.layer\.2": lambda f: edit_config(f, num_hidden_layers=3),
    r"another shape for bert\.encoder.*inter": lambda f: edit_config(f, intermediate_size=40),
    f"lacks {BIAS}": lambda f: edit_weights(f, lambda t: t.pop(BIAS)),
    "stores '.*' as I8": lambda f: edit_weights(
        f, lambda t: t.update({k: v.to(torch.int8) for k, v in t.items() if v.ndim == 2})
    ),
    f"not finite in '{BIAS}'": lambda f: edit_weights(f, lambda t: t[BIAS].fill_(torch.nan)),
    f"is not finite in '{BIAS}'": lambda f: edit_weights(f, lambda t: t[BIAS][:1].fill_(torch.inf)),
}


@pytest.mark.parametrize("sentence", FAULTS)
def test_every_fault_of_a_folder_gets_its_sentence(sentence, folder):
    FAULTS[sentence](folder)
    with pytest.raises(UserError, match=f"(?s){sentence}"):
        open_model(folder, stored_class(folder), dtype=None)


def test_a_saved_tokenizer_knows_the_longest_row(tmp_path, factbook_corpus):
    model = tiny_encoder()
    files = {path.name: path.read_bytes() for path in factbook_corpus.tokenizer_folder.iterdir()}
    save_model(model, tmp_path, tokenizer=files, sequence_length=48)
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer.model_max_length == 48
    assert tokenizer.vocab_size == factbook_corpus.vocabulary.tokenizer_size
    config = tmp_path / "tokenizer_config.json"
    config.write_text(config.read_text().replace("48", "-48"))
    with pytest.raises(UserError, match="model_max_length is -48"):
        open_tokenizer(tmp_path)
    for path in tmp_path.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match="tokenizer"):
        open_tokenizer(tmp_path)
