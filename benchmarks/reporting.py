"""Reports of the benchmarks: a JSON file for programs and Markdown for people.

Both say what was run, when, with which versions and on which machine.
"""

import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from stackbert.tables import cell_text

RESULTS = Path(__file__).parent / "results"


def write_report(
    folder: Path,
    name: str,
    title: str,
    tables: dict[str, pd.DataFrame],
    *,
    notes: Sequence[str],
    seconds: float,
    formats: dict[str, str],
) -> str:
    """Write NAME.json and NAME.md into `folder`; return the Markdown.

    `tables` are headings and their tables, `formats` how to show a column's values, `notes` what a
    reader must know.
    """
    # The command as typed, without the folders of anybody's disk.
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
    facts = {"command": command, "date": date, "seconds": round(seconds), **_machine()}
    lines = [f"# {title}", "", f"    {facts['command']}", ""]
    lines += [", ".join(f"{k} {v}" for k, v in facts.items() if k != "command" and v) + ".", ""]
    for heading, table in tables.items():
        rows = table.itertuples(index=False, name=None)
        lines += [f"## {heading}", "", _row(table.columns), _row("---" for _ in table.columns)]
        lines += [
            _row(cell_text(v, formats.get(n)) for n, v in zip(table.columns, row, strict=True))
            for row in rows
        ]
        lines.append("")
    lines += [f"- {note}" for note in notes]
    folder.mkdir(parents=True, exist_ok=True)
    plain = {
        heading: json.loads(table.to_json(orient="records")) for heading, table in tables.items()
    }
    report = {"title": title, **facts, "notes": list(notes), "tables": plain}
    text = json.dumps(report, indent=1, ensure_ascii=False)
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    markdown = "\n".join(lines).rstrip() + "\n"
    (folder / f"{name}.md").write_text(markdown, encoding="utf-8")
    return markdown


def spread(values: Sequence[float], form: str = "{:.2f}") -> str:
    """The median with the range: "2.31 (2.20–2.45)"."""
    series = pd.Series(values)
    median, low, high = (form.format(v) for v in (series.median(), series.min(), series.max()))
    return f"{median} ({low}–{high})" if len(series) > 1 else median


def _row(cells: Any) -> str:  # noqa: ANN401 (any texts)
    return f"| {' | '.join(cells)} |"


def _machine() -> dict[str, Any]:
    """Versions and hardware, found without torch, which would warm up what is measured."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=RESULTS.parent,
        capture_output=True,
        text=True,
    )
    cpu = Path("/proc/cpuinfo")
    text = cpu.read_text(encoding="utf-8") if cpu.is_file() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return {
        "commit": commit.stdout.strip(),
        **{name: version(name) for name in ("stackbert", "torch", "transformers", "tokenizers")},
        "python": platform.python_version(),
        "processor": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "load": round(os.getloadavg()[0], 1),
    }
