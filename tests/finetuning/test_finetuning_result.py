"""What a study says: hand-made scores, numbers worked out on paper."""

import itertools

import pandas as pd
import pytest

from stackbert.finetuning.models import Model
from stackbert.finetuning.result import COLUMNS, FinetuneResult, TaskRecord
from stackbert.finetuning.tasks import TASKS, Settings

GUESS = {"mrpc": (0.8, 0.68), "cola": (0.0,), "wnli": (0.56,), "mnli": (0.35,)}


def study(scores, words=None):
    """`scores[task][model]` are scores by seed, None of a run that diverged.

    A score is for every metric of every split. The model "random" is the untrained control.
    """
    rows, models, tasks = [], {}, {}
    for task, by_model in scores.items():
        splits = ("dev", "dev_mismatched") if task == "mnli" else ("dev",)
        guess = dict(zip(TASKS[task].metrics, GUESS[task], strict=True))
        for name, own in by_model.items():
            about = {"folder": name, "fingerprint": name, "untrained": name == "random"}
            models[name] = Model(name=name, **about)
            for (seed, score), split, metric in itertools.product(enumerate(own), splits, guess):
                shown = guess[metric] if score is None else score
                costs = (7, 0.1, 10.0, score is None, False, 5e-5)
                rows.append((task, name, seed, split, metric, shown, *costs))
        tasks[task] = TaskRecord(
            title=TASKS[task].title,
            metrics=TASKS[task].metrics,
            settings=Settings(precision="fp32"),
            sizes={"train": 100, "dev": 50},
            fingerprints={},
            seeds=max(row[2] for row in rows) + 1,
            notes=(f"A note on {task}.",),
            controls={"guessing": dict.fromkeys(splits, guess)}
            | ({"bag of words": {"dev": words[task]}} if words else {}),
        )
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return FinetuneResult(machine={}, models=tuple(models.values()), tasks=tasks, scores=frame)


def test_a_score_is_mean_and_interval_over_seeds():
    result = study({"mrpc": {"a": [0.86, 0.88, 0.93]}})
    row = result.table().loc[0]
    # Student's t at two degrees of freedom is 4.303; the deviation of these three is 3.6056.
    assert (row["task"], row["metric"], row["model"]) == ("MRPC", "f1", "a")
    assert row["mean"] == pytest.approx(89.0)
    assert row["high"] - row["mean"] == pytest.approx(4.3027 * 3.6056 / 3**0.5, rel=1e-4)
    assert (row["runs"], row["failed"], row["guess"]) == (3, 0, 80.0)
    assert list(result.table(headline=False)["metric"]) == ["accuracy"]


def test_a_difference_is_paired_by_seed():
    # Seeds differ by far more than the models do; paired, the difference is clear.
    result = study({"cola": {"a": [0.82, 0.86, 0.90], "b": [0.83, 0.872, 0.911]}})
    row = result.table().loc[1]
    assert row["difference"] == pytest.approx(1.1)
    assert (round(row["difference_low"], 2), round(row["difference_high"], 2)) == (0.85, 1.35)
    assert (row["pairs"], row["outcome"]) == (3, "better")
    assert result.table(base="b")["outcome"][0] == "worse"
    said = "better on CoLA (+1.1 points of matthews, 95 % interval +0.9 to +1.3)."
    assert result.verdict()[0] == f"b against a: {said}"
    shown = result.summary().splitlines()[-1].split()
    assert shown[:6] == ["CoLA", "matthews", "b", "87.1", "77.0", "97.2"]
    assert shown[-4:] == ["1.1", "0.9", "1.3", "better"]


@pytest.mark.parametrize(
    ("a", "b", "outcome", "said"),
    [
        ([0.87, 0.86, 0.88], [0.86, 0.88, 0.87], "no difference", "no difference on MRPC"),
        ([0.87, 0.86, 0.88], [0.99], "one seed", "says nothing of noise"),
        ([0.5, 0.6, 0.64], [0.9, 0.6, 0.5], "no information", "cannot tell b and a apart"),
    ],
)
def test_what_may_be_noise_is_not_called_a_difference(a, b, outcome, said):
    result = study({"wnli" if max(a) < 0.7 else "mrpc": {"a": a, "b": b}})
    assert result.table()["outcome"][1] == outcome
    assert said in result.verdict()[0]
    assert ("No information: WNLI." in result.verdict()[1]) == (outcome == "no information")


def test_failed_runs_are_counted_and_stay_in_the_mean():
    # One at guessing, one below, one that diverged and so counts as guessing.
    result = study({"cola": {"a": [0.3, 0.0, -0.1, None]}})
    row = result.table().loc[0]
    assert (row["mean"], row["runs"], row["failed"]) == (pytest.approx(5.0), 4, 3)
    assert "ended no better than guessing: CoLA 3. They count in every mean." in result.verdict()[2]


def test_what_is_unfinished_and_every_note_is_said():
    said = study({"mrpc": {"a": [0.88, 0.89], "b": [0.88, 0.87, 0.90]}}).verdict()
    assert said[-3:] == ["Not finished: 1 run.", "A note on mrpc.", "5 runs took 50 s."]
    assert study({}).verdict() == ["No run has finished yet."]


def test_a_model_is_held_against_the_control_that_it_is_least_surely_above():
    scores = {
        "mrpc": {"a": [0.86, 0.88, 0.87], "random": [0.81, 0.83, 0.82]},
        "cola": {"a": [0.30, 0.34, 0.32], "random": [0.20, 0.24, 0.22]},
    }
    words = {"mrpc": {"f1": 0.835, "accuracy": 0.7}, "cola": {"matthews": 0.31}}
    result = study(scores, words)
    row = result.table().set_index(["task", "model"]).loc["MRPC", "bag of words"]
    assert (row["mean"], row["low"], row["high"], row["runs"]) == (83.5, 83.5, 83.5, 0)
    assert result.verdict()[1:3] == [
        "a is above every control (random, bag of words) beyond noise on 1 of 2 tasks. Against the "
        "closest: better on MRPC (bag of words: +3.5 points of f1, 95 % interval +1.0 to +6.0); no "
        "difference on CoLA (bag of words: +1.0 points of matthews, 95 % interval −4.0 to +6.0).",
        "On CoLA no model is above every control, so we make no claim that pre-training helps; the "
        "task's own training rows are enough for such a score.",
    ]
