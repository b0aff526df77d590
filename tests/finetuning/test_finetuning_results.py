"""What a study's results say: hand-made runs, numbers worked out on paper."""

import pytest

import stackbert as sb
from stackbert.comparison.statistics import interval
from stackbert.finetuning.folder import (
    Contender,
    Member,
    Progress,
    Record,
    TaskRecord,
    joined,
    read_record,
    write_record,
)
from stackbert.finetuning.runs import Result, result_path, write_result
from stackbert.finetuning.settings import defaults_for
from stackbert.finetuning.tables import as_text, average_table, main_table, score_table
from stackbert.finetuning.verdict import statements

GUESS = {
    "mrpc": {"dev": {"f1": 0.8, "accuracy": 0.68}},
    "cola": {"dev": {"matthews": 0.0}},
    "wnli": {"dev": {"accuracy": 0.56}},
    "mnli": {"dev": {"accuracy": 0.35}, "dev_mismatched": {"accuracy": 0.35}},
}
METRICS = {
    "mrpc": ("f1", "accuracy"),
    "cola": ("matthews",),
    "wnli": ("accuracy",),
    "mnli": ("accuracy",),
}
TITLES = {"mrpc": "MRPC", "cola": "CoLA", "wnli": "WNLI", "mnli": "MNLI"}


def contender(name, members=1):
    names = [name] if members == 1 else [f"{name}{n}" for n in range(members)]
    return Contender(name, tuple(Member(n, f"/{n}", f"{n}-key", f"{n}-sha") for n in names))


def task(name, seeds):
    guess = GUESS[name]
    sizes = {"train": 100, **dict.fromkeys(guess, 50)}
    shas = {split: f"{name}-{split}" for split in sizes}
    settings = defaults_for(name).model_copy(update={"precision": "fp32"})
    return TaskRecord(name, TITLES[name], METRICS[name], settings, sizes, shas, guess, seeds, ())


def study(folder, scores, seeds=3, contenders=None, missing=None, notes=()):
    """Write a folder: `scores[task][member]` are scores by seed, None of a run that diverged.

    A score is a number for every metric of every split, or a dictionary of splits.
    """
    names = list(dict.fromkeys(name for found in scores.values() for name in found))
    contenders = contenders or [contender(name) for name in names]
    tasks = {name: task(name, seeds) for name in scores}
    record = Record("models", tuple(contenders), tasks, missing or {}, {"device": "CPU"})
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder, record)
    for name, by_member in scores.items():
        for member in record.members:
            for seed, value in enumerate(by_member[member.name]):
                found = {}
                if value is not None:
                    found = {
                        split: value[split]
                        if isinstance(value, dict)
                        else dict.fromkeys(METRICS[name], value)
                        for split in GUESS[name]
                    }
                result = Result(
                    key=tasks[name].key(member, seed),
                    seed=seed,
                    scores=found,
                    splits={},
                    seconds=10.0,
                    predicting=1.0,
                    steps=7,
                    losses=(0.7, 0.1),
                    diverged=value is None,
                    notes=tuple(notes),
                )
                write_result(result_path(folder, name, member, seed), result, {})
    return sb.read_finetune(folder)


def test_a_score_is_mean_interval_and_median_over_seeds(tmp_path):
    results = study(tmp_path, {"mrpc": {"a": [0.86, 0.88, 0.93]}})
    (measure,) = results.measures()
    score = results.score(results.contenders[0], measure)
    # Student's t at two degrees of freedom is 4.303; the deviation of these three is 0.036056.
    assert score.mean.mean == pytest.approx(0.89)
    assert score.mean.high - score.mean.mean == pytest.approx(4.3027 * 0.036056 / 3**0.5, rel=1e-4)
    assert (score.median, score.runs, score.failed) == (0.88, 3, 0)


def test_a_difference_is_paired_by_seed(tmp_path):
    # Seeds differ by far more than the models do; paired, the difference is clear.
    results = study(tmp_path, {"cola": {"a": [0.82, 0.86, 0.90], "b": [0.83, 0.872, 0.911]}})
    (measure,) = results.measures()
    a, b = results.contenders
    found = results.difference(b, a, measure)
    assert found.interval == interval([0.83 - 0.82, 0.872 - 0.86, 0.911 - 0.90])
    assert found.outcome == "better"
    assert results.difference(a, b, measure).outcome == "worse"


@pytest.mark.parametrize(
    ("scores", "outcome"),
    [
        ([0.86, 0.88, 0.87], "no difference"),
        ([0.86], "one seed"),
    ],
)
def test_what_may_be_noise_is_called_no_difference(scores, outcome, tmp_path):
    other = [0.87, 0.86, 0.88][: len(scores)]
    results = study(tmp_path, {"mrpc": {"a": other, "b": scores}}, seeds=len(scores))
    (measure,) = results.measures()
    assert results.difference(*reversed(results.contenders), measure).outcome == outcome


def test_a_task_on_which_nothing_is_above_guessing_carries_no_information(tmp_path):
    scores = {
        "mrpc": {"a": [0.86, 0.88, 0.87], "b": [0.89, 0.90, 0.91]},
        # Above guessing on average, but by less than the interval.
        "wnli": {"a": [0.50, 0.60, 0.64], "b": [0.56, 0.56, 0.56]},
    }
    results = study(tmp_path, scores)
    mrpc, wnli = results.measures()
    assert results.is_informative(mrpc)
    assert not results.is_informative(wnli)
    a, b = results.contenders
    assert results.difference(b, a, wnli).outcome == "no information"
    said = " ".join(statements(results))
    assert "WNLI carries no information" in said
    assert "b beside a, 1 measure that carries information: better on 1." in said


def test_failed_runs_are_counted_and_stay_in_the_mean(tmp_path):
    # One at guessing, one below, one that diverged and so counts as guessing.
    results = study(tmp_path, {"cola": {"a": [0.3, 0.0, -0.1, None]}}, seeds=4)
    (measure,) = results.measures()
    score = results.score(results.contenders[0], measure)
    assert dict(score.values) == {0: 0.3, 1: 0.0, 2: -0.1, 3: 0.0}
    assert (score.runs, score.failed) == (4, 3)
    assert score.mean.mean == pytest.approx(0.05)
    said = " ".join(statements(results))
    assert "3 of 4 runs failed" in said
    assert "(CoLA 3)" in said
    assert "1 of them diverged" in said


def test_of_several_pretraining_seeds_the_noise_is_between_them(tmp_path):
    # Fine-tuning seeds agree within each member, so that counting all nine would call it certain.
    scores = {
        "mrpc": {
            "a0": [0.85, 0.85, 0.85], "a1": [0.88, 0.88, 0.88], "a2": [0.91, 0.91, 0.91],
            "b0": [0.90, 0.92, 0.88], "b1": [0.86, 0.87, 0.85], "b2": [0.92, 0.93, 0.91],
        }
    }  # fmt: skip
    groups = [contender("a", 3), contender("b", 3)]
    results = study(tmp_path, scores, contenders=groups)
    (measure,) = results.measures()
    a, b = results.contenders
    score = results.score(b, measure)
    assert list(score.values.values()) == pytest.approx([0.90, 0.86, 0.92])
    assert (score.mean.number, score.runs) == (3, 9)
    found = results.difference(b, a, measure)
    assert found.interval.mean == pytest.approx((0.05 - 0.02 + 0.01) / 3)
    assert found.outcome == "no difference"
    table = score_table(results)
    assert "pre-training seeds" in table.note


def test_mnlis_two_halves_are_two_measures_and_one_task_of_the_average(tmp_path):
    halves = {"dev": {"accuracy": 0.70}, "dev_mismatched": {"accuracy": 0.60}}
    scores = {"mnli": {"a": [halves]}, "mrpc": {"a": [{"dev": {"f1": 0.9, "accuracy": 0.8}}]}}
    results = study(tmp_path, scores, seeds=1)
    assert [measure.title for measure in results.measures()] == ["MNLI", "MNLI mismatched", "MRPC"]
    average = results.average_values(results.contenders[0])
    assert average == pytest.approx({0: (0.65 + 0.85) / 2})


def test_the_average_leaves_wnli_out_and_takes_the_seeds_that_all_tasks_have(tmp_path):
    scores = {
        "mrpc": {"a": [0.9, 0.8, 0.85]},
        "cola": {"a": [0.5, 0.4]},
        "wnli": {"a": [0.1, 0.1, 0.1]},
    }
    results = study(tmp_path, scores)
    assert results.average_values(results.contenders[0]) == pytest.approx({0: 0.7, 1: 0.6})
    assert average_table(results).rows[0][2] == "2"
    alone = study(tmp_path / "alone", {"mrpc": {"a": [0.9]}}, seeds=1)
    assert average_table(alone).rows == ()


def test_what_is_missing_unfinished_or_cut_is_said(tmp_path):
    results = study(
        tmp_path,
        {"mrpc": {"a": [0.88, 0.89], "b": [0.88, 0.87, 0.90]}},
        missing={"qqp": "no folder QQP"},
        notes=["MRPC: 3 of 50 rows of dev are longer than 64 tokens and were cut."],
    )
    said = statements(results)
    assert "Not finished: 1 run." in said
    assert "No data for: qqp." in said
    assert sum("were cut" in line for line in said) == 1
    # What both have is what is compared.
    (measure,) = results.measures()
    a, b = results.contenders
    assert results.difference(b, a, measure).interval.number == 2


def test_the_table_shows_every_number_that_the_verdict_rests_on(tmp_path):
    results = study(tmp_path, {"cola": {"a": [0.82, 0.86, 0.90], "b": [0.83, 0.872, 0.911]}})
    first, second = main_table(results).rows
    assert first == ("CoLA", "Matthews", "a", "86.0 ± 9.9", "86.0", "3", "", "0.0", "", "", "")
    assert second[:8] == ("CoLA", "Matthews", "b", "87.1 ± 10.1", "87.2", "3", "", "0.0")
    assert second[8:] == ("+1.1", "+0.9 to +1.3", "better")
    text = as_text(main_table(results)).splitlines()
    assert text[0] == "Scores"
    assert "− a" in text[1] or "− a" in text[2]
    both = study(tmp_path / "both", {"mrpc": {"a": [0.9, 0.91, 0.92], "b": [0.9, 0.92, 0.93]}})
    other = score_table(both, headline=False)
    assert [row[1] for row in other.rows] == ["accuracy", "accuracy"]


def test_many_measures_bring_a_warning_of_chance(tmp_path):
    scores = {
        name: {"a": [0.90, 0.91, 0.92], "b": [0.90, 0.92, 0.91]}
        for name in ("mrpc", "cola", "mnli")
    }
    said = " ".join(statements(study(tmp_path / "few", scores)))
    assert "by chance alone" not in said
    scores["wnli"] = scores["mrpc"]
    said = " ".join(statements(study(tmp_path / "many", scores)))
    assert "With 5 measures looked at" in said


def test_what_is_written_is_read_back(tmp_path):
    progress = Progress("run", 10, 2.5, 4)
    along = Contender("run step 10", (Member("run step 10", "/x", "x-key", "sha", progress),))
    record = Record("along", (along,), {"cola": task("cola", 6)}, {"rte": "no RTE"}, {"cpu": 1})
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    assert joined(tmp_path, record, record) == record


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": 99}', '{"format": 1, "kind": 3}'])
def test_a_damaged_record_is_a_sentence(text, tmp_path):
    (tmp_path / "finetune.json").write_text(text)
    with pytest.raises(sb.UserError, match=r"finetune\.json is (damaged|of another version)"):
        sb.read_finetune(tmp_path)


def test_a_folder_of_something_else_is_a_sentence(tmp_path):
    with pytest.raises(sb.UserError, match=r"has no finetune\.json"):
        sb.read_finetune(tmp_path)
