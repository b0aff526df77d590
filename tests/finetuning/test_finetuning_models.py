"""Opening an encoder with a new head: what is kept, what is drawn, what is refused."""

import pytest
import torch
from finetuning_helpers import make_tokenizer, save
from safetensors.torch import load_file, save_file
from transformers import (
    BertForSequenceClassification,
    BertGenerationConfig,
    BertGenerationEncoder,
    PreTrainedTokenizerFast,
)

from stackbert.errors import UserError
from stackbert.finetuning.models import control_of, find_models, head_class, open_with_head
from stackbert.finetuning.tasks import TASKS, Settings
from tiny_encoders import KINDS, tiny_encoder

MNLI = TASKS["mnli"]


def find(path):
    return find_models(path, {})[0]


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
    ours = weights(control_of([model])[0])
    assert {n: w.shape for n, w in ours.items()} == {n: w.shape for n, w in weights(model).items()}
    drawn = [n for n, w in ours.items() if n in stored and w.dim() == 2 and w.unique().numel() > 1]
    assert len(drawn) >= 10
    assert not any(torch.equal(ours[name], stored[name]) for name in drawn)


def test_new_weights_follow_from_the_seed_and_leave_torchs_own_randomness(models):
    model, before = find(models[0]), torch.get_rng_state()
    first, same, other = (weights(model, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], same[name]) for name in first)
    changed = {name for name in first if not torch.equal(first[name], other[name])}
    assert changed == {"classifier.weight", "bert.pooler.dense.weight"}


def test_a_controls_weights_are_others_for_every_seed_and_member(models):
    one, two = control_of(find_models((), {"both": models[:2]}))
    # Of two models of one shape the control is the same, run by run.
    assert one.fingerprint == control_of([find(models[2])])[0].fingerprint
    name = "bert.embeddings.word_embeddings.weight"
    runs = ((one, 0), (one, 1), (two, 0), (two, 1), (one, 0))
    drawn = {weights(model, seed)[name].numpy().tobytes() for model, seed in runs}
    assert len(drawn) == 4


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


def test_weights_and_tokenizer_make_a_model_another_one(tmp_path):
    folder = save(tmp_path / "model")
    first = find(folder).fingerprint
    (folder / "optimizer.safetensors").write_bytes(b"moments")
    assert find(folder).fingerprint == first
    tiny_encoder(seed=1).save_pretrained(folder)
    second = find(folder).fingerprint
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 9}')
    assert len({first, second, find(folder).fingerprint}) == 3


def test_an_encoder_tensor_that_is_left_over_is_named(tmp_path):
    tensors = load_file(save(tmp_path / "model") / "model.safetensors")
    tensors["bert.encoder.layer.2.output.dense.weight"] = torch.zeros(2)
    save_file(tensors, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"does not fit.*layer\.2\.output\.dense\.weight"):
        weights(find(tmp_path / "model"))


def test_models_and_tokenizers_that_cannot_be_fine_tuned_are_refused(tmp_path):
    config = BertGenerationConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    decoder = find(save(tmp_path / "decoder", BertGenerationEncoder(config)))
    with pytest.raises(UserError, match="has no head for sentences"):
        head_class(decoder, MNLI, "cls")
    with pytest.raises(UserError, match="has ids beyond the model's 64"):
        weights(find(save(tmp_path / "small", tiny_encoder(vocab_size=64))))
    bare = PreTrainedTokenizerFast(tokenizer_object=make_tokenizer()._tokenizer)
    with pytest.raises(UserError, match="no padding token"):
        weights(find(save(tmp_path / "bare", tokenizer=bare)))
