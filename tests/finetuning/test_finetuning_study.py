"""Studies: what is run, kept, added, refused; groups, checkpoints, the command, the report."""

import json
import os
import re
import signal

import pytest
import vl_convert
from finetuning_helpers import BRIEF, FAST, Heard, build, quick_collection, rte, save

import stackbert as sb
from stackbert.finetuning.runs import read_predictions, result_path
from stackbert.finetuning.tables import finetune_page
from stackbert.pretraining.checkpoints import RunState, checkpoint_name, write_state
from stackbert.reporting.charts import fitted

quick = pytest.fixture(scope="module", autouse=True)(quick_collection)


@pytest.fixture(scope="module")
def study(models, glue, tmp_path_factory):
    """Two models on all of GLUE that is there, two seeds each."""
    out = tmp_path_factory.mktemp("study") / "out"
    heard = Heard()
    settings = [*FAST, "rte.max_steps=2", "sst-2.epochs=4"]
    results = sb.finetune(
        models[:2], task="glue", data=glue, out=out, seeds=2, settings=settings, reporter=heard
    )
    return results, heard, settings


def test_every_model_runs_on_every_task_whose_data_is_there(study):
    results, heard, _ = study
    assert list(results.record.tasks) == ["sst-2", "rte"]
    assert set(results.record.missing) == {
        "cola", "mrpc", "sts-b", "qqp", "mnli", "qnli", "wnli"
    }  # fmt: skip
    assert "no folder MNLI" in results.record.missing["mnli"]
    assert [(r.task, r.member.name, r.seed) for r in results.runs] == [
        (task, name, seed)
        for task in ("sst-2", "rte")
        for name in ("one", "two")
        for seed in (0, 1)
    ]
    assert results.unfinished == 0
    assert "8 runs to make, 0 there already" in heard.said
    assert any(re.match(r"SST-2, one, seed 0: accuracy [\d.]+ \(", line) for line in heard.said)
    done, total, _ = heard.steps[-1]
    assert done == total


def test_scores_and_predictions_are_of_the_split_they_name(study, glue):
    results, _, _ = study
    run = results.runs[0]
    path = result_path(results.folder, "sst-2", run.member, 0)
    predictions = read_predictions(path)
    assert list(predictions) == ["dev"]
    right = [row["prediction"] == row["label"] for row in predictions["dev"]]
    assert run.result.scores["dev"]["accuracy"] == sum(right) / len(right)
    lines = (glue / "SST-2" / "dev.tsv").read_text().splitlines()[1:]
    assert [row["label"] for row in predictions["dev"]] == [line.split("\t")[1] for line in lines]


def test_what_the_table_says_is_what_was_run(study):
    results, _, _ = study
    first, second = results.contenders
    (measure, _) = results.measures()
    values = [r.result.scores["dev"]["accuracy"] for r in results.runs[:2]]
    score = results.score(first, measure)
    assert list(score.values.values()) == values
    assert score.mean.mean == pytest.approx(sum(values) / 2)
    difference = results.difference(second, first, measure)
    assert difference.interval.number == 2


def test_called_again_nothing_is_run_again(study, models, glue):
    results, _, settings = study
    before = {path: path.stat().st_mtime_ns for path in results.folder.rglob("*seed*")}
    heard = Heard()
    again = sb.finetune(
        models[:2],
        task="glue",
        data=glue,
        out=results.folder,
        seeds=2,
        settings=settings,
        reporter=heard,
    )
    assert again == results
    assert heard.steps == []
    assert before == {path: path.stat().st_mtime_ns for path in results.folder.rglob("*seed*")}
    assert sb.read_finetune(results.folder) == results


def test_seeds_and_models_can_be_added(models, glue, tmp_path):
    call = {"task": "rte", "data": glue, "out": tmp_path / "out", "settings": BRIEF}
    first = sb.finetune(models[0], seeds=1, **call)
    heard = Heard()
    more = sb.finetune(models[:2], seeds=2, reporter=heard, **call)
    assert "3 runs to make, 1 there already" in heard.said
    assert more.runs[0] == first.runs[0]
    assert [(r.member.name, r.seed) for r in more.runs] == [
        ("one", 0), ("one", 1), ("two", 0), ("two", 1)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"settings": [*BRIEF, "batch=4"]}, "other settings: batch (8 there, 4 here)"),
        ({"data": "other"}, "on other data: train"),
        ({"models": "other"}, "another model by the name 'one'"),
        ({"along": ["run"]}, "not a run directory"),
    ],
)
def test_a_folder_goes_on_with_the_same_question_only(change, said, models, glue, tmp_path):
    call = {"task": "rte", "data": glue, "out": tmp_path / "out", "settings": BRIEF, "seeds": 1}
    given = {"models": models[0], **call}
    sb.finetune(**given)
    if "data" in change:
        change = {"data": rte(tmp_path / "other", train=40)}
    if "models" in change:
        change = {"models": save(tmp_path / "one", build(seed=9))}
    if "along" in change:
        change = {"models": (), **change}
    with pytest.raises(sb.UserError) as caught:
        sb.finetune(**(given | change))
    assert said in str(caught.value)


def test_a_stopped_study_keeps_its_runs_and_goes_on(models, glue, tmp_path):
    call = {"task": "rte", "data": glue, "out": tmp_path / "out", "settings": BRIEF, "seeds": 3}
    stopping = Heard(after=5, act=lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(sb.Interrupted, match="the same command goes on") as caught:
        sb.finetune(models[0], reporter=stopping, **call)
    assert caught.value.exit_code == 128 + signal.SIGTERM
    partly = sb.read_finetune(tmp_path / "out")
    assert 1 <= len(partly.runs) < 3
    assert partly.unfinished == 3 - len(partly.runs)
    whole = sb.finetune(models[0], **call)
    assert whole.runs[: len(partly.runs)] == partly.runs
    undisturbed = sb.finetune(models[0], **{**call, "out": tmp_path / "other"})
    assert [r.result.losses for r in whole.runs] == [r.result.losses for r in undisturbed.runs]
    assert [r.result.scores for r in whole.runs] == [r.result.scores for r in undisturbed.runs]


def test_a_damaged_result_is_named(models, glue, tmp_path):
    call = {"task": "rte", "data": glue, "out": tmp_path / "out", "settings": BRIEF, "seeds": 1}
    results = sb.finetune(models[0], **call)
    path = result_path(results.folder, "rte", results.runs[0].member, 0)
    path.write_text(path.read_text()[:40])
    with pytest.raises(sb.UserError, match="is damaged") as caught:
        sb.read_finetune(results.folder)
    assert str(path) in str(caught.value)


def test_a_result_of_other_weights_does_not_count(models, glue, tmp_path):
    call = {"task": "rte", "data": glue, "out": tmp_path / "out", "settings": BRIEF, "seeds": 1}
    results = sb.finetune(models[0], **call)
    path = result_path(results.folder, "rte", results.runs[0].member, 0)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"key": "0" * 16}))
    assert sb.read_finetune(results.folder).unfinished == 1
    heard = Heard()
    sb.finetune(models[0], reporter=heard, **call)
    assert "1 run to make, 0 there already" in heard.said


def test_a_run_that_diverges_is_kept_and_counted(models, glue, tmp_path):
    settings = [*FAST, "learning_rate=0.9", "max_grad_norm=0", "epochs=4", "warmup_fraction=0"]
    # No rate that settings allow takes these weights to infinity; weights of this size do.
    model = build(seed=1)
    model.bert.embeddings.word_embeddings.weight.data[4:] *= float("inf")
    folder = save(tmp_path / "infinite", model)
    call = {"task": "sst-2", "data": glue, "settings": settings, "seeds": 1}
    results = sb.finetune([models[0], folder], out=tmp_path / "out", **call)
    bad = results.runs[1]
    assert bad.result.diverged
    (measure,) = results.measures()
    assert bad.score(measure) == measure.guess
    assert bad in results.failed
    assert results.score(results.contenders[1], measure).failed == 1


def test_a_folder_that_holds_something_else_is_left_alone(models, glue, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(sb.UserError, match=r"it holds notes\.txt"):
        sb.finetune(models[0], task="rte", data=glue, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == [
        "notes.txt"
    ]


def test_groups_are_paired_member_by_member(models, glue, tmp_path):
    more = save(tmp_path / "four", build(seed=7))
    results = sb.finetune(
        task="sst-2",
        data=glue,
        out=tmp_path / "out",
        groups={"scratch": models[:2], "stack": [models[2], more]},
        seeds=2,
        settings=[*FAST, "max_steps=4"],
    )
    scratch, stack = results.contenders
    assert [member.name for member in scratch.members] == ["one", "two"]
    (measure,) = results.measures()
    by_member = {
        contender.name: [
            sum(r.score(measure) for r in results.runs if r.member == member) / 2
            for member in contender.members
        ]
        for contender in (scratch, stack)
    }
    score = results.score(scratch, measure)
    assert list(score.values.values()) == by_member["scratch"]
    assert (score.mean.number, score.runs) == (2, 4)
    gaps = [b - a for a, b in zip(by_member["scratch"], by_member["stack"], strict=True)]
    difference = results.difference(stack, scratch, measure)
    assert difference.interval.mean == pytest.approx(sum(gaps) / 2)
    assert difference.interval.number == 2


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ({"models": [0, 1], "groups": {"g": [1, 2]}}, "all must have as many"),
        ({"models": [0, 0]}, "are called"),
        ({"groups": {"g": [1, 1]}}, ""),
        ({}, "Name at least one model"),
        ({"models": [0], "task": "mrcp"}, "There is no task 'mrcp'"),
        ({"models": [0], "data": None}, "Say where the data is"),
        ({"models": [0], "seeds": 0}, "at least 1"),
        ({"models": [0], "along": ["run"]}, "leave other models"),
        ({"models": [0], "task": "mnli"}, "MNLI"),
    ],
)
def test_a_wrong_question_is_refused_before_anything_runs(call, said, models, glue, tmp_path):
    call = {"task": "rte", "data": glue, "out": tmp_path / "out", "seeds": 1} | call
    call["models"] = [models[n] for n in call.get("models", ())]
    call["groups"] = {n: [models[i] for i in m] for n, m in call.get("groups", {}).items()}
    if not said:
        copy = save(tmp_path / "copy", build(seed=1))
        call["groups"], said = {"g": [models[1], copy]}, "the same model"
    with pytest.raises(sb.UserError) as caught:
        sb.finetune(**call)
    assert said in str(caught.value)
    assert not (tmp_path / "out" / "results").exists()


def checkpointed(run, name, steps):
    """A run directory as far as its checkpoints go."""
    folder = run / name
    for seed, step in enumerate(steps):
        place = save(folder / "checkpoints" / checkpoint_name(step), build(seed=seed + len(name)))
        state = RunState(step, 2, 0, 0, {"training": step / 10}, 0, None, "corpus", {})
        write_state(place, state)
    (folder / "run.json").write_text("{}")
    return folder


def test_every_checkpoint_of_a_run_gets_its_score_over_its_pretraining(glue, tmp_path):
    runs = [checkpointed(tmp_path, "stack", (20, 100)), checkpointed(tmp_path, "scratch", (50,))]
    call = {"task": "sst-2", "data": glue, "out": tmp_path / "out", "seeds": 1, "settings": BRIEF}
    results = sb.finetune(along=runs, **call)
    at = [contender.members[0].progress for contender in results.contenders]
    assert [(p.run, p.step, p.seconds) for p in at] == [
        ("stack", 20, 2.0), ("stack", 100, 10.0), ("scratch", 50, 5.0)
    ]  # fmt: skip
    assert len(results.runs) == 3
    # A run that has gone on has a checkpoint more; it takes its place in the order.
    place = save(runs[0] / "checkpoints" / checkpoint_name(60), build(seed=77))
    write_state(place, RunState(60, 2, 0, 0, {"training": 6.0}, 0, None, "corpus", {}))
    more = sb.finetune(along=runs, **call)
    steps = [contender.members[0].progress.step for contender in more.contenders]
    assert steps == [20, 60, 100, 50]
    page = finetune_page(tmp_path / "out")
    titles = [part.title for part in page.parts]
    assert titles[:3] == [
        "SST-2 over seconds of pre-training",
        "SST-2 over steps of pre-training",
        "Scores along pre-training",
    ]
    drawn = vl_convert.vegalite_to_svg(fitted(page.parts[1].spec, 600), allowed_base_urls=[])
    assert "steps of pre-training" in drawn
    assert "scratch" in drawn


def test_a_damaged_checkpoint_is_named(tmp_path, glue):
    run = checkpointed(tmp_path, "run", (10,))
    (run / "checkpoints" / checkpoint_name(10) / "config.json").write_text("{}")
    with pytest.raises(sb.UserError, match="differs from its checksum"):
        sb.finetune(along=run, task="rte", data=glue, out=tmp_path / "out")


def test_test_predictions_asked_for_later_are_made_then(models, glue, tmp_path):
    call = {"task": "sst-2", "data": glue, "out": tmp_path / "out", "seeds": 1, "settings": BRIEF}
    first = sb.finetune(models[0], **call)
    heard = Heard()
    second = sb.finetune(models[0], test=True, reporter=heard, **call)
    assert "1 run to make, 0 there already" in heard.said
    assert second.runs[0].result.scores == first.runs[0].result.scores
    heard = Heard()
    sb.finetune(models[0], reporter=heard, **call)
    assert heard.steps == []


def test_a_report_of_finetuning_is_alone_and_a_half_finished_one_says_so(study, tmp_path):
    results, _, _ = study
    with pytest.raises(sb.UserError, match="is reported alone"):
        sb.report([results.folder, tmp_path], tmp_path / "report.html")
    for path in (results.folder / "results" / "rte").glob("*seed1.json"):
        path.rename(path.with_suffix(".aside"))
    try:
        html = sb.report(results.folder, tmp_path / "report.html").read_text(encoding="utf-8")
    finally:
        for path in (results.folder / "results" / "rte").glob("*.aside"):
            path.rename(path.with_suffix(".json"))
    assert "Not finished: 2 runs." in html
