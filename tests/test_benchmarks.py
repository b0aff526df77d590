"""The benchmarks run, and what their reports say adds up. Their figures are not judged here."""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Imports a module of the benchmarks, as the scripts do."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return __import__


@pytest.fixture
def job(load):
    contenders = load("contenders")
    contender = contenders.Contender("c-eager", "stackbert", "StackBERT", dropout=0.0)
    shape = contenders.Shape(1, 32, 16, 64)
    return contenders.Job(contender, (shape,), 100, None, warmup=1, steps=1, block=1)


def read_report(folder: Path, name: str) -> dict:
    report = json.loads((folder / f"{name}.json").read_text("utf-8"))
    table = (folder / f"{name}.md").read_text("utf-8")
    assert report["smoke"]
    assert "these figures say nothing" in table
    assert report["machine"]["torch"] == torch.__version__
    assert report["machine"]["processor"] in table
    for fact in ("date", "command"):
        assert report[fact] in table
    script = "overhead" if name.startswith("overhead") else "throughput"
    assert report["command"].startswith(f"python benchmarks/{script}.py ")
    assert str(folder.parent) not in report["command"] + table, "a folder of somebody's disk"
    for each in report["tables"]:
        assert each["rows"]
        assert all(len(row) == len(each["columns"]) for row in each["rows"])
    return report


def check_throughput(report: dict) -> None:
    figures = {each["contender"]: each for each in report["results"]["figures"]}
    assert list(figures) == ["b", "c-eager"]
    for each in figures.values():
        assert each["error"] is None
        (measured,) = each["rounds"]
        low, high = each["range_seconds"]
        assert 0 < low <= each["median_seconds"] <= high
        tokens = each["tokens_per_second"] * each["median_seconds"]
        assert tokens == pytest.approx(report["settings"]["tokens_a_step"])
        # A fresh model knows nothing: it guesses evenly among the 1,000 tokens.
        assert measured["loss"] == pytest.approx(math.log(1000), rel=0.1)
        assert 2e7 < measured["peak_memory"] < 2e10
    ours = figures["c-eager"]["rounds"][0]
    # 2 layers of width 64; embeddings of 1,024 and 512 and 2 rows; the head's transform and bias.
    layers = 2 * (4 * 64 * 65 + 2 * 4 * 64 * 64 + 5 * 64 + 4 * 64)
    assert ours["parameters"] == layers + (1024 + 512 + 2) * 64 + 64 * 65 + 4 * 64 + 1024
    assert ours["compiled"] is False
    assert 0 < figures["c-eager"]["mfu"] < 1.5
    assert figures["b"]["mfu"] is None
    (ratio,) = report["results"]["ratios"]
    quotient = figures["b"]["median_seconds"] / figures["c-eager"]["median_seconds"]
    assert (ratio["of"], ratio["to"], ratio["ratio"]) == ("b", "c-eager", pytest.approx(quotient))
    rates = report["results"]["machine"]["rates"]
    emulated = rates["bf16"] <= rates["fp32"]
    assert figures["b"]["rounds"][0]["precision"] == ("fp32" if emulated else "bf16")
    assert any("(b) runs in fp32" in note for note in report["notes"]) == emulated


def check_depths(report: dict) -> None:
    (line,) = report["results"]["lines"]
    assert (line["hidden"], line["sequence"]) == (32, 32)
    medians = {each["depth"]: each["median_seconds"] for each in report["results"]["figures"]}
    assert list(medians) == [1, 2, 3]
    off = [
        abs(1000 * second / (line["intercept_ms"] + line["ms_a_layer"] * depth) - 1)
        for depth, second in medians.items()
    ]
    assert line["largest_deviation_percent"] == pytest.approx(100 * max(off))
    assert f"intercept {line['intercept_ms']:.1f} ms" in report["notes"][0]


def check_overhead(report: dict) -> None:
    results = report["results"]
    seconds, wall = results["seconds"], results["wall"]
    assert {"training", "evaluation", "checkpoint", "growth"} <= set(seconds)
    assert all(spent >= 0 for spent in seconds.values())
    assert 0 < sum(seconds.values()) < wall < report["seconds"]
    outside = wall - seconds["training"] - seconds["evaluation"]
    assert results["outside_training_share"] == pytest.approx(outside / wall)
    shares = {row[0]: float(row[1].replace(",", "")) for row in report["tables"][0]["rows"]}
    assert set(seconds) < set(shares)
    around = results["before_pretrain"] + results["after_the_end"]
    assert results["before_pretrain"] > 0.2
    assert results["after_the_end"] >= 0
    missing = wall - sum(seconds.values()) - around
    assert shares["everything else"] == pytest.approx(missing, abs=0.02)
    assert -2.0 < missing < wall / 2
    steps = [(each["from"], each["to"]) for each in results["growths"]]
    assert steps == [(1, 2), (2, 4), (4, 8)]
    grown = sum(each["seconds"] for each in results["growths"])
    assert grown == pytest.approx(seconds["growth"])
    assert all(each["seconds"] > 0 for each in results["growths"])
    (short,) = results["starts"].values()
    assert all(each > 0 for each in short["seconds"])
    assert 0 < results["first_steps"]["seconds"] <= wall


@pytest.mark.skipif(not shutil.which("timeout"), reason="gpu.sh is for GNU/Linux")
def test_gpu_sh_runs_every_benchmark_on_a_cpu_and_the_reports_add_up(tmp_path: Path) -> None:
    """Each script with --smoke, in processes of their own, as on a GPU."""
    out = tmp_path / "results"
    done = subprocess.run(
        ["bash", str(BENCHMARKS / "gpu.sh"), "--smoke"],
        env=os.environ
        | {"OUT": str(out), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "LIMIT": "400"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    names = ("throughput-smoke", "depths-smoke", "overhead-smoke")
    suffixes = (".json", ".md")
    assert {p.name for p in out.iterdir()} == {name + end for name in names for end in suffixes}
    check_throughput(read_report(out, "throughput-smoke"))
    check_depths(read_report(out, "depths-smoke"))
    check_overhead(read_report(out, "overhead-smoke"))


@pytest.mark.parametrize("script", ["throughput.py", "overhead.py", "attention.py", "gpu.sh"])
def test_help_shows_an_example_at_once(script: str) -> None:
    runner = "bash" if script.endswith(".sh") else sys.executable
    done = subprocess.run(
        [runner, script, "--help"], cwd=BENCHMARKS, capture_output=True, text=True, check=True
    )
    assert f"{'bash' if runner == 'bash' else 'python'} benchmarks/{script}" in done.stdout


@pytest.mark.parametrize(
    ("variables", "words", "said"),
    [
        ({}, ["--quick"], "not '--quick'"),
        ({"PARTS": "depths speed"}, [], "no part 'speed'"),
        ({"WHEELS": "/nowhere"}, ["--smoke"], "/nowhere"),
    ],
)
def test_gpu_sh_refuses_what_it_does_not_know(variables, words, said, tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", str(BENCHMARKS / "gpu.sh"), *words],
        env=os.environ | {"OUT": str(tmp_path), "PYTHON": sys.executable} | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert "no GPU" not in done.stderr, "it went on"
    assert not list(tmp_path.iterdir())


def test_a_contender_past_the_deadline_is_ended_and_named(load, job, tmp_path: Path) -> None:
    turns = load("turns")
    processes = turns.Processes(tmp_path, "cpu", 1, within=0.2)
    figures = turns.measure(processes, [job], rounds=2, per_process=1)
    assert processes.left <= 0
    assert [(each.error, each.rounds) for each in figures] == [(turns.NO_TIME, [])]
    table, ratios = load("comparison").comparison(figures)
    assert "no time left" in table.rows[0]
    assert not ratios


def test_a_contender_that_fails_says_why_and_the_next_has_its_turn(
    load, job, tmp_path: Path
) -> None:
    turns = load("turns")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "manifest.json").write_text("{")
    processes = turns.Processes(tmp_path, "cpu", 1, within=100.0)
    jobs = [
        replace(job, corpus=str(tmp_path / name), contender=replace(job.contender, letter=name))
        for name in ("missing", "damaged")
    ]
    figures = turns.measure(processes, jobs, rounds=2, per_process=1)
    assert [each.error.split(": ")[0] for each in figures] == ["stackbert.errors.UserError"] * 2
    assert "is not a corpus" in figures[0].error
    assert "is damaged" in figures[1].error
    assert not any(each.rounds for each in figures)


def test_a_shape_that_ends_its_process_does_not_take_the_others_along(
    load, job, tmp_path: Path
) -> None:
    turns = load("turns")
    too_short = replace(job.shapes[0], sequence=4)
    processes = turns.Processes(tmp_path, "cpu", 1, within=300.0)
    both = replace(job, shapes=(too_short, job.shapes[0]))
    failed, whole = turns.measure(processes, [both], rounds=1, per_process=2)
    assert failed.shape == too_short
    assert failed.error
    assert not failed.rounds
    assert whole.error is None
    assert whole.median > 0


def test_a_batch_that_does_not_fit_is_cut_for_transformers_and_reported_for_us(
    load, job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No GPU is needed to run out of its memory: the error is torch's own."""
    contenders, one = load("contenders"), load("one_contender")
    tried = []

    def too_large(bench, shape, accumulation=1):
        tried.append(accumulation)
        if accumulation < 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return {"seconds": [1.0], "accumulation": accumulation}

    monkeypatch.setattr(one, "train_with_transformers", too_large)
    monkeypatch.setattr(one, "train_with_stackbert", too_large)
    assert one.measure(one.Bench(job, tmp_path), job.shapes[0]) == {"error": "out of memory"}
    theirs = replace(job, contender=contenders.Contender("a", "trainer", "Trainer"))
    (tmp_path / "split").rename(tmp_path / "ours")
    found = one.measure(one.Bench(theirs, tmp_path), job.shapes[0])
    assert found["accumulation"] == 4
    assert tried == [1, 1, 2, 4]
    two_rows = replace(job.shapes[0], tokens=32)
    (tmp_path / "split").rename(tmp_path / "theirs")
    bench = one.Bench(theirs, tmp_path)
    assert one.measure(bench, two_rows) == {"error": "out of memory"}


def test_the_clock_leaves_out_the_warm_up_and_reads_once_a_block(load, job) -> None:
    contenders = load("contenders")
    waited = []
    clock = contenders.Clock(
        replace(job, warmup=3, steps=6, block=3), lambda: waited.append(clock._done)
    )
    clock.start()
    for _ in range(9):
        clock.tick()
    assert len(clock.seconds) == 2
    assert clock.first_step is not None
    assert waited == [0, 1, 3, 6, 9]


def test_the_line_through_depths_is_that_of_least_squares(load) -> None:
    line = load("comparison").straight_line
    assert line([2, 4, 8, 12], [0.3 + 0.1 * d for d in (2, 4, 8, 12)]) == pytest.approx((0.3, 0.1))
    assert line([0, 1, 2], [0.0, 0.0, 3.0]) == pytest.approx((-0.5, 1.5))


def test_a_report_names_no_folder_of_the_machine(load) -> None:
    command = load("reporting").command_line(
        ["/home/me/stackbert/benchmarks/overhead.py", "--corpus", "/data/my corpus", "--steps", "3"]
    )
    assert command == "python benchmarks/overhead.py --corpus 'my corpus' --steps 3"
    assert load("reporting").command_line(["x.py", "--out=/a/b", "../c", "--set=lr=0.1"]) == (
        "python benchmarks/x.py --out=b c --set=lr=0.1"
    )


def test_a_reason_names_no_folder_of_the_machine(load, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("g++: error in /usr/lib/x/y.cpp\nUserError: /home/me/corpus is none of 1/2.")
    assert load("turns")._reason(1, log) == "UserError: corpus is none of 1/2."
