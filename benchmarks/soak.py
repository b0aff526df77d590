"""Train for an hour, a checkpoint every minute, and see whether anything piles up.

    python benchmarks/soak.py --budget 60m

Runs `stackbert pretrain` in a process of its own, small-cpu's model grown 1 → 2 → 4 → 8, and reads
its memory, open files and threads from /proc every few seconds. A growth takes memory once, as it
should, so each depth is judged by itself: in the second half of its readings a straight line
through the memory must not rise by more than --leak MiB an hour, and the median of open files and
of threads must not be higher at the end than at the beginning. Exit code 1 if something rises.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import reporting
from overhead import recipe_at
from stackbert.corpus.build import build_corpus
from stackbert.demo import write_factbook

FEWEST = 10
"""Readings in half a stage, below which a line through them says nothing."""


def reading(process: int, run: Path) -> dict[str, Any]:
    """What a look at the process and its run directory sees; memory in MiB."""
    proc = Path("/proc") / str(process)
    lines = (proc / "status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines if ":" in line)
    ledger = run / "metrics.jsonl"
    rows = ledger.read_bytes()[-8192:].split(b"\n") if ledger.exists() else []
    steps = [row for row in rows if row.startswith(b'{"kind": "step"') and row.endswith(b"}")]
    return {
        "depth": json.loads(steps[-1])["depth"] if steps else 0,
        # Without RssFile: the pages of the mapped corpus are not the process' own.
        "memory": int(status["RssAnon"].split()[0]) / 1024,
        "files": len(list((proc / "fd").iterdir())),
        "threads": int(status["Threads"]),
    }


def watch(command: list[str], run: Path, every: float) -> pd.DataFrame:
    """Train, and look every few seconds; one row a look."""
    begun, rows, log = time.monotonic(), [], run.with_name("log.txt")
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            while process.poll() is None:
                seconds = time.monotonic() - begun
                # Not begun yet, just ended, or a line that is half-written.
                with contextlib.suppress(OSError, KeyError, ValueError):
                    rows.append({"seconds": seconds, **reading(process.pid, run)})
                time.sleep(every)
        finally:
            process.kill()
            process.wait()
    if process.returncode:
        sys.exit(f"The training failed:\n{log.read_text('utf-8', 'replace')}")
    found = pd.DataFrame(rows)
    return found[found.depth > 0]


def judge(readings: pd.DataFrame) -> pd.DataFrame:
    """One row a depth, on the second half of its readings."""
    rows = []
    for depth, own in readings.groupby("depth"):
        half = own.iloc[len(own) // 2 :]
        third = max(1, len(half) // 3)
        row = {"depth": depth, "minutes": (own.seconds.iloc[-1] - own.seconds.iloc[0]) / 60}
        row["memory, MiB"] = half.memory.median()
        if len(half) >= FEWEST:
            row["MiB an hour"] = 3600 * np.polyfit(half.seconds, half.memory, 1)[0]
        for name in ("files", "threads"):
            row[name] = half[name].median()
            row[f"more {name}"] = half[name].tail(third).median() - half[name].head(third).median()
        rows.append(row)
    columns = ["depth", "minutes", "memory, MiB", "MiB an hour"]
    return pd.DataFrame(rows, columns=[*columns, "files", "more files", "threads", "more threads"])


def main() -> None:
    """Train, look, judge, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--budget", default="60m")
    add("--leak", type=float, default=16.0, help="MiB an hour by which memory may rise")
    add("--out", type=Path, default=reporting.RESULTS, help="folder of the report")
    given = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        write_factbook(folder / "text.txt")
        build_corpus(folder / "corpus", text=folder / "text.txt", vocab_size=2048, validation=0.05)
        recipe = recipe_at("small-cpu", [1, 2, 4, 8], ["checkpoint={every_minutes: 1}"])
        (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
        command = [sys.executable, "-m", "stackbert", "pretrain", str(folder / "recipe.yaml")]
        command += ["--corpus", str(folder / "corpus"), "--out", str(folder / "run")]
        readings = watch([*command, "--budget", given.budget], folder / "run", 5.0)
    table = judge(readings)
    rises = (table["MiB an hour"] > given.leak) | (table.filter(like="more ") > 0).any(axis=1)
    at = ", ".join(map(str, table.depth[rises]))
    notes = [f"{len(readings):,} looks.", f"At depth {at} something rises." if at else "All flat."]
    report = reporting.write_report(
        given.out,
        "soak",
        "Memory, files and threads over time",
        {"Second half of each depth": table},
        notes=notes,
        seconds=time.monotonic() - begun,
        formats={"minutes": "{:.1f}", "memory, MiB": "{:,.0f}", "MiB an hour": "{:+.1f}"},
    )
    print(report)
    sys.exit(bool(rises.any()))


if __name__ == "__main__":
    main()
