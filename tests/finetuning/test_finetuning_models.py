"""Opening an encoder with a new head: which folders, what is new, what is refused."""

import json

import pytest
import torch
from finetuning_helpers import build, make_tokenizer, save
from safetensors.torch import load_file, save_file
from transformers import (
    BertForSequenceClassification,
    BertGenerationConfig,
    BertGenerationEncoder,
    PreTrainedTokenizerFast,
)

from stackbert import UserError
from stackbert.finetuning.heads import check_head, find_source, open_model
from stackbert.finetuning.work import Head
from tiny_encoders import KINDS

CLASSES = Head("classes", ("no", "yes", "perhaps"))


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("head", [CLASSES, Head("number"), Head("span")])
def test_every_model_type_gets_every_head_and_keeps_its_encoder(kind, head, tmp_path):
    source = find_source(save(tmp_path / kind, build(kind)))
    opened = open_model(source, head, seed=1, dropout=0.1)
    stored = load_file(tmp_path / kind / "model.safetensors")
    prefix = opened.model.base_model_prefix
    ours = opened.model.base_model.state_dict()
    shared = [name for name in ours if f"{prefix}.{name}" in stored]
    assert len(shared) >= 14
    assert all(torch.equal(ours[name], stored[f"{prefix}.{name}"]) for name in shared)
    assert all("pooler" in name for name in set(ours) - set(shared))
    assert opened.model.config.num_labels == head.outputs
    assert opened.takes_types == (kind in ("bert", "megatron-bert"))
    assert opened.notes == ()


def test_new_weights_follow_from_the_seed_and_leave_torchs_own_randomness(tmp_path):
    source = find_source(save(tmp_path / "model"))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, same, other = (
        open_model(source, CLASSES, seed=seed, dropout=None).model.state_dict()
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], same[name]) for name in first)
    changed = {name for name in first if not torch.equal(first[name], other[name])}
    assert changed == {"classifier.weight", "bert.pooler.dense.weight"}


def test_dropout_is_put_in_place_of_what_pretraining_had(tmp_path):
    bare = build(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    source = find_source(save(tmp_path / "model", bare))
    config = open_model(source, CLASSES, seed=0, dropout=0.2).model.config
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.2, 0.2)
    assert config.classifier_dropout == 0.2
    config = open_model(source, CLASSES, seed=0, dropout=None).model.config
    assert (config.hidden_dropout_prob, config.classifier_dropout) == (0.0, None)


def test_an_encoder_without_any_head_opens_and_keeps_its_pooler(tmp_path):
    model = build()
    folder = save(tmp_path / "model", model.bert)
    opened = open_model(find_source(folder), CLASSES, seed=0, dropout=None)
    ours = opened.model.bert.embeddings.word_embeddings.weight
    assert torch.equal(ours, model.bert.embeddings.word_embeddings.weight)


def test_a_head_that_came_along_is_named(tmp_path):
    config = build().config
    config.num_labels = 3
    folder = save(tmp_path / "model", BertForSequenceClassification(config))
    opened = open_model(find_source(folder), CLASSES, seed=0, dropout=None)
    assert "comes with a head of this shape" in opened.notes[0]
    two = Head("classes", ("no", "yes"))
    assert open_model(find_source(folder), two, seed=0, dropout=None).notes == ()


def test_positions_and_the_tokenizers_own_bound_limit_a_rows_length(tmp_path):
    bert = open_model(find_source(save(tmp_path / "a")), CLASSES, seed=0, dropout=None)
    assert (bert.longest(512), bert.longest(20)) == (66, 20)
    source = find_source(save(tmp_path / "b", build("roberta")))
    assert open_model(source, CLASSES, seed=0, dropout=None).longest(512) == 65
    short = make_tokenizer()
    short.model_max_length = 48
    source = find_source(save(tmp_path / "c", tokenizer=short))
    assert open_model(source, CLASSES, seed=0, dropout=None).longest(512) == 48


def test_weights_config_and_tokenizer_make_a_model_another_one(tmp_path):
    folder = save(tmp_path / "model")
    first = find_source(folder).fingerprint
    (folder / "README.md").write_text("a note")
    (folder / "optimizer.safetensors").write_bytes(b"moments")
    assert find_source(folder).fingerprint == first
    tensors = load_file(folder / "model.safetensors")
    tensors["bert.embeddings.LayerNorm.bias"][0] += 1e-3
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    second = find_source(folder).fingerprint
    assert second != first
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 9}))
    assert find_source(folder).fingerprint not in (first, second)


def _no_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def _unknown_type(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace("BertForMaskedLM", "SomeoneElsesModel"))


def _own_code(folder):
    path = folder / "config.json"
    fields = json.loads(path.read_text()) | {"auto_map": {"AutoModel": "code.Model"}}
    path.write_text(json.dumps(fields))


def _pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _no_folder(folder):
    folder.rename(folder.with_name("elsewhere"))


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (_no_tokenizer, "has no tokenizer"),
        (_unknown_type, "which transformers"),
        (_own_code, "code of its own"),
        (_pickled, "pickle"),
        (_no_folder, "is not a folder"),
    ],
)
def test_a_folder_that_is_no_model_is_refused_in_a_sentence(break_it, said, tmp_path):
    folder = save(tmp_path / "model")
    break_it(folder)
    with pytest.raises(UserError, match=said):
        find_source(folder)


@pytest.mark.parametrize("change", ["missing", "left over", "shape"])
def test_an_encoder_tensor_that_does_not_fit_is_named(change, tmp_path):
    folder = save(tmp_path / "model")
    name = "bert.encoder.layer.1.output.dense.weight"
    tensors = load_file(folder / "model.safetensors")
    if change == "missing":
        del tensors[name]
    elif change == "left over":
        name = "bert.encoder.layer.2.output.dense.weight"
        tensors[name] = torch.zeros(2)
    else:
        tensors[name] = torch.zeros(3, 3)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError) as caught:
        open_model(find_source(folder), CLASSES, seed=0, dropout=None)
    assert name in str(caught.value)
    assert "not those of its config.json" in str(caught.value)


def test_a_type_without_such_a_head_is_refused_before_its_weights_are_read(tmp_path):
    config = BertGenerationConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    source = find_source(save(tmp_path / "model", BertGenerationEncoder(config)))
    with pytest.raises(UserError, match="has no head for sentences"):
        check_head(source, CLASSES)
    with pytest.raises(UserError, match="has no head for questions"):
        check_head(source, Head("span"))


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    folder = save(tmp_path / "model", build(vocab_size=64))
    with pytest.raises(UserError, match="do not belong together"):
        open_model(find_source(folder), CLASSES, seed=0, dropout=None)


def test_a_tokenizer_without_padding_is_refused(tmp_path):
    bare = PreTrainedTokenizerFast(tokenizer_object=make_tokenizer()._tokenizer)
    folder = save(tmp_path / "model", tokenizer=bare)
    with pytest.raises(UserError, match="no padding token"):
        open_model(find_source(folder), CLASSES, seed=0, dropout=None)
