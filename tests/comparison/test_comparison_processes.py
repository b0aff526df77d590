"""Measuring and training in processes: stopped, killed, resumed, refused, left alone."""

import functools
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from comparison_helpers import scratch_of, table, tiny_recipe

from stackbert.comparison import calibration, processes
from stackbert.comparison import compare as compare_module
from stackbert.comparison.compare import compare
from stackbert.comparison.processes import last_line, train_all
from stackbert.comparison.reference import Reference
from stackbert.comparison.results import evaluations_of
from stackbert.errors import Interrupted, RunError, UserError
from stackbert.growth.operators import OPERATORS, Operator
from stackbert.pretraining.ledger import read_ledger
from stackbert.pretraining.record import read_run
from stackbert.pretraining.run import pretrain
from stackbert.recipes import parse_recipe
from tiny_runs import Child


class Forked(Child):
    """A run in a forked process, which does not have to import torch; it waits as the real one."""

    def __init__(self, run: Path, corpus: Path, _: int) -> None:
        def work() -> None:
            os.dup2(processes.lifeline(), 0)
            sys.argv = ["x", "pretrain", f"{run}.yaml", "--corpus", str(corpus), "--out", str(run)]
            runpy.run_module("stackbert.comparison.processes", run_name="__main__")

        super().__init__(run.with_name("forked.txt"), work)

    def poll(self) -> int | None:
        self.returncode = self._process.exitcode
        return self.returncode


def test_a_comparison_measures_trains_and_equals_one_without(
    factbook_corpus, tmp_path: Path, monkeypatch
) -> None:
    def ask(what: str, request: dict[str, Any], *_: object) -> list[dict[str, Any]]:
        answer = calibration._answer(what, json.loads(json.dumps(request)))
        return [json.loads(json.dumps(answer))]

    monkeypatch.setattr(processes, "_start", Forked)
    monkeypatch.setattr(calibration, "_ask", ask)
    monkeypatch.setattr(calibration, "ROUNDS", 1)
    monkeypatch.setattr(calibration, "PATIENCE", 0.0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    recipe = tiny_recipe(stages=[{"depth": 1, "steps": 40}, {"depth": 2, "steps": 40}])
    options = {"variants": ["stack"], "seeds": 1, "budget": "6steps"}
    folder = tmp_path / "comparison"
    comparison = compare(recipe, corpus=factbook_corpus, out=folder, **options)
    assert comparison.missing() == []
    for run in comparison.runs.itertuples():
        own = comparison.results[comparison.results["variant"] == run.variant]
        # The table counts the tokens and FLOPs that the run counts.
        ledger = read_ledger(folder / "runs" / run.folder)
        last = ledger[ledger["kind"] == "evaluation"].iloc[-1]
        assert own["flops"].iloc[-1] == last["flops"]
        assert own["tokens"].iloc[-1] == last["tokens"]
    # The run in a process is the one that `pretrain` makes of its recipe.
    place, alone = folder / "runs" / "stack-100-seed0", tmp_path / "alone"
    pretrain(read_run(place).recipe, corpus=factbook_corpus, out=alone)
    found, again = (evaluations_of(each, comparison.reference) for each in (place, alone))
    assert found["loss"].tolist() == again["loss"].tolist()
    steps = comparison.reference.steps
    layer = 4 * 16 * 17 + 32 * 17 + 16 * 33 + 2 * 2 * 16  # attention, feed-forward, norms
    columns = steps[["depth", "micro_batch", "parameters"]]
    assert columns.to_numpy().tolist() == [[n, 16, n * layer] for n in (1, 2)]
    assert (steps["seconds"] > 0.0).all()
    assert comparison.reference.growth_seconds.keys() == {(1, 2)}


def test_an_operator_that_only_this_process_knows_is_refused(
    factbook_corpus, tmp_path: Path, monkeypatch
) -> None:
    mine = Operator("mine", lambda old, new: [n % old for n in range(new)])
    monkeypatch.setitem(OPERATORS, "mine", mine)
    with pytest.raises(UserError, match=r"do not know 'mine', .*growth\.layers"):
        compare(tiny_recipe(), corpus=factbook_corpus, out=tmp_path / "out", variants=["mine"])


def test_an_interrupt_ends_the_measuring_processes(monkeypatch) -> None:
    began: list[subprocess.Popen] = []

    def start(command: list[str], **options: Any) -> subprocess.Popen:
        began.append(popen([sys.executable, "-c", "import time; time.sleep(60)"], **options))
        if len(began) == 2:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
        return began[-1]

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", start)
    signal.signal(signal.SIGALRM, interrupted)
    with pytest.raises(KeyboardInterrupt):
        calibration._ask("measure", {}, 1, 2)
    assert [process.returncode for process in began] == [-signal.SIGKILL] * 2


def test_the_table_is_of_ratios_within_each_process(monkeypatch) -> None:
    asked = []

    def answer(what: str, request: dict[str, Any], threads: int, processes: int) -> list[Any]:
        asked.append((what, threads, processes))
        if what == "autotune":
            recipe = parse_recipe(request["recipe"], "measured")
            stages = tuple(s.model_copy(update={"micro_batch": 8}) for s in recipe.stages)
            tuned = recipe.model_copy(update={"stages": stages}).model_dump(mode="json")
            return [{"recipe": tuned, "machine": {}, "flops": [1, 2, 4], "parameters": [1, 2, 4]}]
        # Depths 1, 2 and 4, then the two growths; the second process is twice as slow.
        return [[1.0, 2.0, 4.0, 0.4, 0.8], [2.2, 4.0, 8.0, 0.8, 1.6]]

    monkeypatch.setattr(calibration, "_ask", answer)
    monkeypatch.setattr(calibration, "ROUNDS", 1)
    recipes, said = [scratch_of(tiny_recipe()), tiny_recipe()], []
    options = {"jobs": 2, "threads": 3, "seconds": None, "say": said.append}
    found = calibration.calibrate(None, recipes, Path(), **options)
    assert asked == [("autotune", 3, 1), ("measure", 3, 2)]
    shares = [(0.25 + 0.275) / 2, 0.5, 1.0]
    assert list(found.steps["seconds"]) == pytest.approx([6.0 * share for share in shares])
    assert list(found.steps["fastest"]) == pytest.approx([1.5, 3.0, 6.0])
    assert list(found.steps["slowest"]) == pytest.approx([1.65, 3.0, 6.0])
    assert found.growth_seconds == pytest.approx({(1, 2): 0.6, (2, 4): 1.2})
    assert "3000 ms a step at depth 2" in said[-1]

    # What is measured later is brought to the first speed.
    parts = {"steps": found.steps[2:].assign(seconds=1.5), "growths": found.growths[1:]}
    first = Reference(**dict(found) | parts)
    later = calibration.calibrate(first, recipes, Path(), **options)
    seconds = {kind.depth: row.seconds for kind, row in later.by_kind.items()}
    assert seconds == pytest.approx({1: 1.5 * shares[0], 2: 0.75, 4: 1.5})
    assert later.growth_seconds == pytest.approx({(1, 2): 0.15, (2, 4): 1.2})
    assert calibration.calibrate(later, recipes, Path(), **options) is later


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
        with Path(f"{run}.log").open("wb") as log:
            words = [sys.executable, "-c", CHILD, run.name]
            return subprocess.Popen(words, stdout=log, stderr=log)

    monkeypatch.setattr(processes, "_start", start)
    return lambda *names, jobs: train_all(
        [tmp_path / name for name in names], tmp_path, jobs=jobs, threads=1
    )


def test_a_failed_run_stops_no_other_and_a_refused_one_all(children, tmp_path: Path) -> None:
    ended = {run.name: failure for run, _, failure in children("failed", "b", "c", jobs=2)}
    assert ended == {"failed": "failed failed: It holds thesis.tex.", "b": "", "c": ""}
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


def test_a_killed_comparison_takes_its_runs_with_it_and_resumes(
    factbook_corpus, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(compare_module, "calibrate", lambda _, recipes, *__, **___: table(*recipes))
    recipe = tiny_recipe(evaluation__every_steps=100, log_every=10)
    options = {"corpus": factbook_corpus.folder, "out": tmp_path / "out", "variants": []}
    work = functools.partial(compare, recipe, seeds=1, budget="100steps", **options)
    run = tmp_path / "out" / "runs" / "scratch-100-seed0"
    killed = Child(tmp_path / "said.txt", processes.lifeline.cache_clear, work)
    while not (run / "metrics.jsonl").exists():
        time.sleep(0.05)
    killed.kill()
    monkeypatch.setattr(processes, "_start", Forked)
    work()  # at once: it waits for the run to end
    stopped = [line for line in Path(f"{run}.log").read_text().splitlines() if "Stopped" in line]
    assert len(stopped) == 1
    steps = read_ledger(run)["step"].dropna()
    assert steps.is_monotonic_increasing
    assert steps.iloc[-1] == 100
    assert "of 100; everything is saved" in stopped[0]
