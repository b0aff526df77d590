"""Checkpoint folders in, checkpoint folders out; whatever is wrong is said in a sentence."""

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import build
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertForPreTraining,
    BertModel,
)

from stackbert.errors import UserError
from stackbert.growth.folder import grow_folder


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    build("bert", 2).save_pretrained(folder)
    for name in ("vocab.txt", "tokenizer.json", "README.md", "state.json", ".gitattributes"):
        (folder / name).write_text("{}")
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.safetensors", "mine.py"):
        (folder / name).write_bytes(b"pickle")
    (folder / "checkpoint-5").mkdir()
    return folder


def edit_config(folder, **fields):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "drop"}))


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_a_folder_grows_into_one_that_transformers_opens(source, tmp_path):
    target = tmp_path / "deep" / "grown"
    report = grow_folder(source, str(target), 6)
    assert (report.source_depth, report.depth, report.model_class) == (2, 6, "BertForMaskedLM")
    model, info = AutoModelForMaskedLM.from_pretrained(target, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert report.parameters == sum(p.numel() for p in model.parameters())
    old = weights(source)
    for name, tensor in weights(target).items():
        parts = name.split(".")
        if "layer" in parts:
            at = parts.index("layer") + 1
            parts[at] = str(int(parts[at]) % 2)
        assert torch.equal(tensor, old[".".join(parts)]), name
    files = ["README.md", "config.json", "model.safetensors", "tokenizer.json", "vocab.txt"]
    assert sorted(path.name for path in target.iterdir()) == files
    assert len({path.stat().st_mode for path in target.iterdir()}) == 1, "some less readable"
    assert [path.name for path in target.parent.iterdir()] == ["grown"]
    card = (target / "README.md").read_text()
    assert "of 6 layers, made by StackBERT from one of 2 layers" in card
    assert "not been trained since" in card


def test_decoders_grow_too(tmp_path, logits):
    model = build("gpt2", 2)
    model.generation_config.max_new_tokens = 77
    model.save_pretrained(tmp_path / "a")
    grow_folder(tmp_path / "a", tmp_path / "b", 5, "identity")
    grown = AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    assert grown.config.num_hidden_layers == 5
    assert grown.generation_config.max_new_tokens == 77
    assert torch.equal(logits(grown), logits(model))


def test_shards_and_a_stored_position_ids_buffer_are_read(source, tmp_path):
    ids = torch.arange(66)[None]
    edit_weights(source, lambda t: t.update({"bert.embeddings.position_ids": ids}))
    grow_folder(source, tmp_path / "b", 4)
    shards = tmp_path / "shards"
    build("bert", 2).save_pretrained(shards, max_shard_size="40KB")
    assert len(list(shards.glob("*.safetensors"))) > 1
    grow_folder(shards, tmp_path / "c", 4)
    one, other = weights(tmp_path / "b"), weights(tmp_path / "c")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    next(shards.glob("model-00002*")).unlink()
    with pytest.raises(UserError, match="model-00002"):
        grow_folder(shards, tmp_path / "d", 4)


@pytest.mark.parametrize("said", ["float32", "bfloat16", "drop"])
def test_weights_keep_the_dtype_they_are_stored_in(said, tmp_path):
    build("modernbert", 3).to(torch.bfloat16).save_pretrained(tmp_path / "a")
    edit_config(tmp_path / "a", dtype=said)
    grow_folder(tmp_path / "a", tmp_path / "b", 6)
    assert {tensor.dtype for tensor in weights(tmp_path / "b").values()} == {torch.bfloat16}


def test_a_pre_training_checkpoint_that_names_one_head_keeps_both(source, tmp_path):
    """bert-base-uncased is such a one, with the old names of its norms on top."""
    BertForPreTraining(build("bert", 2).config).save_pretrained(source)
    edit_config(source, architectures=["BertForMaskedLM"])

    def old_names(tensors):
        for name in [name for name in tensors if "LayerNorm" in name]:
            old = name.replace(".weight", ".gamma").replace(".bias", ".beta")
            tensors[old] = tensors.pop(name)

    edit_weights(source, old_names)
    assert grow_folder(source, tmp_path / "b", 4).model_class == "BertForPreTraining"
    old, new = weights(source), weights(tmp_path / "b")
    assert torch.equal(new["cls.seq_relationship.weight"], old["cls.seq_relationship.weight"])
    norm = "bert.encoder.layer.{}.output.LayerNorm.{}"
    assert torch.equal(new[norm.format(3, "weight")], old[norm.format(1, "gamma")])
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "b").config.num_hidden_layers == 4


def test_an_encoder_has_a_pooler_only_if_it_had_one(tmp_path):
    build("bert", 2).bert.save_pretrained(tmp_path / "without")
    BertModel(build("bert", 2).config).save_pretrained(tmp_path / "with")
    for name, poolers in (("without", 0), ("with", 2)):
        target = tmp_path / f"{name}-grown"
        assert grow_folder(tmp_path / name, target, 4).model_class == "BertModel"
        assert AutoModel.from_pretrained(target).config.num_hidden_layers == 4
        assert sum("pooler" in tensor for tensor in weights(target)) == poolers


def test_folders_of_sentence_transformers_are_copied(source, tmp_path):
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text("{}")
    (source / "modules.json").write_text("[]")
    grow_folder(source, tmp_path / "b", 4)
    for name in ("1_Pooling/config.json", "modules.json"):
        assert (tmp_path / "b" / name).is_file()


BIAS, HEAD = "bert.encoder.layer.1.output.dense.bias", "cls.predictions.bias"
FAULTS = {
    "not a folder.*not looked up": lambda f: shutil.rmtree(f),
    "has no config.json": lambda f: (f / "config.json").unlink(),
    "config.json cannot be read": lambda f: (f / "config.json").write_text("{"),
    "auto_map.*never runs code": lambda f: edit_config(f, auto_map={"AutoModel": "my.Mine"}),
    "weights are quantised": lambda f: edit_config(f, quantization_config={"bits": 4}),
    "no model class 'MyBert'": lambda f: edit_config(f, architectures=["MyBert"]),
    "does not name its class": lambda f: edit_config(f, architectures="drop"),
    "cannot be read.*hidden_size": lambda f: edit_config(f, hidden_size="wide"),
    "cannot be read: .*[Hh]eader": lambda f: (f / "model.safetensors").write_bytes(b"\x09" * 99),
    "only .*pytorch_model.bin.*pickle": lambda f: (f / "model.safetensors").unlink(),
    f"lacks {BIAS}": lambda f: edit_weights(f, lambda t: t.pop(BIAS)),
    "no place for mine": lambda f: edit_weights(f, lambda t: t.update(mine=torch.ones(2))),
    f"shape for {HEAD}": lambda f: edit_weights(f, lambda t: t.update({HEAD: torch.ones(5)})),
    "no place for bert.encoder.layer.1.*13 more": lambda f: edit_config(f, num_hidden_layers=1),
    "as I8; .*plain": lambda f: edit_weights(
        f, lambda t: t.update({k: v.to(torch.int8) for k, v in t.items() if v.ndim == 2})
    ),
    f"NaN in '{BIAS}'": lambda f: edit_weights(f, lambda t: t[BIAS].fill_(torch.nan)),
}


@pytest.mark.parametrize("sentence", list(FAULTS))
def test_every_fault_of_the_source_gets_its_sentence(sentence, source, tmp_path, caplog):
    FAULTS[sentence](source)
    with caplog.at_level(logging.WARNING), pytest.raises(UserError, match=f"(?s){sentence}"):
        grow_folder(source, tmp_path / "b", 4)
    assert {path.name for path in tmp_path.iterdir()} <= {"source"}, "something half-made is left"


def test_refusals_come_before_the_weights_are_read(source, tmp_path):
    # Were the weights read first, their fault would be reported.
    edit_weights(source, lambda t: t.pop(BIAS))
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="there exists already"):
        grow_folder(source, tmp_path / "there", 4)
    with pytest.raises(UserError, match=r"cannot grow 2 layers to 5.*4 or 6"):
        grow_folder(source, tmp_path / "b", 5)
    with pytest.raises(UserError, match="no growth operator 'pile'"):
        grow_folder(source, tmp_path / "b", 4, "pile")
