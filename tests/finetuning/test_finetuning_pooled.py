"""The head on means: what it sees, that it learns, and that a saved one opens again."""

import json

import pytest
import torch
from finetuning_helpers import FAST, save
from transformers import AutoModel

from stackbert.errors import UserError
from stackbert.finetuning import sentences
from stackbert.finetuning.data import official_tasks
from stackbert.finetuning.models import Opened, find_models, head_class, open_with_head
from stackbert.finetuning.pooled import open_pooled
from stackbert.finetuning.result import predictions_path
from stackbert.finetuning.study import finetune
from stackbert.finetuning.tasks import TASKS, settings_for
from tiny_encoders import KINDS, tiny_encoder

MEAN = settings_for("rte", [*FAST, "pooling=mean"], ["rte"])


@pytest.mark.parametrize("kind", list(KINDS))
def test_it_sees_the_means_of_each_text_without_special_tokens(kind, glue, tmp_path):
    model = find_models(save(tmp_path / kind, tiny_encoder(kind)), {})[0]
    data = official_tasks("rte", glue, None)[0]
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
    assert "open_pooled" in (folder / "README.md").read_text("utf-8")
    model = find_models(folder, {})[0]
    opened = open_pooled(folder)
    data = official_tasks("sst-2", glue, None)[0]
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
        head_class(find_models(models[0], {})[0], TASKS["squad"], "mean")
