"""The zip for GLUE's server: the files, columns and names that it expects, always alike."""

import hashlib
import zipfile

import pytest

from stackbert.errors import RunError, UserError
from stackbert.finetuning.submission import SIZES, server_file, write_submission
from stackbert.finetuning.tasks import GLUE

SERVERS = {
    "cola": "CoLA.tsv",
    "sst-2": "SST-2.tsv",
    "mrpc": "MRPC.tsv",
    "sts-b": "STS-B.tsv",
    "qqp": "QQP.tsv",
    "mnli": "MNLI-m.tsv",
    "qnli": "QNLI.tsv",
    "rte": "RTE.tsv",
    "wnli": "WNLI.tsv",
    "ax": "AX.tsv",
}


def contents(submission):
    with zipfile.ZipFile(submission.path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name).decode() for name in archive.namelist()}


def test_files_have_the_names_that_the_server_expects():
    assert {name: server_file(task, "test") for name, task in GLUE.items()} == SERVERS
    assert server_file(GLUE["mnli"], "test_mismatched") == "MNLI-mm.tsv"
    assert set(SIZES) == {*SERVERS.values(), "MNLI-mm.tsv"}


def test_a_file_holds_index_and_class_name_in_the_order_of_the_index(tmp_path):
    rows = [("10", "not_entailment"), ("2", "entailment"), ("0", "entailment")]
    submission = write_submission(tmp_path / "out", {"RTE.tsv": rows, "CoLA.tsv": [("0", "1")]})
    assert contents(submission) == {
        "CoLA.tsv": "index\tprediction\n0\t1\n",
        "RTE.tsv": "index\tprediction\n0\tentailment\n2\tentailment\n10\tnot_entailment\n",
    }
    assert submission.files == ("CoLA.tsv", "RTE.tsv")
    assert submission.missing == tuple(name for name in SIZES if name not in submission.files)
    assert "CoLA.tsv has 1 rows; the server expects 1,063." in submission.notes
    assert any("No predictions for SST-2.tsv, MRPC.tsv" in note for note in submission.notes)


def test_similarities_are_clipped_to_zero_to_five(tmp_path):
    rows = [("0", 5.2), ("1", -0.01), ("2", 3.14159), ("3", 5), ("4", -0.0)]
    text = contents(write_submission(tmp_path, {"STS-B.tsv": rows}))["STS-B.tsv"]
    assert text.split("\n")[1:6] == ["0\t5.000", "1\t0.000", "2\t3.142", "3\t5.000", "4\t0.000"]


def test_a_whole_submission_has_nothing_to_note(tmp_path):
    tasks = {server_file(GLUE["mnli"], "test_mismatched"): GLUE["mnli"]}
    tasks |= {SERVERS[name]: task for name, task in GLUE.items()}
    rows = {
        name: [(str(row), task.labels[-1] if task.labels else 1.0) for row in range(SIZES[name])]
        for name, task in tasks.items()
        if name != "QQP.tsv"
    }
    assert all("QQP.tsv" in note for note in write_submission(tmp_path, rows).notes)
    filled = write_submission(tmp_path, rows, fill=True)
    assert filled.missing == ("QQP.tsv",)
    (note,) = filled.notes
    assert "No predictions for QQP.tsv: filled in" in note
    assert "mean nothing" in note
    rows["QQP.tsv"] = [(str(row), "1") for row in range(SIZES["QQP.tsv"])]
    whole = write_submission(tmp_path, rows)
    assert (whole.files, whole.missing, whole.notes) == (tuple(SIZES), (), ())


def test_missing_files_are_filled_only_when_asked_with_as_many_rows_as_the_server_wants(tmp_path):
    rows = {"AX.tsv": [("0", "neutral")]}
    assert set(contents(write_submission(tmp_path, rows))) == {"AX.tsv"}
    filled = contents(write_submission(tmp_path, rows, fill=True))
    assert filled["AX.tsv"] == "index\tprediction\n0\tneutral\n"
    for name, size in SIZES.items():
        if name != "AX.tsv":
            lines = filled[name].splitlines()
            assert (lines[0], len(lines)) == ("index\tprediction", size + 1)
            assert [line.split("\t")[0] for line in lines[1:]] == [str(n) for n in range(size)]
    assert filled["MNLI-mm.tsv"].splitlines()[1] == "0\tentailment"
    assert filled["STS-B.tsv"].splitlines()[1] == "0\t0.000"


def test_the_same_predictions_give_the_same_bytes_whatever_their_order(tmp_path):
    rows = {"WNLI.tsv": [(str(n), "1") for n in range(146)], "STS-B.tsv": [("0", 1), ("1", 2.5)]}
    turned = {name: values[::-1] for name, values in reversed(rows.items())}
    files = [
        write_submission(tmp_path / "one", rows).path,
        write_submission(tmp_path / "two", turned).path,
        write_submission(tmp_path / "one", rows).path,  # again, over the first
    ]
    assert len({hashlib.sha256(path.read_bytes()).hexdigest() for path in files}) == 1
    with zipfile.ZipFile(files[0]) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["glue-submission.zip"]


@pytest.mark.parametrize(
    ("rows", "error", "said"),
    [
        ({"SNLI.tsv": []}, UserError, r"takes no file SNLI\.tsv\. It takes: CoLA\.tsv"),
        ({"RTE.tsv": [("0", "maybe")]}, UserError, r"RTE\.tsv: 'maybe' is no class of RTE"),
        ({"RTE.tsv": [("0", 1)]}, UserError, r"RTE\.tsv: '1' is no class"),
        ({"RTE.tsv": [("x7", "entailment")]}, UserError, r"'x7' is no index"),
        ({"RTE.tsv": [("0", "entailment")] * 2}, UserError, r"two predictions for the index 0"),
        ({"STS-B.tsv": [("0", float("nan"))]}, RunError, r"STS-B\.tsv: a prediction is not finite"),
    ],
)
def test_predictions_that_the_server_could_not_take_are_refused(tmp_path, rows, error, said):
    with pytest.raises(error, match=said):
        write_submission(tmp_path, rows)
    assert list(tmp_path.iterdir()) == []
