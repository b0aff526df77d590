"""The benchmark of the input pipeline runs, and what it reports adds up."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    script = BENCHMARKS / "pipeline.py"
    return subprocess.run([sys.executable, script, *words], capture_output=True, text=True)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("results")
    done = run("--smoke", "--out", folder)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in folder.iterdir()} == {
        "pipeline-smoke.json",
        "pipeline-smoke.md",
    }
    found = json.loads((folder / "pipeline-smoke.json").read_text("utf-8"))
    return found | {"text": (folder / "pipeline-smoke.md").read_text("utf-8")}


def test_the_report_says_what_was_run_on_what(report):
    assert report["smoke"]
    assert "these figures say nothing" in report["text"]
    assert report["command"].startswith("python benchmarks/pipeline.py --smoke")
    for fact in (report["command"], report["date"], report["machine"]["processor"]):
        assert fact in report["text"]
    for table in report["tables"]:
        assert table["rows"]
        assert all(len(row) == len(table["columns"]) for row in table["rows"])


def test_batches_are_timed_at_every_shape_with_and_without_pairs(report):
    shapes = report["results"]["batches"]
    assert [(one["rows"], one["sequence"], one["pairs"]) for one in shapes] == [
        (4, 16, False),
        (4, 16, True),
        (2, 64, False),
        (2, 64, True),
    ]
    for one in shapes:
        assert len(one["rounds"]) == 2
        rates = [r["batches"] * one["rows"] * one["sequence"] / r["wall"] for r in one["rounds"]]
        found = one["tokens_per_wall_second"]
        assert (found["least"], found["most"]) == pytest.approx((min(rates), max(rates)))
        assert found["least"] <= found["median"] <= found["most"]
        batches = one["batches_per_wall_second"]["median"]
        assert batches * one["rows"] * one["sequence"] == pytest.approx(found["median"])
        assert all(0 < r["cpu"] < 2 * r["wall"] + 0.1 for r in one["rounds"])


def test_a_build_and_bare_encoding_give_the_same_tokens_of_the_same_documents(report):
    builds = report["results"]["builds"]
    assert list(builds) == ["build", "given", "encode"]
    rounds = [one for contender in builds.values() for one in contender]
    assert len(rounds) == 6
    (tokens,) = {one["tokens"] for one in rounds}
    (documents,) = {one["documents"] for one in rounds}
    assert documents == 30
    assert tokens > 400 * documents


def test_the_phases_of_a_build_are_all_of_its_time(report):
    names = {
        "build": ["opening", "reading", "learning", "tokenising"],
        "given": ["opening", "tokenising"],
    }
    for contender, phases in names.items():
        for one in report["results"]["builds"][contender]:
            assert list(one["phases"]) == phases
            assert min(one["phases"].values()) >= 0
            assert sum(one["phases"].values()) == pytest.approx(one["seconds"])


def test_ratios_compare_the_same_round_and_memory_is_the_builds_own(report):
    builds, ratios = report["results"]["builds"], report["results"]["times_encode"]
    both = zip(builds["build"], builds["encode"], strict=True)
    each = [one["seconds"] / bare["seconds"] for one, bare in both]
    assert (ratios["build"]["least"], ratios["build"]["most"]) == (min(each), max(each))
    assert ratios["encode"]["median"] == 1
    for contender in builds.values():
        # A Python with numpy is 20 MB and more, one with torch 200.
        assert all(2e7 < one["peak_memory"] < 1.8e8 for one in contender)


def test_what_cannot_be_read_is_a_sentence(tmp_path):
    for words in (["--corpus", tmp_path], ["--text", tmp_path / "missing.txt"]):
        done = run(*words, "--out", tmp_path / "out", "--tokens", "1", "--rounds", "1")
        assert done.returncode == 1
        assert str(words[1]) in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
