"""Opening an encoder with a new head: what is kept, drawn and refused; the head on means."""

import json

import pytest
import torch
from finetuning_helpers import FAST, save
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    BertForSequenceClassification,
    BertGenerationConfig,
    BertGenerationEncoder,
)

from stackbert.errors import UserError
from stackbert.finetuning import sentences
from stackbert.finetuning.data import official_tasks
from stackbert.finetuning.models import Opened, control_of, find_models, head_class, open_with_head
from stackbert.finetuning.pooled import open_pooled
from stackbert.finetuning.result import predictions_path
from stackbert.finetuning.study import finetune
from stackbert.finetuning.tasks import TASKS, Settings, settings_for
from tiny_encoders import KINDS, tiny_encoder

MNLI = TASKS["mnli"]


def find(path):
    return find_models([path])[0]


def weights(model, seed=0, task=MNLI):
    return open_with_head(model, task, Settings(), seed=seed).model.state_dict()


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_model_type_gets_every_head_and_keeps_its_encoder(kind, tmp_path):
    model = find(save(tmp_path / kind, tiny_encoder(kind)))
    stored = load_file(tmp_path / kind / "model.safetensors")
    for task, outputs in ((MNLI, 3), (TASKS["sts-b"], 1), (TASKS["squad"], 2)):
        opened, tokenizer = open_with_head(model, task, Settings(dropout=0.2), seed=1)
        ours = opened.state_dict()
        inside = [name for name in ours if name.startswith(opened.base_model_prefix)]
        kept = [name for name in inside if name in stored]
        assert len(kept) >= 14
        assert all(torch.equal(ours[name], stored[name]) for name in kept)
        assert all("pooler" in name for name in set(inside) - set(kept))
        assert opened.config.num_labels == outputs
        takes_types = "token_type_ids" in tokenizer.model_input_names
        assert takes_types == (kind in ("bert", "megatron-bert"))
        rates = [v for n, v in opened.config.to_dict().items() if n.endswith("dropout")]
        assert set(rates) <= {0.2}
    # The control: the same shapes, and none of the weights.
    ours = weights(control_of(model))
    assert {n: w.shape for n, w in ours.items()} == {n: w.shape for n, w in weights(model).items()}
    drawn = [n for n, w in ours.items() if n in stored and w.dim() == 2 and w.unique().numel() > 1]
    assert len(drawn) >= 10
    assert not any(torch.equal(ours[name], stored[name]) for name in drawn)


def test_a_controls_weights_are_others_for_every_seed_and_the_same_for_one_shape(models):
    one, other = (control_of(find(folder)) for folder in models[:2])
    assert one.fingerprint == other.fingerprint
    name = "bert.embeddings.word_embeddings.weight"
    drawn = [weights(one, seed)[name].numpy().tobytes() for seed in (0, 1, 0)]
    assert drawn[0] == drawn[2] != drawn[1]


def test_a_head_that_a_model_brings_is_replaced(tmp_path):
    config = tiny_encoder().config
    config.id2label = dict(enumerate(MNLI.labels[::-1]))
    model = BertForSequenceClassification(config)
    model.classifier.weight.data.fill_(3.0)
    turned = find(save(tmp_path / "turned", model))
    opened = open_with_head(turned, MNLI, Settings(), seed=0).model
    assert opened.classifier.weight.abs().max() < 0.2  # drawn anew
    assert opened.config.label2id["entailment"] == 0
    assert weights(turned, task=TASKS["rte"])["classifier.weight"].shape == (2, 32)


def test_models_and_tokenizers_that_cannot_be_fine_tuned_are_refused(tmp_path):
    sizes = {"vocab_size": 96, "hidden_size": 32, "num_attention_heads": 2}
    config = BertGenerationConfig(num_hidden_layers=1, **sizes)
    decoder = find(save(tmp_path / "decoder", BertGenerationEncoder(config)))
    with pytest.raises(UserError, match="has no head for MNLI"):
        head_class(decoder, MNLI, "cls")
    with pytest.raises(UserError, match="or ids beyond the model's 64"):
        weights(find(save(tmp_path / "small", tiny_encoder(vocab_size=64))))


MEAN = settings_for("rte", [*FAST, "pooling=mean"], ["rte"])


@pytest.mark.parametrize("kind", list(KINDS))
def test_it_sees_the_means_of_each_text_without_special_tokens(kind, glue, tmp_path):
    model = find_models([save(tmp_path / kind, tiny_encoder(kind))])[0]
    data = official_tasks("rte", glue)[0]
    opened, tokenizer = open_with_head(model, data.task, MEAN, seed=0)
    row = sentences.encode(data, "dev", Opened(opened, tokenizer), MEAN).rows[0]
    # [CLS], five words, [SEP], three words, [SEP]; then padding, which changes nothing.
    assert row.pop("spans").tolist() == [[1, 6], [7, 10]]
    inputs = {name: torch.tensor(values)[None].long() for name, values in row.items()}
    padded = {name: torch.nn.functional.pad(values, (0, 4)) for name, values in inputs.items()}
    padded["attention_mask"] = (torch.arange(15) < 11).long()[None]
    spans = torch.tensor([[[1, 6], [7, 10]]])
    with torch.no_grad():
        x_SH = AutoModel.from_pretrained(tmp_path / kind)(**inputs).last_hidden_state[0]
        u, v = x_SH[1:6].mean(0), x_SH[7:10].mean(0)
        expected = opened.head(torch.cat([u, v, (u - v).abs(), u * v]))
        for each in (inputs, padded):
            assert torch.allclose(opened(spans=spans, **each).logits[0], expected, atol=1e-5)


def test_it_learns_and_is_saved_so_that_it_opens_again(models, glue, tmp_path):
    call = {"task": "sst-2", "data": glue, "out": tmp_path / "out", "seeds": 1}
    chosen = [*FAST, "pooling=mean", "save=true", "epochs=8"]
    result = finetune(models[0], settings=chosen, control=True, **call)
    assert result.scores["score"][0] > 0.9
    path = predictions_path(call["out"], "sst-2", result.models[0], 0)
    folder = path.with_suffix("")
    model = find_models([folder])[0]
    opened = open_pooled(folder)
    data = official_tasks("sst-2", glue)[0]
    again, tokenizer = open_with_head(model, data.task, MEAN, seed=7)
    assert not torch.equal(again.head.weight, opened.head.weight)  # a new head, the same encoder
    for name, tensor in opened.base_model.state_dict().items():
        assert torch.equal(again.base_model.state_dict()[name], tensor)
    for row, line in zip(
        sentences.encode(data, "dev", Opened(opened, tokenizer), MEAN).rows,
        path.read_text("utf-8").splitlines(),
        strict=True,
    ):
        tensors = {name: torch.tensor(values)[None].long() for name, values in row.items()}
        assert json.loads(line)["prediction"] == str(int(opened(**tensors).logits.argmax()))


def test_questions_have_no_mean(models):
    with pytest.raises(UserError, match="pooling=mean is for sentences"):
        head_class(find_models(models[:1])[0], TASKS["squad"], "mean")
