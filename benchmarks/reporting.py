"""Reports of the benchmarks: a JSON file for programs and a Markdown table for people.

Both say what was run, when, with which versions and on what: a figure is worth nothing without.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import stackbert

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "accelerate", "numpy")


@dataclass(frozen=True)
class Table:
    """One table of a report."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """The table as Markdown, numbers to the right."""
        lines = [
            f"## {self.title}",
            "",
            f"| {' | '.join(self.columns)} |",
            f"|{'|'.join('---' if i == 0 else '---:' for i in range(len(self.columns)))}|",
            *(f"| {' | '.join(row)} |" for row in self.rows),
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class Report:
    """What a benchmark found."""

    benchmark: str
    """Its name, also that of the two files."""
    title: str
    tables: tuple[Table, ...]
    results: Any
    """Every figure as plain values; what the tables were made of."""
    settings: dict[str, Any]
    machine: dict[str, Any]
    """From `machine`."""
    notes: tuple[str, ...] = ()
    """Sentences that a reader of the tables must know."""
    seconds: float = 0.0
    """Wall time of the benchmark."""
    smoke: bool = False
    """Tiny shapes, to see that it runs: the figures say nothing."""
    command: str = field(default_factory=lambda: command_line(sys.argv))
    date: str = field(
        default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    )

    def markdown(self) -> str:
        """The report to read."""
        facts = [
            f"{self.date}, {self.seconds:,.0f} s in all.",
            "",
            f"    {self.command}",
            "",
            f"{_sentence(self.machine)}.",
        ]
        warning = ["**A smoke test on tiny shapes: these figures say nothing.**", ""]
        notes = [f"- {note}" for note in self.notes]
        parts = [
            f"# {self.title}",
            "",
            *(warning if self.smoke else []),
            *facts,
            "",
            *("\n\n".join(table.markdown() for table in self.tables)).splitlines(),
            *(["", *notes] if notes else []),
        ]
        return "\n".join(parts) + "\n"

    def write(self, folder: Path) -> Path:
        """Write NAME.json and NAME.md; the path of the first."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.benchmark}.json"
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text(self.markdown(), encoding="utf-8")
        return path


def machine() -> dict[str, Any]:
    """Versions and hardware, found without torch, which would warm up what is to be measured."""
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "commit": _commit(),
        "stackbert": stackbert.__version__,
        "python": platform.python_version(),
        **{name: version for name, version in versions.items() if version},
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "memory": _memory(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "load_before": round(os.getloadavg()[0], 2),
    }


def command_line(argv: Sequence[str]) -> str:
    """The command as typed, without the folders of anybody's disk."""

    def plain(word: str) -> str:
        option, equals, value = word.partition("=")
        if equals and option.startswith("--"):
            return f"{option}={plain(value)}"
        return Path(word).name if "/" in word else word

    words = [plain(word) for word in argv[1:]]
    return shlex.join(["python", f"benchmarks/{Path(argv[0]).name}", *words])


def milliseconds(seconds: float) -> str:
    """A duration with three figures that mean something."""
    value = 1000 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.3f}"


def _sentence(facts: dict[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in facts.items() if value)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    def git(*words: str) -> str:
        folder = Path(__file__).parent
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True)
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "--short", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "../src")
    except OSError:  # no git here
        return None
    return (commit + (" with changes" if changed else "")) or None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> str | None:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB"
    except (ValueError, OSError):
        return None
