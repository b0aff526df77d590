"""The benchmarks run on tiny shapes. Their figures are not judged here."""

import json
import math
import sys

import pandas as pd
import pytest


@pytest.fixture
def load(monkeypatch):
    """Imports a benchmark, as the scripts import each other."""
    monkeypatch.syspath_prepend("benchmarks")
    return __import__


def test_both_trainers_take_the_same_steps_and_the_ratio_is_of_one_round(load, tmp_path) -> None:
    throughput = load("throughput")
    job = {"tokens": 128, "shapes": [[2, 64, 32]], "vocab_size": 1000, "warmup": 1, "steps": 2}
    job |= {"device": "cpu", "backend": "eager", "results": str(tmp_path / "results.jsonl")}
    rows = []
    for setup in ("trainer", "stackbert-eager"):
        (tmp_path / "job.json").write_text(json.dumps(job | {"setup": setup}), "utf-8")
        throughput.child(tmp_path / "job.json")
        result = json.loads((tmp_path / "results.jsonl").read_text("utf-8").splitlines()[-1])
        assert len(result["seconds"]) == 2
        # A fresh model knows nothing: it guesses evenly among the 1,000 tokens.
        assert result["loss"] == pytest.approx(math.log(1000), rel=0.1)
        rows += [{"setup": setup, "round": turn, **result} for turn in (1, 2)]
    for row, seconds in zip(rows, ([4.0, 4.0], [9.0, 9.0], [2.0, 2.0], [3.0, 3.0]), strict=True):
        row["seconds"] = seconds
    table = throughput.summary(pd.DataFrame(rows), tokens=128)
    assert table["its time ÷ StackBERT's"].tolist() == ["2.50 (2.00–3.00)", ""]
    assert table["tokens/s"].tolist() == pytest.approx([128 / 6.5, 128 / 2.5])


def test_a_build_and_bare_encoding_give_the_same_tokens(load, tmp_path, capsys) -> None:
    pipeline = load("pipeline")
    words = ("karu", "losen", "mitor", "lotor", "misen")
    lines = [" ".join(words[i // 5**k % 5] for k in range(4)) + "." for i in range(100)]
    (tmp_path / "text.txt").write_text("\n\n".join([*lines, *lines[:10]]), "utf-8")
    for way in pipeline.WAYS:
        pipeline.child(way, tmp_path, None, [str(tmp_path / "text.txt")])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len({(each["documents"], each["tokens"]) for each in found}) == 1
    assert found[0]["documents"] == 100, "the others are duplicates"


SCRIPT = """
import json, pathlib, sys, time
run = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
run.mkdir()
for kind in ("step", "end"):
    time.sleep(0.2)
    with (run / "metrics.jsonl").open("a") as file:
        print(json.dumps({"kind": kind, "wall": {"training": 0.1, "evaluation": 0.05}}), file=file)
"""


def test_overhead_accounts_for_the_wall_time_and_the_report_says_so(load, tmp_path) -> None:
    overhead, reporting = load("overhead"), load("reporting")
    watched = overhead.watch([sys.executable, "-c", SCRIPT], tmp_path / "run")
    assert 0 < watched["called"] < watched["step"] < watched["end"] <= watched["wall"]
    ledger = pd.DataFrame([{"wall": {"training": 0.1, "evaluation": 0.05}}])
    table = overhead.time_table(watched, ledger)
    *parts, outside, wall = table.seconds
    assert sum(parts) == pytest.approx(wall)
    assert outside == pytest.approx(wall - 0.15)
    made = {"notes": [], "seconds": 1.0, "formats": {"share": "{:.0%}"}, "smoke": True}
    text = reporting.write_report(tmp_path, "time", "Time", {"Where": table}, **made)
    assert text == (tmp_path / "time.md").read_text("utf-8")
    assert "| wall time | " in text
    assert "these figures say nothing" in text
    report = json.loads((tmp_path / "time.json").read_text("utf-8"))
    assert report["tables"]["Where"][-1]["share"] == 1.0
