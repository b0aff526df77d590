"""`stackbert finetune` as a user calls it: one's own table, GLUE's server, options that clash."""

import csv
import zipfile

import pytest
from finetuning_helpers import BRIEF, FAST, quick_collection, sentence
from typer.testing import CliRunner

import stackbert as sb
from stackbert.cli import app
from stackbert.finetuning.runs import read_predictions, result_path

quick = pytest.fixture(scope="module", autouse=True)(quick_collection)


def reviews(path):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "review", "stars"])
        for number in range(80):
            label = "good" if number % 2 else "bad"
            writer.writerow([f"r{number}", f"{label}, {sentence(number, 4)}", label])
    return path


def test_the_command_fine_tunes_on_ones_own_table_and_writes_a_report(models, tmp_path):
    table = reviews(tmp_path / "reviews.csv")
    call = [
        "finetune", str(models[0]), str(models[1]), "--task", "own", "--data", str(table),
        "--test", str(table), "--text", "review", "--label", "stars", "--key", "id",
        "--out", str(tmp_path / "out"), "--seeds", "2", "--control",
        *(word for setting in BRIEF for word in ("--set", setting)),
    ]  # fmt: skip
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    assert "− one" in done.stdout
    assert "set aside as the dev split" in done.stdout
    results = sb.read_finetune(tmp_path / "out")
    assert list(results.record.tasks) == ["reviews"]
    assert results.control.name == "untrained"
    path = result_path(results.folder, "reviews", results.runs[0].member, 0)
    predictions = read_predictions(path)
    assert {row["key"] for row in predictions["test"]} == {f"r{n}" for n in range(80)}
    assert {row["prediction"] for row in predictions["test"]} <= {"good", "bad"}
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Difference to one" in html
    assert (tmp_path / "out" / "figures" / "scores-by-task.svg").is_file()


def test_the_command_writes_what_glues_server_takes(models, glue, tmp_path):
    call = [
        "finetune", str(models[0]), "--task", "sst-2", "--data", str(glue), "--seeds", "2",
        "--out", str(tmp_path / "out"), "--submit", "--fill",
        *(word for setting in (*FAST, "epochs=6") for word in ("--set", setting)),
    ]  # fmt: skip
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    (path,) = (tmp_path / "out" / "submission").rglob("*.zip")
    with zipfile.ZipFile(path) as archive:
        rows = archive.read("SST-2.tsv").decode().splitlines()
        assert len(archive.namelist()) == 11
    assert rows == ["index\tprediction", *(f"{n}\t1" for n in range(4))]
    assert "the server expects 1,821" in done.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--task", "own", "--data", "x.csv"], "--text and --label"),
        (["--task", "rte", "--text", "review"], "go with --task own"),
        (["--task", "rte", "--group", "stack"], "NAME=RUN,RUN,RUN"),
        (["--task", "rte", "--fill"], "--fill goes with --submit"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, said, models, tmp_path):
    call = ["finetune", str(models[0]), "--out", str(tmp_path / "out"), *options]
    done = CliRunner().invoke(app, call)
    assert isinstance(done.exception, sb.UserError)
    assert said in str(done.exception)
