"""The benchmarks run on tiny shapes. Their figures are not judged here."""

import functools
import json
import math
import random
import re
import sys

import pandas as pd
import pytest

from stackbert.recipes import load_recipe


@pytest.fixture
def load(monkeypatch):
    """Imports a benchmark, as the scripts import each other."""
    monkeypatch.syspath_prepend("benchmarks")
    return __import__


def test_both_trainers_take_the_same_steps_and_the_ratio_is_of_one_round(load, tmp_path) -> None:
    throughput = load("throughput")
    job = {"tokens": 128, "shapes": [[2, 64, 32]], "vocab_size": 1000, "warmup": 1, "steps": 2}
    job |= {"device": "cpu", "results": str(tmp_path / "results.jsonl")}
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


def test_every_part_of_the_gpu_benchmark_runs_on_a_cpu(load, tiny_corpus, capsys) -> None:
    gpu = load("gpu")
    gpu.main(["--cpu", "--tiny", "--corpus", str(tiny_corpus.folder)])
    said = capsys.readouterr().out
    assert "FAILED" not in said
    assert "no time is left" not in said
    assert re.findall(r"== (\w+)", said) == list(gpu.PARTS)
    assert ": the same" in said
    assert "two runs equal" in said


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
    made = {"notes": [], "seconds": 1.0, "formats": {"share": "{:.0%}"}}
    text = reporting.write_report(tmp_path, "time", "Time", {"Where": table}, **made)
    assert text == (tmp_path / "time.md").read_text("utf-8")
    assert "| wall time | " in text
    report = json.loads((tmp_path / "time.json").read_text("utf-8"))
    assert report["tables"]["Where"][-1]["share"] == 1.0


def test_the_soak_sees_a_leak_at_the_depth_where_it_is_and_forgives_a_growth(load) -> None:
    soak = load("soak")
    looks = pd.Series(range(720))
    depths = 2 + 2 * (looks >= 360)
    memory = 200 * depths + looks % 7
    constant = {"depth": depths, "memory": memory, "files": 20, "threads": 9}
    flat = pd.DataFrame({"seconds": 5.0 * looks, **constant})
    assert soak.judge(flat)["MiB an hour"].abs().max() < 1
    is_deep = flat.depth == 4
    leaking = flat.assign(
        memory=flat.memory + is_deep * flat.seconds / 180,
        files=flat.files + is_deep * flat.index // 50,
    )
    found = soak.judge(leaking)
    assert found["MiB an hour"].tolist() == pytest.approx([0, 20], abs=1)
    assert (found["more files"] > 0).tolist() == [False, True]


def test_the_fuzzer_counts_what_is_not_a_sentence(load, tmp_path, monkeypatch) -> None:
    fuzz = load("fuzz")
    (tmp_path / "recipe").mkdir()
    recipe = tmp_path / "recipe" / "recipe.yaml"
    recipe.write_text(load_recipe("demo").to_yaml(), "utf-8")
    run = functools.partial(fuzz.run_case, "recipe", tmp_path)
    assert run(draw=None)[0] == "accepted"
    assert {run(draw=random.Random(seed))[0] for seed in range(20)} <= {"accepted", "refused"}
    monkeypatch.setattr(fuzz, "read", lambda *_: 1 / 0)
    outcome, said = run(draw=random.Random(0))
    assert outcome == "failed"
    assert "ZeroDivisionError" in said
    monkeypatch.setattr(fuzz, "read", lambda _, folder, *__: (folder / "other").touch())
    assert run(draw=random.Random(0))[0] == "failed"
