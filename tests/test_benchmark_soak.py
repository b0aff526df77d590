"""The soak sees what piles up, and runs."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MIB = 1 << 20


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return __import__("soak")


@pytest.fixture
def flat(soak):
    """An hour at two depths, a look every five seconds, memory up and down by a few MiB."""
    return [
        soak.Reading(
            seconds=5.0 * n,
            depth=2 if n < 360 else 4,
            memory=(400 if n < 360 else 600) * MIB + n % 7 * MIB,
            mapped=0,
            files=20 + (n % 5 == 0),
            threads=9,
            checkpoints=3,
            disk=0,
        )
        for n in range(720)
    ]


def test_memory_that_goes_up_and_down_or_up_at_a_growth_is_flat(soak, flat) -> None:
    stages = soak.stages_of(flat)
    assert [stage.depth for stage in stages] == [2, 4]
    assert [round(stage.memory / MIB) for stage in stages] == [403, 603]
    assert soak.faults_of(stages, 16 * MIB) == []


def test_a_leak_is_seen_at_the_depth_where_it_is(soak, flat) -> None:
    leaking = [
        replace(r, memory=r.memory + int(r.seconds / 3600 * 20 * MIB)) if r.depth == 4 else r
        for r in flat
    ]
    (fault,) = soak.faults_of(soak.stages_of(leaking), 16 * MIB)
    assert fault.startswith("At depth 4 the memory rises by ")
    assert float(fault.split()[-4]) == pytest.approx(20.0, abs=1.0)


@pytest.mark.parametrize("what", ["files", "threads"])
def test_handles_that_are_never_closed_are_seen(what: str, soak, flat) -> None:
    leaking = [replace(r, **{what: getattr(r, what) + int(r.seconds // 240)}) for r in flat]
    faults = soak.faults_of(soak.stages_of(leaking), 16 * MIB)
    assert [fault.split(" went")[0] for fault in faults] == [
        f"At depth {depth} the {'open files' if what == 'files' else what}" for depth in (2, 4)
    ]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the soak reads /proc")
def test_it_runs_and_draws(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "soak.py", "--smoke", "--depths", "1,2", "--out", tmp_path],
        capture_output=True,
        text=True,
        timeout=240,
    )
    report = json.loads((tmp_path / "soak-smoke.json").read_text("utf-8"))
    assert done.returncode == bool(report["results"]["faults"]), done.stdout + done.stderr
    readings = report["results"]["readings"]
    assert set(readings["depth"]) == {1, 2}
    assert min(readings["memory"]) > 50 * MIB
    assert min(readings["files"]) > 2
    assert (tmp_path / "soak.png").stat().st_size > 5000
    assert "open files" in (tmp_path / "soak.svg").read_text("utf-8")
