"""Hugging Face folders open one way: every tensor by its name, nothing fetched, no code run."""

import json
import os
import shutil

import pytest
import torch
import transformers

from stackbert.errors import UserError
from stackbert.model_files import open_model, open_tokenizer, save_model, stored_class
from tiny_encoders import KINDS, tiny_encoder


@pytest.fixture
def folder(tmp_path):
    save_model(tiny_encoder(), tmp_path, tokenizer=None, sequence_length=32)
    return tmp_path


def change(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_opens_with_the_same_weights_and_logits(tmp_path, kind, dtype):
    model = tiny_encoder(kind).to(dtype).eval()
    save_model(model, tmp_path, tokenizer=None, sequence_length=32)
    opened = open_model(tmp_path, stored_class(tmp_path), dtype=None)
    assert type(opened) is type(model)
    assert not opened.training
    for name, parameter in opened.named_parameters():
        assert parameter.dtype == dtype
        assert torch.equal(parameter, model.get_parameter(name))
        assert parameter.data_ptr() % 64 == 0  # as a fresh tensor's memory
    ids = torch.arange(20).view(2, 10) + 5
    assert torch.equal(opened(input_ids=ids).logits, model(input_ids=ids).logits)


def test_an_attention_implementation_in_the_config_is_not_obeyed(folder):
    change(folder, attn_implementation="some-org/some-kernels")
    assert (
        open_model(folder, transformers.AutoModelForMaskedLM).config._attn_implementation == "sdpa"
    )


def test_a_missing_or_left_over_tensor_is_named_unless_it_may_be(folder):
    head = transformers.AutoModelForSequenceClassification
    with pytest.raises(UserError, match=r"does not fit BertForSequenceClassification: it lacks "):
        open_model(folder, head)
    new, old = r"classifier\..*|bert\.pooler\..*", r"cls\..*"
    with pytest.raises(UserError, match=r"it has no place for cls\."):
        open_model(folder, head, may_miss=new)
    assert open_model(folder, head, may_miss=new, may_ignore=old).config.num_labels == 2


def test_a_tensor_of_another_shape_is_named(folder):
    change(folder, intermediate_size=40)
    with pytest.raises(UserError, match=r"another shape for bert\.encoder\.layer\.0\.intermediate"):
        open_model(folder, transformers.BertForMaskedLM)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"auto_map": {"AutoModel": "evil.Model"}}, "never runs code from a checkpoint"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"num_hidden_layers": "two"}, "cannot be read"),
        ({"num_hidden_layers": 3}, r"it lacks bert\.encoder\.layer\.2"),
        ({"hidden_size": 33}, "cannot be read"),
    ],
)
def test_a_config_that_fits_no_plain_model_is_refused(folder, fields, message):
    change(folder, **fields)
    with pytest.raises(UserError, match=message):
        open_model(folder, transformers.BertForMaskedLM)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_file_is_named_in_a_sentence(folder, name):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="cannot be read"):
        open_model(folder, transformers.BertForMaskedLM)


def test_pickled_weights_are_never_read(folder, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    (folder / "model.safetensors").unlink()
    torch.save({"x": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickle that can run code"):
        open_model(folder, transformers.BertForMaskedLM)
    assert not (tmp_path / "ran").exists()


def test_what_is_no_checkpoint_is_said(tmp_path):
    with pytest.raises(UserError, match=r"has no config\.json"):
        open_model(tmp_path, transformers.AutoModel)
    with pytest.raises(UserError, match="should hold a tokenizer"):
        open_tokenizer(tmp_path)


def test_a_saved_tokenizer_knows_the_longest_row(tmp_path, factbook_corpus):
    model = tiny_encoder()
    files = {path.name: path.read_bytes() for path in factbook_corpus.tokenizer_folder.iterdir()}
    save_model(model, tmp_path, tokenizer=files, sequence_length=48)
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer.model_max_length == 48
    assert tokenizer.vocab_size == factbook_corpus.vocabulary.tokenizer_size
    shutil.rmtree(tmp_path)
