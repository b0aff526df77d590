"""Checkpoint folders in, checkpoint folders out."""

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import build
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, BertForPreTraining, BertModel

from stackbert.errors import UserError
from stackbert.growth.folder import grow_folder
from stackbert.growth.grow import grow
from tiny_encoders import edit_config, edit_weights


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    build("bert", 2).save_pretrained(folder)
    for name in ("vocab.txt", "tokenizer.json", "README.md", "state.json", ".gitattributes"):
        (folder / name).write_text("{}")
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.safetensors", "mine.py"):
        (folder / name).write_bytes(b"pickle")
    for name in ("checkpoint-5", "1_Pooling"):  # the second is of sentence-transformers
        (folder / name).mkdir()
    return folder


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_a_folder_grows_into_one_that_transformers_opens(source, tmp_path):
    target = tmp_path / "deep" / "grown"
    grown = grow_folder(source, str(target), 6)
    model, info = AutoModelForMaskedLM.from_pretrained(target, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(model) is type(grown)
    expected = grow(AutoModelForMaskedLM.from_pretrained(source), 6).state_dict()
    assert all(torch.equal(t, expected[name]) for name, t in model.state_dict().items())
    files = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "vocab.txt"}
    assert {path.name for path in target.iterdir()} == {*files, "1_Pooling"}
    assert len({(target / name).stat().st_mode for name in files}) == 1, "some less readable"
    assert [path.name for path in target.parent.iterdir()] == ["grown"]
    said = "A `BertForMaskedLM` of 6 layers, made by StackBERT from `source` by stack"
    assert said in (target / "README.md").read_text()


def test_decoders_grow_too(tmp_path, logits):
    model = build("gpt2", 2)
    model.generation_config.max_new_tokens = 77
    model.save_pretrained(tmp_path / "a")
    grow_folder(tmp_path / "a", tmp_path / "b", 5, "identity")
    grown = AutoModelForCausalLM.from_pretrained(tmp_path / "b")
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


def test_weights_keep_the_dtype_they_are_stored_in_whatever_the_config_says(tmp_path):
    build("modernbert", 3).to(torch.bfloat16).save_pretrained(tmp_path / "a")
    edit_config(tmp_path / "a", dtype="float32")
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
    assert type(grow_folder(source, tmp_path / "b", 4)) is BertForPreTraining
    old, new = weights(source), weights(tmp_path / "b")
    assert torch.equal(new["cls.seq_relationship.weight"], old["cls.seq_relationship.weight"])
    norm = "bert.encoder.layer.{}.output.LayerNorm.{}"
    assert torch.equal(new[norm.format(3, "weight")], old[norm.format(1, "gamma")])


def test_an_encoder_has_a_pooler_only_if_it_had_one(tmp_path):
    build("bert", 2).bert.save_pretrained(tmp_path / "without")
    BertModel(build("bert", 2).config).save_pretrained(tmp_path / "with")
    for name, poolers in (("without", 0), ("with", 2)):
        target = tmp_path / f"{name}-grown"
        assert type(grow_folder(tmp_path / name, target, 4)) is BertModel
        assert sum("pooler" in tensor for tensor in weights(target)) == poolers


def test_a_refusal_leaves_nothing_behind(source, tmp_path):
    edit_weights(source, lambda tensors: tensors.update(mine=torch.ones(2)))
    with pytest.raises(UserError, match="no place for mine"):
        grow_folder(source, tmp_path / "b", 4)
    edit_weights(source, lambda tensors: tensors.pop("mine"))
    with pytest.raises(UserError, match=r"cannot grow 2 layers to 5.*4 or 6"):
        grow_folder(source, tmp_path / "b", 5)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    with pytest.raises(UserError, match="source exists already"):
        grow_folder(source, source, 4)
