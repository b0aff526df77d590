"""Measuring and training in processes: stopped, resumed, refused, left alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from comparison_helpers import scratch_of, tiny_recipe

from stackbert.comparison import calibration, processes
from stackbert.comparison.compare import compare
from stackbert.comparison.processes import environment, last_line, threads_each, train_all
from stackbert.comparison.results import evaluations_of
from stackbert.errors import Interrupted, RunError, UserError
from stackbert.pretraining.ledger import read_ledger
from stackbert.pretraining.run import pretrain, read_run
from stackbert.recipes import parse_recipe


@pytest.fixture
def one_thread():
    """In this process as in those it starts: rounding depends on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_comparison_measures_trains_and_equals_one_without(
    factbook_corpus, tmp_path: Path, monkeypatch, one_thread
) -> None:
    def ask(what: str, request: dict[str, Any], *_: object) -> list[dict[str, Any]]:
        answer = calibration._answer(what, json.loads(json.dumps(request)))
        return [json.loads(json.dumps(answer))]

    monkeypatch.setattr(calibration, "_ask", ask)  # starting a process takes seconds
    monkeypatch.setattr(calibration, "ROUNDS", 1)
    monkeypatch.setattr(calibration, "PATIENCE", 0.0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    options = {"variants": ["stack"], "seeds": 1, "budget": "6steps"}
    folder = tmp_path / "comparison"
    comparison = compare(tiny_recipe(), corpus=factbook_corpus, out=folder, **options)
    assert comparison.missing() == []
    for run in comparison.runs.itertuples():
        place = folder / "runs" / run.folder
        own = comparison.results[comparison.results["variant"] == run.variant]
        # The table counts the tokens and FLOPs that the run counts.
        ledger = read_ledger(place)
        last = ledger[ledger["kind"] == "evaluation"].iloc[-1]
        assert own["tokens"].iloc[-1] == last["tokens"]
        assert own["flops"].iloc[-1] == pytest.approx(last["flops"], rel=1e-6)
    alone = tmp_path / "alone"  # of the last run, which grows
    pretrain(read_run(place).recipe, corpus=factbook_corpus, out=alone)
    a, b = (evaluations_of(each, comparison.reference) for each in (place, alone))
    assert a.equals(b)

    steps = comparison.reference.steps
    assert list(steps["depth"]) == [1, 2, 4]
    assert list(steps["micro_batch"]) == [16, 16, 16]
    assert steps["flops"].is_monotonic_increasing
    assert (steps["seconds"] > 0.0).all()
    assert comparison.reference.growth_seconds.keys() == {(1, 2), (2, 4)}


def test_what_a_measuring_process_refuses_is_said(tmp_path: Path) -> None:
    request = {"recipe": tiny_recipe().model_dump(mode="json") | {"nmae": "x"}}
    with pytest.raises(UserError, match="there is no field 'nmae'"):
        calibration._ask("measure", request, 1, 1)


def test_the_table_is_of_ratios_within_each_process(monkeypatch) -> None:
    asked = []

    def answer(what: str, request: dict[str, Any], threads: int, processes: int) -> list[Any]:
        asked.append((what, threads, processes))
        if what == "autotune":
            recipe = parse_recipe(request["recipe"], "measured")
            stages = tuple(s.model_copy(update={"micro_batch": 8}) for s in recipe.stages)
            tuned = recipe.model_copy(update={"stages": stages})
            return [{"recipe": tuned.model_dump(mode="json"), "machine": {}, "flops": [1, 2, 4]}]
        # Depths 1, 2 and 4, then the two growths; the second process is twice as slow.
        return [[1.0, 2.0, 4.0, 0.4, 0.8], [2.2, 4.0, 8.0, 0.8, 1.6]]

    monkeypatch.setattr(calibration, "_ask", answer)
    monkeypatch.setattr(calibration, "ROUNDS", 1)
    recipe, said = tiny_recipe(), []
    options = {"jobs": 2, "threads": 3, "seconds": None, "say": said.append}
    found = calibration.calibrate(None, [scratch_of(recipe), recipe], Path(), **options)
    assert asked == [("autotune", 3, 1), ("measure", 3, 2)]
    assert list(found.steps["seconds"]) == pytest.approx([6 * (0.25 + 0.275) / 2, 3.0, 6.0])
    assert list(found.steps["fastest"]) == pytest.approx([1.5, 3.0, 6.0])
    assert list(found.steps["slowest"]) == pytest.approx([1.65, 3.0, 6.0])
    assert list(found.steps["readings"]) == [2, 2, 2]
    assert found.growth_seconds == pytest.approx({(1, 2): 0.6, (2, 4): 1.2})
    assert "3000 ms a step at depth 2" in said[-1]

    # What is measured later is brought to the first speed.
    first = found.model_copy(update={"steps": found.steps[2:], "growths": found.growths[1:]})
    first = calibration.Reference(**dict(first) | {"steps": first.steps.assign(seconds=1.5)})
    later = calibration.calibrate(first, [scratch_of(recipe), recipe], Path(), **options)
    seconds = {kind.depth: row.seconds for kind, row in later.by_kind.items()}
    assert seconds == pytest.approx({4: 1.5, 1: 6 * (0.25 + 0.275) / 8, 2: 0.75})
    assert later.growth_seconds == pytest.approx({(2, 4): 1.2, (1, 2): 0.15})
    assert calibration.calibrate(later, [recipe], Path(), **options) is later


CHILD = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit("stackbert: Stopped at step 7. It resumes."))
print("began", flush=True)
time.sleep(60 if "long" in sys.argv[1] else 0)
print("stackbert: It holds thesis.tex.", flush=True)
sys.exit({"refused": 2, "failed": 1}.get(sys.argv[1], 0))
"""


@pytest.fixture
def children(tmp_path: Path, monkeypatch):
    """Trains runs that are no runs, as the real ones take seconds to start."""

    def start(run: Path, *_: object) -> subprocess.Popen[bytes]:
        with run.with_name(run.name + ".log").open("wb") as log:
            words = [sys.executable, "-c", CHILD, run.name]
            return subprocess.Popen(words, stdout=log, stderr=log)

    monkeypatch.setattr(processes, "_start", start)
    return lambda *names, jobs: train_all(
        [tmp_path / name for name in names], tmp_path, jobs=jobs, threads=1
    )


def test_a_run_that_fails_does_not_stop_the_others(children) -> None:
    ended = {run.name: failure for run, _, failure in children("failed", "b", "c", jobs=2)}
    assert ended == {"failed": "failed failed: It holds thesis.tex.", "b": "", "c": ""}


def test_a_run_that_is_refused_ends_the_comparison_with_its_sentence(
    children, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=r"refused failed: It holds thesis\.tex\."):
        list(children("refused", "other", jobs=1))
    assert not (tmp_path / "other.log").exists()


def test_a_stop_is_passed_on_to_the_runs_side_by_side(children, tmp_path: Path) -> None:
    logs = [tmp_path / f"long-{n}.log" for n in (1, 2)]
    ending = children("short", "long-1", "long-2", "long-3", jobs=3)
    assert next(ending)[0].name == "short"
    while not all("began" in log.read_text() for log in logs):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)  # train_all has its handler in place
    with pytest.raises(Interrupted, match=r"3 of 4 runs .* Run the same command again") as stopped:
        next(ending)
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    for log in logs:
        assert last_line(log.with_suffix("")) == "Stopped at step 7. It resumes."


def test_a_run_ends_when_the_process_that_started_it_is_gone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stackbert.comparison.processes", "pretrain", "demo"]
    options = ["--corpus", str(tmp_path), "--out", str(tmp_path / "run")]
    with subprocess.Popen([*command, *options], stdin=subprocess.PIPE, text=True) as run:
        run.stdin.close()  # as the system does for a process that was killed
        assert run.wait(timeout=60) == -signal.SIGTERM


def test_jobs_share_the_cores() -> None:
    cores = len(os.sched_getaffinity(0))
    assert (threads_each(1), threads_each(2 * cores)) == (cores, 1)
    assert environment(3)["OMP_NUM_THREADS"] == "3"
