"""Rebalancing brings weights to their initial scale, and logits stay as they were."""

import pytest
import torch
from tiny_models import build
from transformers import AutoModelForMaskedLM

from stackbert.errors import UserError
from stackbert.growth.folder import grow_folder
from stackbert.growth.rebalance import rebalance

READS = {
    "megatron-bert": "bert.encoder.layer.1.intermediate.dense.weight",
    "roberta-prelayernorm": "roberta_prelayernorm.encoder.layer.1.intermediate.dense.weight",
    "modernbert": "model.layers.1.mlp.Wi.weight",
}


def overgrown(kind, **fields):
    """Matrices and tables of up to four times the size, as training with Muon leaves them."""
    model = build(kind, 3, **fields).eval()
    with torch.no_grad():
        for place, (name, weight) in enumerate(model.named_parameters()):
            if weight.dim() == 2 and "head" not in name and "cls" not in name:
                weight.mul_(2 + place % 3)
    return model


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(6, 90).view(4, 21)).logits.float()


def size(model, name):
    return model.get_parameter(name).square().mean().sqrt().item()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", READS)
def test_weights_shrink_to_their_first_size_and_logits_stay(kind, tied):
    model = overgrown(kind, tie_word_embeddings=tied)
    before, sizes = logits(model), {name: size(model, name) for name, _ in model.named_parameters()}
    rebalance(model)
    assert (logits(model) - before).abs().max() < 1e-4 * before.abs().max()
    assert size(model, READS[kind]) == pytest.approx(model.config.initializer_range, rel=0.42)
    smaller = [name for name in sizes if size(model, name) < 0.6 * sizes[name]]
    assert sum(".1." in name for name in smaller) >= 4  # what reads and what writes


def test_post_norm_models_are_refused():
    with pytest.raises(UserError, match="type 'bert' cannot be rebalanced"):
        rebalance(build("bert", 2))


def test_a_folder_is_rebalanced_alone_or_before_it_grows(tmp_path):
    source = overgrown("megatron-bert").bfloat16()
    source.save_pretrained(tmp_path / "source")
    made = grow_folder(tmp_path / "source", tmp_path / "same", rebalance=True)
    grow_folder(tmp_path / "source", tmp_path / "grown", 6, rebalance=True)
    same, grown = (AutoModelForMaskedLM.from_pretrained(tmp_path / n) for n in ("same", "grown"))
    assert (len(made.bert.encoder.layer), len(grown.bert.encoder.layer)) == (3, 6)
    assert torch.equal(logits(same), logits(source))  # nothing is rounded, in bf16 neither
    name = READS["megatron-bert"]
    assert size(grown, name) == size(same, name) < size(source, name) / 2
    with pytest.raises(UserError, match="--depth"):
        grow_folder(tmp_path / "source", tmp_path / "neither")
