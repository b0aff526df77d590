"""Checkpoint folders in, checkpoint folders out; whatever is wrong is said in a sentence."""

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    BertForPreTraining,
    BertModel,
)

from stackbert.errors import UserError
from stackbert.growth import grow_folder


@pytest.fixture
def source(make_model, tmp_path):
    folder = tmp_path / "source"
    make_model("bert", 2).save_pretrained(folder)
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "training_args.bin").write_bytes(b"pickle")
    (folder / "state.json").write_text("{}")
    (folder / "optimizer.safetensors").write_bytes(b"moments")
    (folder / ".gitattributes").write_text("")
    (folder / "checkpoint-5").mkdir()
    return folder


def edit_config(folder, **fields):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(fields)
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "drop"}))


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_folder_grows_into_one_that_transformers_opens(source, tmp_path):
    target = tmp_path / "deep" / "grown"
    report = grow_folder(source, str(target), 6, "stack")
    assert (report.source_depth, report.depth, report.model_class) == (2, 6, "BertForMaskedLM")
    assert report.copied_files == ("tokenizer.json", "vocab.txt")
    model, info = AutoModelForMaskedLM.from_pretrained(target, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.num_hidden_layers == 6
    assert report.parameters == sum(p.numel() for p in model.parameters())
    old, new = load_file(source / "model.safetensors"), load_file(target / "model.safetensors")
    for name, tensor in new.items():
        parts = name.split(".")
        if "layer" in parts:
            at = parts.index("layer") + 1
            parts[at] = str(int(parts[at]) % 2)
        assert torch.equal(tensor, old[".".join(parts)]), name
    assert sorted(path.name for path in target.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "vocab.txt",
    ]
    modes = {path.stat().st_mode for path in target.iterdir()}
    assert len(modes) == 1, "some files are less readable than others"
    assert sorted(path.name for path in target.parent.iterdir()) == ["grown"]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_decoders_grow_too(kind, make_model, tmp_path, token_ids):
    model = make_model(kind, 2).eval()
    model.generation_config.max_new_tokens = 77
    model.save_pretrained(tmp_path / "a")
    grow_folder(tmp_path / "a", tmp_path / "b", 5, "identity")
    grown = AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    assert grown.config.num_hidden_layers == 5
    assert grown.generation_config.max_new_tokens == 77
    with torch.no_grad():
        assert torch.equal(grown(token_ids).logits, model(token_ids).logits)


def test_shards_and_a_stored_position_ids_buffer_are_read(make_model, tmp_path):
    folder = tmp_path / "a"
    model = make_model("bert", 2)
    model.save_pretrained(folder)
    edit_weights(
        folder, lambda t: t.update({"bert.embeddings.position_ids": torch.arange(64)[None]})
    )
    grow_folder(folder, tmp_path / "b", 4)
    model.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    grow_folder(tmp_path / "shards", tmp_path / "c", 4)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in "bc")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    next((tmp_path / "shards").glob("model-00002*")).unlink()
    with pytest.raises(UserError, match="lacks the weight files model-00002"):
        grow_folder(tmp_path / "shards", tmp_path / "d", 4)


@pytest.mark.parametrize("said", ["float32", "bfloat16", "drop"])
def test_weights_keep_the_dtype_they_are_stored_in(said, make_model, tmp_path):
    make_model("modernbert", 3).to(torch.bfloat16).save_pretrained(tmp_path / "a")
    edit_config(tmp_path / "a", dtype=said)
    grow_folder(tmp_path / "a", tmp_path / "b", 6)
    dtypes = {tensor.dtype for tensor in load_file(tmp_path / "b" / "model.safetensors").values()}
    assert dtypes == {torch.bfloat16}


def test_a_pre_training_checkpoint_that_names_one_head_keeps_both(tmp_path):
    """bert-base-uncased is such a one, with the old names of its norms on top."""
    config = BertConfig(
        num_hidden_layers=2,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=2,
        vocab_size=128,
    )
    BertForPreTraining(config).save_pretrained(tmp_path / "a")
    edit_config(tmp_path / "a", architectures=["BertForMaskedLM"])

    def old_names(tensors):
        for name in list(tensors):
            if "LayerNorm" in name:
                new = name.replace(".weight", ".gamma").replace(".bias", ".beta")
                tensors[new] = tensors.pop(name)

    edit_weights(tmp_path / "a", old_names)
    assert grow_folder(tmp_path / "a", tmp_path / "b", 4).model_class == "BertForPreTraining"
    old, new = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert torch.equal(new["cls.seq_relationship.weight"], old["cls.seq_relationship.weight"])
    assert torch.equal(
        new["bert.encoder.layer.3.output.LayerNorm.weight"],
        old["bert.encoder.layer.1.output.LayerNorm.gamma"],
    )
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "b").config.num_hidden_layers == 4


def test_folders_of_sentence_transformers_come_along(source, tmp_path):
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text("{}")
    modules = [{"path": ""}, {"path": "1_Pooling"}, {"path": "../source"}, {"path": ".."}]
    (source / "modules.json").write_text(json.dumps(modules))
    report = grow_folder(source, tmp_path / "b", 4)
    assert "1_Pooling/config.json" in report.copied_files
    assert (tmp_path / "b" / "1_Pooling" / "config.json").is_file()
    assert len(report.copied_files) == 4


def broken(name, folder):
    if name == "not a folder":
        shutil.rmtree(folder)
    elif name == "no config":
        (folder / "config.json").unlink()
    elif name == "config not JSON":
        (folder / "config.json").write_text("{")
    elif name == "config a list":
        (folder / "config.json").write_text("[]")
    elif name == "remote code":
        edit_config(folder, auto_map={"AutoModel": "modeling.Mine"})
    elif name == "quantised":
        edit_config(folder, quantization_config={"bits": 4})
    elif name == "unknown architecture":
        edit_config(folder, architectures=["MyBert"])
    elif name == "not a model":
        edit_config(folder, architectures=["BertConfig"])
    elif name == "no architecture":
        edit_config(folder, architectures="drop")
    elif name == "config of nonsense":
        edit_config(folder, hidden_size="wide")
    elif name == "corrupt weights":
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
    elif name == "only pickle":
        (folder / "model.safetensors").unlink()
    elif name == "no weights":
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").unlink()
        (folder / "training_args.bin").unlink()
    elif name == "missing tensor":
        edit_weights(folder, lambda t: t.pop("bert.encoder.layer.1.output.dense.bias"))
    elif name == "left-over tensor":
        edit_weights(folder, lambda t: t.update({"mine.weight": torch.ones(2)}))
    elif name == "other shape":
        edit_weights(folder, lambda t: t.update({"cls.predictions.bias": torch.ones(5)}))
    elif name == "deeper than its config":
        edit_config(folder, num_hidden_layers=1)
    elif name == "integer weights":
        edit_weights(folder, lambda t: t.update({k: v.to(torch.int8) for k, v in t.items()}))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("not a folder", "is not a folder.*not looked up"),
        ("no config", "has no config.json"),
        ("config not JSON", "config.json cannot be read as JSON"),
        ("config a list", "no JSON object"),
        ("remote code", r"auto_map.*never runs code"),
        ("quantised", "weights are quantised"),
        ("unknown architecture", "'MyBert', which transformers .* does not have"),
        ("not a model", "'BertConfig', which transformers"),
        ("no architecture", r"names no architecture.*BertForMaskedLM"),
        ("config of nonsense", "does not fit BertForMaskedLM.*hidden_size"),
        ("corrupt weights", "model.safetensors is damaged"),
        ("only pickle", "only as pytorch_model.bin.*pickle"),
        ("no weights", "neither model.safetensors nor"),
        ("missing tensor", r"missing are bert.encoder.layer.1.output.dense.bias"),
        ("left-over tensor", r"without a place are mine.weight"),
        ("other shape", r"of another shape are cls.predictions.bias"),
        ("deeper than its config", r"without a place are bert.encoder.layer.1.*and 11 more"),
        ("integer weights", "growth needs plain weights"),
    ],
)
def test_every_fault_of_the_source_gets_its_sentence(name, sentence, source, tmp_path, caplog):
    broken(name, source)
    with caplog.at_level(logging.WARNING), pytest.raises(UserError, match=f"(?s){sentence}"):
        grow_folder(source, tmp_path / "b", 4)
    left = {path.name for path in tmp_path.iterdir()} - {"source"}
    assert left == set(), "something half-made was left behind"


def test_refusals_come_before_the_weights_are_read(source, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="there exists already"):
        grow_folder(source, tmp_path / "there", 4)
    # Were the weights read first, their fault would be reported.
    edit_weights(source, lambda t: t.pop("bert.encoder.layer.1.output.dense.bias"))
    with pytest.raises(UserError, match=r"cannot grow 2 layers to 5.*4 or 6"):
        grow_folder(source, tmp_path / "b", 5)
    with pytest.raises(UserError, match="no growth operator 'pile'"):
        grow_folder(source, tmp_path / "b", 4, "pile")


def test_an_encoder_without_head_keeps_its_class_and_has_a_pooler_only_if_it_had_one(
    make_model, tmp_path
):
    make_model("bert", 2).bert.save_pretrained(tmp_path / "a")
    BertModel(make_model("bert", 2).config).save_pretrained(tmp_path / "with")
    for name, poolers in (("a", 0), ("with", 2)):
        target = tmp_path / f"{name}-grown"
        assert grow_folder(tmp_path / name, target, 4).model_class == "BertModel"
        assert AutoModel.from_pretrained(target).config.num_hidden_layers == 4
        names = load_file(target / "model.safetensors")
        assert sum("pooler" in name for name in names) == poolers
