"""Studies: what is run, kept, added and refused; the zip for GLUE's server."""

import json
import os
import signal
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from finetuning_helpers import BRIEF, FAST, rte, save

import stackbert as sb
from stackbert.errors import Interrupted
from stackbert.finetuning.models import find_models
from stackbert.finetuning.result import predictions_path, read_finetune
from stackbert.finetuning.study import finetune
from stackbert.progress import Progress
from stackbert.units import counted
from tiny_encoders import tiny_encoder


class Heard(Progress):
    """Keeps what is said, and asks the process to stop after so many steps."""

    def __init__(self, stop_after=None):
        self.said, self.steps, self._stop_after = [], [], stop_after

    def say(self, text):
        self.said.append(text)

    def step(self, done, total, text):
        self.steps.append((done, total))
        if len(self.steps) == self._stop_after:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def call(glue, tmp_path):
    return {"task": "sst-2", "data": glue, "out": tmp_path / "out", "settings": BRIEF, "seeds": 1}


def test_every_model_runs_on_every_task_whose_data_is_there(models, call):
    heard, call = Heard(), call | {"task": "glue", "seeds": 2}
    result = finetune(models[:2], control=True, progress=heard, **call)
    assert list(result.runs[["task", "model", "seed"]].itertuples(index=False, name=None)) == [
        (task, name, seed)
        for task in ("sst-2", "rte")
        for name in ("one", "two", "untrained")
        for seed in (0, 1)
    ]
    assert result.unfinished == 0
    missing = "There is no data for cola, mrpc, sts-b, qqp, mnli, qnli, wnli."
    assert heard.said[:2] == [missing, "12 runs to make."]
    assert heard.said[2].startswith("SST-2, one, seed 0: accuracy ")
    assert heard.steps[-1] == (12, 12)
    again = read_finetune(call["out"])
    pd.testing.assert_frame_equal(again.scores, result.scores, check_dtype=False)
    page = sb.report([call["out"]], call["out"] / "page.html").read_text("utf-8")
    assert result.verdict()[0] in page


def test_models_seeds_a_control_and_test_predictions_can_be_added(models, call):
    first, heard = finetune(models[0], **call), Heard()
    more = finetune(models[:2], control=True, progress=heard, **call | {"seeds": 2})
    assert heard.said[0] == "5 runs to make."
    assert more.scores["score"][0] == first.scores["score"][0]
    later = finetune(models[2], **call)
    assert [model.name for model in later.models] == ["one", "two", "three", "untrained"]
    assert later.unfinished == 1
    tested = finetune(models[0], test=True, **call)
    path = predictions_path(call["out"], "sst-2", tested.models[0], 0)
    rows = map(json.loads, path.read_text().splitlines())
    assert {row["split"] for row in rows} == {"dev", "test"}
    heard = Heard()
    finetune(models[0], progress=heard, **call)
    assert heard.steps == []


def test_models_can_be_kept_afterwards(models, call):
    first = finetune(models[0], **call)
    for runs in (1, 0):
        heard, settings = Heard(), [*BRIEF, "save=true"]
        kept = finetune(models[0], progress=heard, **call | {"settings": settings})
        assert heard.said[0] == f"{counted(runs, 'run')} to make."
    columns = ["seed", "score", "loss"]
    pd.testing.assert_frame_equal(kept.scores[columns], first.scores[columns])
    find_models([predictions_path(call["out"], "sst-2", kept.models[0], 0).with_suffix("")])


def test_a_folder_continues_with_the_same_question_only(models, call, tmp_path):
    call |= {"models": models[0], "task": "rte"}
    finetune(**call)
    for change, said in (
        ({"settings": [*BRIEF, "batch=4"]}, "with batch=8. Models"),
        ({"data": rte(tmp_path / "other", train=40)}, "with other rows"),
        ({"models": save(tmp_path / "one", tiny_encoder(seed=9))}, "another model called 'one'"),
    ):
        with pytest.raises(sb.UserError, match=said):
            finetune(**call | change)


def test_a_stopped_study_keeps_its_runs_and_continues_to_the_same_end(models, call, tmp_path):
    call |= {"task": "rte", "seeds": 3}
    with pytest.raises(Interrupted, match="rerun the command") as caught:
        finetune(models[0], progress=Heard(stop_after=5), **call)
    assert caught.value.exit_code == 128 + signal.SIGTERM
    assert 1 <= len(read_finetune(tmp_path / "out").runs) < 3
    whole = finetune(models[0], **call)
    undisturbed = finetune(models[0], **call | {"out": tmp_path / "other"})
    columns = ["seed", "score", "loss"]
    pd.testing.assert_frame_equal(whole.scores[columns], undisturbed.scores[columns])


def test_a_run_that_diverges_counts_as_guessing_and_is_not_run_again(models, call, tmp_path):
    model = tiny_encoder(seed=1)
    model.bert.embeddings.LayerNorm.weight.data.fill_(1e36)
    folder, heard = save(tmp_path / "huge", model), Heard()
    row = finetune([models[0], folder], **call).scores.loc[1]
    assert (row["diverged"], row["score"]) == (True, 0.5)
    finetune([models[0], folder], progress=heard, **call)
    assert heard.steps == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"models": [0, 0]}, "same name or the same weights"),
        ({"models": []}, "Name at least one model"),
        ({"data": "nowhere"}, "nowhere does not exist"),
        ({"out": "mine"}, "holds notes.txt"),
    ],
)
def test_a_wrong_question_is_refused_before_anything_runs(wrong, said, models, call, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    call |= wrong
    call["out"] = tmp_path / call["out"]
    call["models"] = [models[n] for n in call.get("models", [0])]
    with pytest.raises(sb.UserError, match=said):
        finetune(**call)
    assert not (call["out"] / "finetune.json").exists()


EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return __import__("glue_submission")


def test_the_zip_holds_what_the_server_takes(example, models, glue, tmp_path, monkeypatch, capsys):
    call = {"data": glue, "out": tmp_path / "out", "seeds": 2, "settings": [*FAST, "epochs=6"]}
    result = finetune(models[0], task="sst-2", test=True, **call)
    monkeypatch.setattr(sys, "argv", ["glue_submission.py", str(call["out"]), "--fill"])
    monkeypatch.setitem(example.FILES, "QQP.tsv", ("qqp", "test", 12))  # 390,965 take long
    example.main()
    (path,) = (call["out"] / "submission").glob("*.zip")
    assert "SST-2.tsv has 4 rows; the server expects 1,821." in capsys.readouterr().out
    first = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        texts = {name: archive.read(name).decode().splitlines() for name in archive.namelist()}
    assert texts.keys() == example.FILES.keys()
    assert texts["SST-2.tsv"] == ["index\tprediction", *(f"{n}\t1" for n in range(4))]
    for name, (_, _, size) in example.FILES.items():
        if name != "SST-2.tsv":
            assert [line.split("\t")[0] for line in texts[name][1:]] == list(map(str, range(size)))
    assert texts["MNLI-mm.tsv"][1] == "0\tentailment"
    _, notes = example.write_submission(call["out"], result, result.models[0], fill=False)
    assert "AX.tsv has no predictions." in notes
    example.main()
    assert path.read_bytes() == first  # the same bytes from the same predictions
