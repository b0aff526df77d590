"""One run: rows, the Trainer, predictions, runs that go wrong; controls, rates and settings."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from finetuning_helpers import FAST, save, sentence
from transformers import DataCollatorWithPadding

from stackbert.errors import UserError
from stackbert.finetuning import sentences, train
from stackbert.finetuning.controls import control_scores
from stackbert.finetuning.data import official_tasks
from stackbert.finetuning.models import find_models, open_with_head
from stackbert.finetuning.study import finetune
from stackbert.finetuning.tasks import TASKS, Settings, Task, TaskData, settings_for
from stackbert.finetuning.train import finetune_once, row_order
from tiny_encoders import tiny_encoder


def settings(*more):
    return settings_for("sst-2", [*FAST, *more], ["sst-2"])


def once(model, data, seed, *more, splits=("dev",), **fields):
    chosen = settings(*more).model_copy(update=fields)
    return finetune_once(model, data, chosen, seed, splits=splits)


def predicted(result):
    return [json.loads(line) for line in result.predictions.splitlines()]


@pytest.fixture(scope="module")
def model(models):
    return find_models(models[:1])[0]


@pytest.fixture(scope="module")
def sst2_data(glue):
    return official_tasks("sst-2", glue)[0]


def test_a_model_learns_a_task_and_predictions_are_of_their_own_rows(model, sst2_data):
    result = once(model, sst2_data, 1, "epochs=8", splits=("dev", "test"))
    assert result.scores == {"dev": {"accuracy": 1.0}, "test": {}}
    assert (result.steps, result.diverged, result.loss < 0.4) == (64, False, True)
    # What is predicted is sorted by length, so the outputs come in another order than the rows lie.
    frame = sst2_data.splits["dev"]
    rows, tested = predicted(result)[: len(frame)], predicted(result)[len(frame) :]
    for row, key, text in zip(rows, frame["key"], frame["text"], strict=True):
        right = "1" if text.startswith("good") else "0"
        assert row == {"split": "dev", "key": key, "prediction": right, "label": right}
    assert [row["prediction"] for row in tested] == ["1"] * 4
    assert all("label" not in row for row in tested)


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_run(model, sst2_data):
    state = torch.get_rng_state()
    first, again, other = (once(model, sst2_data, seed, "max_steps=10") for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert (again.loss, again.predictions) == (first.loss, first.predictions)
    assert other.loss != first.loss


def test_rows_come_in_an_order_that_no_model_decides(model, sst2_data, tmp_path, monkeypatch):
    seen = []

    class Noted(DataCollatorWithPadding):
        def __call__(self, rows):
            seen.append([row["input_ids"].tolist() for row in rows])
            return super().__call__(rows)

    monkeypatch.setattr(train, "DataCollatorWithPadding", Noted)
    once(model, sst2_data, 4, "epochs=2", splits=())
    first, seen[:] = list(seen), []
    deeper = find_models([save(tmp_path / "deeper", tiny_encoder(depth=3))])[0]
    once(deeper, sst2_data, 4, "epochs=2", splits=())
    assert seen == first
    opened = open_with_head(model, sst2_data.task, Settings(), seed=0)
    rows = sentences.encode(sst2_data, "train", opened, settings()).rows
    order = row_order([len(row["input_ids"]) for row in rows], settings("epochs=2"), 4)
    came = [ids for batch in first for ids in batch]
    assert came == [rows[place]["input_ids"].tolist() for place in order]


def test_every_row_comes_once_a_pass_and_like_lengths_share_a_batch():
    lengths = np.random.default_rng(0).integers(5, 100, size=1000).tolist()
    chosen = settings("batch=16", "epochs=2.5")
    order, again, other = (row_order(lengths, chosen, seed) for seed in (1, 1, 2))
    assert order.tolist() == again.tolist() != other.tolist()
    counts = np.bincount(order, minlength=1000)
    assert (len(order), counts.min(), counts.max()) == (2500, 2, 3)
    batches = [[lengths[place] for place in order[at : at + 16]] for at in range(0, 2496, 16)]
    assert np.mean([max(batch) - min(batch) for batch in batches]) < 15
    # A group's batches do not go from the longest to the shortest.
    means = [np.mean(batch) for batch in batches]
    assert 0.4 < np.mean([b > a for a, b in itertools.pairwise(means)]) < 0.6
    assert len(row_order([7] * 9, settings("max_steps=5"), 0)) == 40


def test_a_run_that_diverges_ends_at_once_and_says_so(model, sst2_data):
    result = once(model, sst2_data, 0, "epochs=8", learning_rate=1e30, max_grad_norm=0.0)
    assert (result.diverged, result.scores, result.steps < 64) == (True, {}, True)
    # A loss that stays finite does not hide outputs that are not.
    result = once(model, sst2_data, 0, "max_steps=1", learning_rate=1e34, warmup_fraction=0.0)
    assert (math.isfinite(result.loss), result.diverged, result.scores) == (True, True, {})


def test_ones_own_numbers_are_brought_to_a_scale_that_can_be_learned_but_not_stsbs(model):
    words = ["good" if n % 2 else "bad" for n in range(48)]
    texts = [f"{word} {sentence(n, 3)}" for n, word in enumerate(words)]
    labels = [9000.0 + 1000 * (n % 2) for n in range(48)]
    frame = pd.DataFrame({"key": list(map(str, range(48))), "text": texts, "label": labels})
    task = Task("prices", "prices", "number", ("pearson", "spearman"))
    result = once(model, TaskData(task, {"train": frame, "dev": frame[:12]}), 0, "epochs=8")
    assert result.scores["dev"]["pearson"] > 0.9
    said = [row["prediction"] for row in predicted(result)]
    assert said == pytest.approx(labels[:12], abs=500)
    stsb = TaskData(TASKS["sts-b"], {"train": frame.assign(label=2.5)})
    opened = open_with_head(model, task, Settings(), seed=0)
    assert sentences.encode(stsb, "train", opened, settings()).rows[0]["labels"] == 2.5


def test_metrics_are_those_of_cases_worked_out_by_hand():
    labels, said = np.array([1, 1, 1, 0, 0, 0, 0, 1]), np.array([1, 1, 0, 0, 0, 1, 0, 1])
    # True positives 3, false ones 1; true negatives 3, false ones 1.
    found = sentences.score(("accuracy", "f1", "f1_macro", "matthews"), labels, said)
    assert found == pytest.approx({"accuracy": 0.75, "f1": 0.75, "f1_macro": 0.75, "matthews": 0.5})
    # Deviations -1.5 -0.5 0.5 1.5 and -4 -3 -1 8: products 6 + 1.5 - 0.5 + 12 = 19.
    numbers = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 2.0, 4.0, 13.0])
    found = sentences.score(("pearson", "spearman"), *numbers)
    assert found == pytest.approx({"pearson": 19 / math.sqrt(5 * 90), "spearman": 1.0})
    # Where nothing varies there is nothing to correlate.
    for name in ("matthews", "pearson", "spearman"):
        assert sentences.score((name,), labels, np.ones(8)) == {name: 0.0}


def control_of_rows(task, rows):
    columns = ["text", "text_pair", "label"][:: 1 if task.pair else 2]
    frame = pd.DataFrame(rows, columns=columns).assign(key=list(map(str, range(len(rows)))))
    found = control_scores(TaskData(task, {"train": frame, "dev": frame}))
    return {name: by["dev"][task.metrics[0]] for name, by in found.items()}


def test_a_bag_of_words_knows_words_and_not_their_order(glue):
    (data,) = official_tasks("sst-2", glue)
    assert control_scores(data)["bag of words"]["dev"]["accuracy"] > 0.9
    rows = [("bad good", 0), ("good bad", 1)] * 20
    assert control_of_rows(data.task, rows) == {"guessing": 0.5, "bag of words": 0.5}


def test_word_overlap_knows_what_a_pair_has_in_common():
    rng = np.random.default_rng(0)
    pairs = [(sentence(n, 6).split(), int(rng.integers(6))) for n in range(200)]
    rows = [(" ".join(a), " ".join([*a[:k], *["x"] * (6 - k)]), k / 6) for a, k in pairs]
    task = Task("pairs", "pairs", "number", ("pearson",), text=("a",), pair=("b",))
    assert control_of_rows(task, rows)["word overlap"] > 0.99


def test_each_model_gets_the_rate_that_suits_its_weights(models, glue, monkeypatch):
    monkeypatch.setattr(train, "RATES", (1e-7, 3e-3, 0.9))
    (data,) = official_tasks("sst-2", glue)
    chosen = settings_for("sst-2", [*FAST, "lr=auto", "epochs=8"], ["sst-2"])
    told = []
    unscored = TaskData(data.task, {"train": data.splits["train"]})  # dev is not looked at
    (model,) = find_models(models[:1])
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


def test_the_defaults_are_the_papers_and_berts():
    usual = (5e-5, 16, 3, 128)
    other = {"sts-b": (5e-5, 32, 4, 128), "qqp": (5e-5, 32, 4, 128), "qnli": (5e-5, 32, 3, 128)}
    other |= {"rte": (3e-5, 16, 4, 128), "wnli": (3e-5, 16, 4, 128)}
    other |= {"squad": (5e-5, 32, 3, 384), "squad-v2": (5e-5, 48, 2, 384)}
    for task in (*TASKS, "reviews"):
        found = settings_for(task, (), ())
        rate, batch = found.learning_rate, found.batch
        assert (rate, batch, found.epochs, found.max_length) == other.get(task, usual)


def test_a_field_is_changed_for_all_tasks_or_for_one():
    overrides = ["lr=2e-5", "rte.epochs=10", "dropout=null"]
    rte, mrpc = (settings_for(task, overrides, ["rte", "mrpc"]) for task in ("rte", "mrpc"))
    assert (rte.learning_rate, rte.epochs, rte.dropout) == (2e-5, 10, None)
    assert (mrpc.learning_rate, mrpc.epochs) == (2e-5, 3)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("epoch=3", "there is no field 'epoch' (did you mean 'epochs'?)"),
        ("lr=0", "learning_rate"),
        ("batch", "write it as field=value"),
        ("mnli.epochs=3", "a task of rte, mrpc"),
    ],
)
def test_a_wrong_change_is_refused_in_a_sentence(override, said):
    with pytest.raises(UserError, match=r"--set") as caught:
        settings_for("rte", [override], ["rte", "mrpc"])
    assert said in str(caught.value)
