"""One run: rows, the Trainer, predictions in the order of the data, and runs that go wrong."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from finetuning_helpers import FAST, build, quick_collection, save, sentence, sst2
from transformers import Trainer

from stackbert.finetuning.encoding import SentenceWork, collate
from stackbert.finetuning.examples import Example, Split
from stackbert.finetuning.glue_files import read_glue
from stackbert.finetuning.heads import find_source, open_model
from stackbert.finetuning.order import row_order
from stackbert.finetuning.settings import settings_for
from stackbert.finetuning.tasks import GLUE, Task
from stackbert.finetuning.training import finetune_once, steps_of
from stackbert.finetuning.work import place_back
from tiny_encoders import KINDS

quick = pytest.fixture(scope="module", autouse=True)(quick_collection)
SETTINGS = settings_for("sst-2", [*FAST, "epochs=8"])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return find_source(save(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return SentenceWork(GLUE["sst-2"], read_glue(GLUE["sst-2"], sst2(tmp_path_factory.mktemp("g"))))


@pytest.fixture(scope="module")
def trained(source, work):
    return finetune_once(source, work, SETTINGS, 1, splits=("dev", "test"))


def split(name, *examples):
    return Split(name, f"{name}.tsv", tuple(examples))


def test_a_model_learns_a_task_and_says_what_it_cost(trained):
    assert trained.judged["dev"].scores["accuracy"] == 1.0
    assert trained.steps == 64
    assert trained.losses[-1] < 0.4 < trained.losses[0]
    assert trained.seconds > 0
    assert not trained.diverged


def test_predictions_are_of_their_own_rows_whatever_the_order_of_work(trained, work):
    # What is predicted is sorted by length, so the outputs come in another order than the rows lie.
    for row, example in zip(
        trained.judged["dev"].predictions, work.data["dev"].examples, strict=True
    ):
        assert row["key"] == example.key
        assert row["prediction"] == ("1" if example.first.startswith("good") else "0")
        assert row["label"] == row["prediction"]
    assert [row["prediction"] for row in trained.judged["test"].predictions] == ["1"] * 4


def test_a_test_split_has_no_labels_and_no_score(trained, work):
    assert trained.judged["test"].scores == {}
    assert all("label" not in row for row in trained.judged["test"].predictions)
    assert "test" not in work.guess


def test_the_same_seed_gives_the_same_run_and_another_seed_another(source, work):
    settings = settings_for("sst-2", [*FAST, "max_steps=10"])
    first, again, other = (finetune_once(source, work, settings, seed) for seed in (1, 1, 2))
    assert again.losses == first.losses
    assert again.judged == first.judged
    assert other.losses != first.losses


def test_random_states_are_left_as_they_were(source, work):
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    finetune_once(source, work, settings_for("sst-2", [*FAST, "max_steps=1"]), 0)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert before == after


def test_rows_come_in_an_order_that_no_model_decides(source, work, tmp_path, monkeypatch):
    seen = []

    def noted(rows, padding):
        seen.append([row["input_ids"].tolist() for row in rows if "labels" in row])
        return collate(rows, padding)

    monkeypatch.setattr("stackbert.finetuning.training.collate", noted)
    settings = settings_for("sst-2", [*FAST, "epochs=2"])
    finetune_once(source, work, settings, 4, splits=())
    deeper = find_source(save(tmp_path / "deeper", build(num_hidden_layers=3)))
    first, seen = seen, []
    finetune_once(deeper, work, settings, 4, splits=())
    assert seen == first
    assert len(first) == 16
    opened = open_model(source, work.head, seed=0, dropout=None)
    rows = [row["input_ids"].tolist() for row in work.encode(opened, settings, ()).train]
    assert sorted(row for batch in first for row in batch) == sorted(rows * 2)


@pytest.mark.parametrize("group_by_length", [True, False])
def test_every_row_comes_once_a_pass_and_like_lengths_share_a_batch(group_by_length):
    lengths = np.random.default_rng(0).integers(5, 100, size=1000).tolist()
    order, again, other = (
        row_order(lengths, rows=2500, batch=16, seed=seed, group_by_length=group_by_length)
        for seed in (1, 1, 2)
    )
    assert order.tolist() == again.tolist() != other.tolist()
    counts = np.bincount(order, minlength=1000)
    assert len(order) == 2500
    assert (counts.min(), counts.max()) == (2, 3)
    batches = [[lengths[place] for place in order[at : at + 16]] for at in range(0, 2496, 16)]
    spread = np.mean([max(batch) - min(batch) for batch in batches])
    assert (spread < 15) == group_by_length
    # A group's batches do not go from the longest to the shortest.
    means = [np.mean(batch) for batch in batches]
    rising = np.mean([b > a for a, b in itertools.pairwise(means)])
    assert 0.4 < rising < 0.6


def test_rows_encoded_beforehand_give_the_same_run(source, work):
    settings = settings_for("sst-2", [*FAST, "max_steps=3"])
    opened = open_model(source, work.head, seed=9, dropout=None)
    encoded = work.encode(opened, settings, ("dev",))
    assert (
        finetune_once(source, work, settings, 0, encoded=encoded).losses
        == finetune_once(source, work, settings, 0).losses
    )


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_model_type_trains_and_predicts(kind, work, tmp_path):
    source = find_source(save(tmp_path / "model", build(kind)))
    result = finetune_once(source, work, settings_for("sst-2", [*FAST, "max_steps=2"]), 0)
    assert len(result.judged["dev"].predictions) == 24
    assert all(np.isfinite(result.losses))


def test_bf16_changes_the_loss_by_rounding_alone(source, work):
    fp32, bf16 = (
        finetune_once(source, work, settings_for("sst-2", [*FAST, "max_steps=2", precision]), 0)
        for precision in ("precision=fp32", "precision=bf16")
    )
    assert bf16.losses != fp32.losses
    assert bf16.losses == pytest.approx(fp32.losses, rel=0.05)


def test_the_learning_rate_warms_up_and_falls_to_zero(source, work, monkeypatch):
    rates = []
    log = Trainer.log

    def noted(self, logs, *args, **kwargs):
        if "learning_rate" in logs:
            rates.append(logs["learning_rate"])
        return log(self, logs, *args, **kwargs)

    monkeypatch.setattr(Trainer, "log", noted)
    settings = settings_for("sst-2", [*FAST, "max_steps=20", "warmup_fraction=0.2"])
    finetune_once(source, work, settings, 0)
    assert len(rates) == 20
    assert max(rates) == pytest.approx(0.003)
    assert rates.index(max(rates)) in (3, 4)
    assert rates[-1] <= 0.003 / 16
    assert all(a > b for a, b in itertools.pairwise(rates[4:]))


def test_a_run_that_diverges_ends_at_once_and_says_so(source, work):
    settings = settings_for("sst-2", [*FAST, "epochs=8"])
    endless = settings.model_copy(update={"learning_rate": 1e30, "max_grad_norm": 0.0})
    result = finetune_once(source, work, endless, 0)
    assert result.diverged
    assert result.judged == {}
    assert result.steps < 64


def test_a_loss_that_stays_finite_does_not_hide_outputs_that_are_not(source, work):
    settings = settings_for("sst-2", [*FAST, "max_steps=1", "warmup_fraction=0"])
    result = finetune_once(source, work, settings.model_copy(update={"learning_rate": 1e34}), 0)
    assert all(np.isfinite(result.losses))
    assert result.diverged
    assert result.judged == {}


def test_cut_rows_are_counted(source, work):
    settings = settings_for("sst-2", [*FAST, "max_steps=1", "max_length=8"])
    result = finetune_once(source, work, settings, 0)
    long = sum(len(e.first.split()) > 6 for e in work.data["dev"].examples)
    assert f"{long} of 24 in dev" in " ".join(result.notes)


def test_numbers_of_ones_own_are_brought_to_a_scale_that_can_be_learned(source):
    task = Task("prices", "prices", "regression", (), False, ("pearson", "spearman"))
    rows = [
        Example(
            str(n), f"{'good' if n % 2 else 'bad'} {sentence(n, 3)}", None, 9000.0 + 1000 * (n % 2)
        )
        for n in range(48)
    ]
    work = SentenceWork(task, {"train": split("train", *rows), "dev": split("dev", *rows[:12])})
    settings = settings_for("prices", [*FAST, "epochs=8"])
    judged = finetune_once(source, work, settings, 0).judged["dev"]
    assert judged.scores["pearson"] > 0.9
    found = [row["prediction"] for row in judged.predictions]
    assert found == pytest.approx([row["label"] for row in judged.predictions], abs=500)


def test_stsb_is_predicted_on_its_own_scale():
    rows = [Example("0", "w1", "w2", 5.0), Example("1", "w1", "w3", 0.0)]
    work = SentenceWork(GLUE["sts-b"], {"train": split("train", *rows), "dev": split("dev", *rows)})
    assert work.head.kind == "number"
    assert work.guess == {"dev": {"pearson": 0.0, "spearman": 0.0}}


def test_pairs_have_token_types_only_where_the_model_has_them(tmp_path):
    rows = [Example("0", "w1 w2", "w3", 0), Example("1", "w4", "w5 w6", 1)]
    work = SentenceWork(GLUE["rte"], {"train": split("train", *rows), "dev": split("dev", *rows)})
    for kind, expected in (("bert", [0, 0, 0, 0, 1, 1]), ("roberta", None)):
        source = find_source(save(tmp_path / kind, build(kind)))
        opened = open_model(source, work.head, seed=0, dropout=None)
        row = work.encode(opened, SETTINGS, ("dev",)).train[0]
        assert row["input_ids"].tolist()[0] == 2
        assert ("token_type_ids" in row) == (expected is not None)
        if expected is not None:
            assert row["token_type_ids"].tolist() == expected


def test_a_batch_is_padded_and_masked():
    rows = [
        {"input_ids": np.array([2, 7, 3]), "token_type_ids": np.array([0, 0, 1]), "labels": 1},
        {"input_ids": np.array([2, 3]), "token_type_ids": np.array([0, 0]), "labels": 0},
    ]
    batch = collate(rows, padding=9)
    assert batch["input_ids"].tolist() == [[2, 7, 3], [2, 3, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 1], [0, 0, 0]]
    assert batch["labels"].dtype == torch.int64
    rows[0]["labels"], rows[1]["labels"] = 0.5, 1.0
    assert collate(rows, padding=9)["labels"].dtype == torch.float32


def test_what_guessing_scores_is_of_the_split_itself(work):
    examples = [replace(e, label=int(n < 18)) for n, e in enumerate(work.data["dev"].examples)]
    uneven = SentenceWork(work.task, {**work.data, "dev": split("dev", *examples)})
    assert uneven.guess == {"dev": {"accuracy": 0.75}}


def test_content_decides_a_fingerprint_and_not_the_file(work):
    moved = {name: replace(s, source="elsewhere") for name, s in work.data.items()}
    assert SentenceWork(work.task, moved).fingerprints == work.fingerprints
    first = work.data["dev"].examples[0]
    other = replace(work.data["dev"], examples=(replace(first, first="w1"),))
    changed = SentenceWork(work.task, {**work.data, "dev": other}).fingerprints
    assert changed["dev"] != work.fingerprints["dev"]
    assert changed["train"] == work.fingerprints["train"]


def test_steps_follow_from_rows_batch_and_epochs():
    settings = settings_for("rte", ["batch=16", "epochs=3"])
    assert steps_of(2490, settings) == 467  # 7470 rows, the last step of 14
    assert steps_of(9, settings_for("rte", ["max_steps=5"])) == 5
    assert steps_of(1, settings_for("rte", ["epochs=0.1"])) == 1


def test_rows_are_put_back_where_they_were():
    assert place_back(np.array([[1], [2], [3]]), [2, 0, 1]).tolist() == [[2], [3], [1]]
