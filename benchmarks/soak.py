"""Train for an hour, a checkpoint every minute, and see whether anything piles up.

    python benchmarks/soak.py --corpus corpus --budget 60m

Runs `stackbert pretrain` in a process of its own, small-cpu's model grown 1 → 2 → 4 → 8, and looks
at it from outside every few seconds: memory, open files, threads, and what lies in the run
directory. A growth takes memory once, rightly; so each stage is judged by itself. In the second
half of a stage's readings a straight line through the memory must rise by less than --leak MiB an
hour, and the open files and threads must not be more at the end than at the beginning.

The report goes to benchmarks/results/ as JSON and Markdown, the plot as SVG and PNG.

Exit code 0 if all is flat, 1 if something grows.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import reporting
import stackbert as sb
from made_up import write_made_up_text
from overhead import recipe_of
from reporting import Report, Table

MIB = 1 << 20
FEWEST = 10
"""Readings in half a stage, below which a line through them says nothing."""


@dataclass(frozen=True)
class Reading:
    """What one look at the process and its folder saw."""

    seconds: float
    """Since the process was started."""
    depth: int
    memory: int
    """Resident, without the pages of mapped files, which are the corpus: bytes."""
    mapped: int
    """Resident pages of mapped files: bytes."""
    files: int
    """Open file handles."""
    threads: int
    checkpoints: int
    disk: int
    """Bytes in the run directory."""


@dataclass(frozen=True)
class Stage:
    """The second half of a stage's readings."""

    depth: int
    minutes: float
    memory: float
    """Median, bytes."""
    drift: float | None
    """Bytes an hour, by least squares; None of too few readings."""
    files: tuple[int, int]
    """Medians of the first and the last third."""
    threads: tuple[int, int]


def watch(command: list[str], run: Path, every: float) -> list[Reading]:
    """Run a training to its end, looking at it every so many seconds.

    Raises:
        SystemExit: it failed.
    """
    log = run.with_name("log")
    found: list[Reading] = []
    with log.open("wb") as output:
        begun = time.monotonic()
        process = subprocess.Popen(
            [*command, "--out", str(run)], stdout=output, stderr=subprocess.STDOUT
        )
        try:
            while process.poll() is None:
                depth = _depth(run / "metrics.jsonl")
                if depth:
                    found += _reading(process.pid, run, depth, time.monotonic() - begun)
                time.sleep(every)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if process.returncode:
        sys.exit(f"The training failed:\n{log.read_text(encoding='utf-8', errors='replace')}")
    return found


def _depth(ledger: Path) -> int:
    """Depth of the last step in the ledger; 0 before the first."""
    if not ledger.exists():
        return 0
    with ledger.open("rb") as file:
        file.seek(max(0, ledger.stat().st_size - 8192))
        lines = file.read().split(b"\n")[:-1]
    for line in reversed(lines[1:]):
        row = json.loads(line)
        if row["kind"] == "step":
            return int(row["depth"])
    return 0


def _reading(pid: int, run: Path, depth: int, seconds: float) -> list[Reading]:
    """One reading; none of a process that has just ended."""
    proc = Path("/proc") / str(pid)
    try:
        status = dict(
            line.split(":", 1) for line in (proc / "status").read_text().splitlines() if ":" in line
        )
        files = len(list((proc / "fd").iterdir()))
        own, mapped = (int(status[name].split()[0]) << 10 for name in ("RssAnon", "RssFile"))
    except (FileNotFoundError, ProcessLookupError, KeyError):
        return []
    checkpoints = len(list((run / "checkpoints").glob("step-????????")))
    threads = int(status["Threads"])
    return [Reading(seconds, depth, own, mapped, files, threads, checkpoints, _size(run))]


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # a checkpoint that was removed just now
            continue
    return total


def stages_of(readings: list[Reading]) -> list[Stage]:
    """What the second half of each stage's readings says."""
    found = []
    for depth in sorted({reading.depth for reading in readings}):
        own = [reading for reading in readings if reading.depth == depth]
        half = own[len(own) // 2 :]
        third = max(1, len(half) // 3)
        ends = (half[:third], half[-third:])
        drift = None
        if len(half) >= FEWEST:
            line = statistics.linear_regression(
                [r.seconds for r in half], [float(r.memory) for r in half]
            )
            drift = 3600.0 * line.slope
        found.append(
            Stage(
                depth=depth,
                minutes=(own[-1].seconds - own[0].seconds) / 60.0,
                memory=statistics.median(r.memory for r in half),
                drift=drift,
                files=_medians([[r.files for r in end] for end in ends]),
                threads=_medians([[r.threads for r in end] for end in ends]),
            )
        )
    return found


def _medians(ends: list[list[int]]) -> tuple[int, int]:
    first, last = (int(statistics.median(values)) for values in ends)
    return first, last


def faults_of(stages: list[Stage], leak: float) -> list[str]:
    """What is not flat, as sentences; a rise at any depth counts."""
    found = []
    for stage in stages:
        if stage.drift is not None and stage.drift > leak:
            found.append(
                f"At depth {stage.depth} the memory rises by {stage.drift / MIB:.1f} MiB an hour."
            )
        for what, (first, last) in (("open files", stage.files), ("threads", stage.threads)):
            if last > first:
                found.append(f"At depth {stage.depth} the {what} went from {first} to {last}.")
    return found


def draw(readings: list[Reading], folder: Path) -> None:
    """The plot: memory over file handles over minutes, a colour a depth."""
    import altair as alt
    import vl_convert

    rows = [
        {
            "minutes": reading.seconds / 60.0,
            "depth": str(reading.depth),
            "memory": reading.memory / MIB,
            "handles": reading.files,
        }
        for reading in readings
    ]
    base = alt.Chart(alt.Data(values=rows)).mark_line().properties(width=760, height=180)
    minutes = alt.X("minutes:Q", title="minutes since the start")
    depth = alt.Color("depth:N", title="depth")
    chart = alt.vconcat(
        *(
            base.encode(x=minutes, y=alt.Y(f"{field}:Q", title=title), color=depth)
            for field, title in (("memory", "memory, MiB"), ("handles", "open files"))
        )
    )
    svg = vl_convert.vegalite_to_svg(chart.to_json(), allowed_base_urls=[])
    (folder / "soak.svg").write_text(svg, encoding="utf-8")
    (folder / "soak.png").write_bytes(vl_convert.svg_to_png(svg, scale=2.0))


def table(stages: list[Stage]) -> Table:
    """What the report shows."""
    rows = tuple(
        (
            str(stage.depth),
            f"{stage.minutes:.1f}",
            f"{stage.memory / MIB:,.0f}",
            "too few" if stage.drift is None else f"{stage.drift / MIB:+.1f}",
            " → ".join(map(str, stage.files)),
            " → ".join(map(str, stage.threads)),
        )
        for stage in stages
    )
    columns = ("depth", "minutes", "memory, MiB", "drift, MiB/h", "open files", "threads")
    return Table("Second half of each stage", columns, rows)


def columns(readings: list[Reading]) -> dict[str, list[float]]:
    """The readings by field, which takes a fifth of the place."""
    rows = [{**asdict(reading), "seconds": round(reading.seconds, 1)} for reading in readings]
    return {name: [row[name] for row in rows] for name in rows[0]}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--corpus", type=Path, help="from 'stackbert corpus'; by default one of made-up text")
    add("--budget", help="60m")
    add("--recipe", default="small-cpu", help="whose model and batches; small-cpu")
    add("--depths", type=lambda t: [int(d) for d in t.split(",")], default=[1, 2, 4, 8])
    add("--set", action="append", default=[], metavar="FIELD=VALUE", help="of the recipe")
    add("--every", type=float, help="seconds between two looks; 5")
    add("--leak", type=float, default=16.0, help="MiB an hour that memory may rise by; 16")
    add("--out", type=Path, default=reporting.RESULTS, help="folder of the report")
    add("--smoke", action="store_true", help="a tiny model for seconds, to see that it runs")
    given = parser.parse_args()
    given.budget = given.budget or ("5s" if given.smoke else "60m")
    given.every = given.every or (0.05 if given.smoke else 5.0)
    return given


def main() -> None:
    """Train, look, judge, and write the report."""
    given = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped."))  # and end what was started
    if not Path("/proc/self/status").exists():
        sys.exit("This reads /proc, so it runs on Linux alone.")
    begun = time.monotonic()
    machine: dict[str, Any] = reporting.machine()
    given.set += ["checkpoint.every_minutes=1", "checkpoint.every_steps=null"]
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        corpus = given.corpus
        if corpus is None:
            write_made_up_text(folder / "text.txt", 60 if given.smoke else 3000)
            corpus = folder / "corpus"
            size = 512 if given.smoke else 8192
            text = [folder / "text.txt"]
            sb.build_corpus(corpus, text=text, vocab_size=size, validation=0.05)
        recipe = folder / "recipe.yaml"
        recipe.write_text(recipe_of(given).to_yaml(), encoding="utf-8")
        command = [sys.executable, "-m", "stackbert", "pretrain", str(recipe)]
        command += ["--corpus", str(corpus), "--budget", given.budget]
        run = folder / "run"
        readings = watch(command, run, given.every)
        steps = sb.load_recipe(run / "recipe.yaml").total_steps
    stages = stages_of(readings)
    faults = faults_of(stages, given.leak * MIB)
    most = max(readings, key=lambda reading: reading.disk)
    report = Report(
        "soak-smoke" if given.smoke else "soak",
        "An hour, a checkpoint every minute",
        (table(stages),),
        {
            "readings": columns(readings),
            "stages": [asdict(stage) for stage in stages],
            "faults": faults,
        },
        settings={
            "recipe": given.recipe,
            "depths": given.depths,
            "budget": given.budget,
            "leak_mib_an_hour": given.leak,
            "steps": steps,
            "niceness": os.nice(0),
        },
        machine=machine,
        notes=(
            f"{steps:,} steps; {len(readings):,} looks, one every {given.every:g} s. Niceness "
            f"{os.nice(0)}.",
            f"The run directory held {most.disk / 1e6:,.0f} MB at most, "
            f"{max(reading.checkpoints for reading in readings)} checkpoints at a time.",
            "Memory is what the process has for itself (RssAnon), without the pages of the mapped "
            "corpus. Drift: a straight line by least squares. Open files and threads: medians of "
            "the first and the last third.",
            " ".join(faults) or f"Nothing rises by more than {given.leak:g} MiB an hour.",
        ),
        seconds=time.monotonic() - begun,
        smoke=given.smoke,
    )
    path = report.write(given.out)
    draw(readings, given.out)
    print(f"{report.markdown()}\n{path}")
    if faults:
        sys.exit(1)


if __name__ == "__main__":
    main()
