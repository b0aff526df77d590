"""benchmarks/frozen.py: what a model's layers know of a task before any fine-tuning."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from stackbert.finetuning.gather import gather
from stackbert.finetuning.heads import find_source, open_model
from stackbert.finetuning.settings import settings_for

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def frozen(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return __import__("frozen")


def test_features_are_means_over_a_rows_own_tokens(frozen, models, glue, monkeypatch):
    (work,) = gather("sst-2", glue).works
    opened = open_model(find_source(models[0]), work.head, seed=0, dropout=None)
    rows = list(work.encode(opened, settings_for("sst-2", ()), ("dev",)).splits["dev"])
    assert len({len(row["input_ids"]) for row in rows}) > 1, "padding would not show"
    together, lengths = frozen.layers_of(opened, rows)
    monkeypatch.setattr(frozen, "BATCH", 1)
    alone, _ = frozen.layers_of(opened, rows)
    config = opened.model.config
    assert together.shape == (config.num_hidden_layers + 1, len(rows), config.hidden_size)
    np.testing.assert_allclose(together, alone, atol=1e-5)
    table = opened.model.base_model.embeddings(
        input_ids=torch.from_numpy(rows[0]["input_ids"])[None]
    )
    np.testing.assert_allclose(together[0, 0], table[0].mean(0).detach().numpy(), atol=1e-5)
    assert all(length > 0 for length in lengths)


def test_a_word_that_decides_the_label_is_known_to_frozen_embeddings(
    frozen, models, glue, tmp_path, monkeypatch
):
    words = ["frozen.py", str(models[0]), "--data", str(glue), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    frozen.main()
    report = json.loads((tmp_path / "frozen-sst-2.json").read_text("utf-8"))
    ours, random = report["results"]
    assert (ours["model"], random["model"]) == ("one", "random")
    assert ours["scores"][0] > 0.9
    assert len(random["scores"]) == len(ours["scores"]) == len(ours["lengths"])
    assert str(tmp_path) not in (tmp_path / "frozen-sst-2.md").read_text("utf-8")
