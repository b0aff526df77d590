"""Controls: words without an encoder, and a learning rate that each model may choose."""

import numpy as np
import pandas as pd
from finetuning_helpers import FAST, sentence

from stackbert.finetuning import train
from stackbert.finetuning.controls import control_scores
from stackbert.finetuning.data import official_tasks
from stackbert.finetuning.models import find_models
from stackbert.finetuning.study import finetune
from stackbert.finetuning.tasks import TASKS, Task, TaskData, settings_for


def control_of_rows(task, rows):
    columns = ["text", "text_pair", "label"][:: 1 if task.pair else 2]
    frame = pd.DataFrame(rows, columns=columns).assign(key=list(map(str, range(len(rows)))))
    found = control_scores(TaskData(task, {"train": frame, "dev": frame}))
    return {name: by["dev"][task.metrics[0]] for name, by in found.items()}


def test_a_bag_of_words_knows_words_and_not_their_order(glue):
    (data,) = official_tasks("sst-2", glue, None)
    assert control_scores(data)["bag of words"]["dev"]["accuracy"] > 0.9
    rows = [("bad good", 0), ("good bad", 1)] * 20
    assert control_of_rows(data.task, rows) == {"bag of words": 0.5}
    assert control_scores(TaskData(TASKS["squad"], {})) == {}


def test_word_overlap_knows_what_a_pair_has_in_common():
    rng = np.random.default_rng(0)
    pairs = [(sentence(n, 6).split(), int(rng.integers(6))) for n in range(200)]
    rows = [(" ".join(a), " ".join([*a[:k], *["x"] * (6 - k)]), k / 6) for a, k in pairs]
    task = Task("pairs", "pairs", "number", ("pearson",), text=("a",), pair=("b",))
    assert control_of_rows(task, rows)["word overlap"] > 0.99


def test_each_model_gets_the_rate_that_suits_its_weights(models, glue, monkeypatch):
    monkeypatch.setattr(train, "RATES", (1e-7, 3e-3, 0.9))
    (data,) = official_tasks("sst-2", glue, None)
    chosen = settings_for("sst-2", [*FAST, "lr=auto", "epochs=8"], ["sst-2"])
    told = []
    unscored = TaskData(data.task, {"train": data.splits["train"]})  # dev is not looked at
    (model,) = find_models(models[0], {})
    assert train.choose_rate(model, unscored, chosen, told.append) == 3e-3
    assert told[-1] == 1.0


def test_the_chosen_rate_is_in_the_table_and_is_not_chosen_again(models, glue, tmp_path):
    call = {"task": "sst-2", "data": glue, "out": tmp_path / "out", "control": True}
    call["settings"] = [*FAST, "lr=auto", "max_steps=2"]
    table = finetune(models[0], seeds=1, **call).table()
    assert list(table["model"]) == ["one", "untrained", "bag of words"]
    assert all(float(rate) in train.RATES for rate in table["lr"][:2])
    more = finetune(models[0], seeds=2, **call)
    assert more.runs.groupby("model")["learning_rate"].nunique().tolist() == [1, 1]
    assert list(more.table()["lr"]) == list(table["lr"])
