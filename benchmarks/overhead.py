"""Where the time of a run goes that is not training: half an hour with three growths.

    python benchmarks/overhead.py --corpus corpus --budget 30m

Runs `stackbert pretrain` in a process of its own, on small-cpu's model grown 1 → 2 → 4 → 8, takes
the wall time from outside and the kinds of work from the run's ledger. What a ledger cannot know is
timed from outside, too: Python and its libraries before `pretrain` is called, and the export of the
model and the end of the process after the last line. What is left then is everything else.

The run is then begun again some times, as a short one and, if it is a long one, at its full length,
to see how long it takes from the start of the process to the end of the first step. The report goes
to benchmarks/results/ as JSON and Markdown.
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import reporting
import stackbert as sb
from made_up import write_made_up_text
from reporting import Report, Table

SHORT = 40
"""Steps of a run that is too short to measure anything before it starts."""
LONG = 600.0
"""Seconds of training from which a run does; then its first step is waited for, too."""
SMOKE = (
    "model.hidden_size=32",
    "model.intermediate_size=64",
    "batch.sequences=4",
    "batch.sequence_length=16",
    "evaluation.sequences=16",
    "precision=fp32",
)


@dataclass(frozen=True)
class Watched:
    """A training as seen from outside; seconds since its process was started."""

    called: float
    """When `pretrain` made the run directory: until then Python loads its libraries."""
    first_step: float
    """When the ledger's first line about steps appeared."""
    ended: float
    """When its last line did, after the last step and checkpoint."""
    wall: float
    peak_memory: int
    """Bytes."""


def watch(command: list[str], run: Path, *, only_first_step: bool = False) -> Watched:
    """Run a training and look at its ledger now and then.

    Args:
        command: without --out.
        run: the run directory.
        only_first_step: end it once a step is in the ledger.

    Raises:
        SystemExit: it failed.
    """
    log, ledger = run.with_name(run.name + ".log"), run / "metrics.jsonl"
    begun = time.monotonic()
    seen: dict[str, float] = {}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--out", str(run)], stdout=output, stderr=subprocess.STDOUT
        )
        try:
            while process.poll() is None:
                now = time.monotonic() - begun
                if "called" not in seen and run.exists():
                    seen["called"] = now
                for kind in ("step", "end"):
                    if kind not in seen and _has_line(ledger, kind):
                        seen[kind] = now
                if only_first_step and "step" in seen:
                    break
                time.sleep(0.1 if "step" in seen else 0.02)
        finally:
            wall = time.monotonic() - begun
            if process.poll() is None:
                process.kill()
                process.wait()
    ended_here = only_first_step and "step" in seen
    if process.returncode and not ended_here:
        sys.exit(f"The training failed:\n{log.read_text(encoding='utf-8', errors='replace')}")
    return Watched(
        seen.get("called", 0.0),
        seen.get("step", wall),
        seen.get("end", wall),
        wall,
        _peak_memory_of_children(),
    )


def _has_line(ledger: Path, kind: str) -> bool:
    """Whether a line of this kind is among the ledger's last."""
    if not ledger.exists():
        return False
    with ledger.open("rb") as file:
        file.seek(max(0, ledger.stat().st_size - 8192))
        return f'"kind": "{kind}"'.encode() in file.read()


def _peak_memory_of_children() -> int:
    import resource

    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def recipe_of(given: argparse.Namespace) -> sb.Recipe:
    """The recipe with the wanted depths, a like share of the steps each."""
    recipe = sb.load_recipe(given.recipe, [*(SMOKE if given.smoke else ()), *given.set])
    share = max(1, recipe.total_steps // len(given.depths))
    plain = recipe.model_dump(mode="json")
    plain["stages"] = [{"depth": depth, "steps": share} for depth in given.depths]
    plain["name"] = f"{recipe.name}-overhead"
    return sb.Recipe.model_validate(plain)


def seconds_by_kind(run: Path, rows: list[dict[str, Any]]) -> dict[str, float]:
    """What the run accounts for: its ledger's last account, or its last checkpoint's."""
    accounts = [row["wall"] for row in rows if "wall" in row]
    if accounts:
        return dict(accounts[-1])
    last = max((run / "checkpoints").glob("step-????????"))
    state = json.loads((last / "state.json").read_text(encoding="utf-8"))
    return dict(state["seconds"])


def growths(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each growth's seconds, and those of an evaluation in the stage that it opened (a mean)."""
    ends = {row["stage"]: row["wall"] for row in rows if row["kind"] == "time"}
    found, before = [], 0.0
    for row in (row for row in rows if row["kind"] == "growth"):
        stage = row["stage"]
        evaluation = None
        if stage in ends and stage - 1 in ends:
            # One more than the ledger has lines: a growth has an evaluation of its own.
            count = 1 + sum(r["kind"] == "evaluation" and r["stage"] == stage for r in rows)
            evaluation = (ends[stage]["evaluation"] - ends[stage - 1]["evaluation"]) / count
        found.append(
            {
                "step": row["step"],
                "from": row["source_depth"],
                "to": row["target_depth"],
                "seconds": row["growth_seconds"] - before,
                "evaluation_seconds": evaluation,
            }
        )
        before = row["growth_seconds"]
    return found


def starts(
    command: list[str], folder: Path, lengths: dict[str, int], times: int
) -> dict[str, dict[str, Any]]:
    """Seconds from the start of a process to the end of its first step, by names of `lengths`."""
    found: dict[str, dict[str, Any]] = {}
    for name, length in lengths.items():
        seconds = []
        for number in range(times):
            run = folder / f"start-{length}-{number}"
            words = [*command, "--steps", str(length), "--set", "log_every=1"]
            seconds.append(watch(words, run, only_first_step=True).wall)
        found[name] = {"steps": length, "seconds": seconds}
    return found


def tables(
    watched: Watched,
    kinds: dict[str, float],
    grown: list[dict[str, Any]],
    begun: dict[str, dict[str, Any]],
) -> tuple[Table, ...]:
    """What the report shows."""
    known = kinds | {
        "before pretrain is called": watched.called,
        "export of the model, end of the process": watched.wall - watched.ended,
    }
    known["everything else"] = watched.wall - sum(known.values())
    outside = watched.wall - kinds["training"] - kinds["evaluation"]
    where = [
        *sorted(known.items(), key=lambda item: -item[1]),
        ("outside training, evaluation apart", outside),
        ("wall time", watched.wall),
    ]
    rows = [(kind, f"{s:,.2f}", f"{s / watched.wall:.2%}") for kind, s in where]
    growth_rows = [
        (
            f"{each['from']} → {each['to']}",
            f"{each['seconds']:.3f}",
            "" if each["evaluation_seconds"] is None else f"{each['evaluation_seconds']:.3f}",
        )
        for each in grown
    ]
    start_rows = [
        (
            f"{name} ({each['steps']:,} steps)",
            f"{statistics.median(each['seconds']):.1f}",
            f"{min(each['seconds']):.1f}–{max(each['seconds']):.1f}",
        )
        for name, each in begun.items()
        if each["seconds"]
    ]
    return (
        Table("Where the time went", ("kind of work", "seconds", "share"), tuple(rows)),
        Table("Growths", ("depth", "seconds", "an evaluation there, s"), tuple(growth_rows)),
        Table("From start to first step", ("run", "median, s", "range, s"), tuple(start_rows)),
    )


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--corpus", type=Path, help="from 'stackbert corpus'; by default one of made-up text")
    add("--budget", help="30m")
    add("--recipe", default="small-cpu", help="whose model and batches; small-cpu")
    add("--depths", type=lambda t: [int(d) for d in t.split(",")], default=[1, 2, 4, 8])
    add("--set", action="append", default=[], metavar="FIELD=VALUE", help="of the recipe")
    add("--starts", type=int, help="times that the first step is waited for, each length; 3")
    add("--out", type=Path, default=reporting.RESULTS, help="folder of the report")
    add("--name", help="of the report's two files; overhead-RECIPE")
    add("--smoke", action="store_true", help="a tiny model for seconds, to see that it runs")
    given = parser.parse_args()
    given.budget = given.budget or ("2s" if given.smoke else "30m")
    given.starts = (1 if given.smoke else 3) if given.starts is None else given.starts
    return given


def main() -> None:
    """Train, look, and write the report."""
    given = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped."))  # and end what was started
    begun = time.monotonic()
    machine = reporting.machine()
    with tempfile.TemporaryDirectory(prefix="overhead-") as name:
        folder = Path(name)
        corpus = given.corpus
        if corpus is None:
            write_made_up_text(folder / "text.txt", 60 if given.smoke else 3000)
            corpus = folder / "corpus"
            sb.build_corpus(
                corpus,
                text=[folder / "text.txt"],
                vocab_size=512 if given.smoke else 8192,
                validation=0.05,
            )
        recipe = recipe_of(given)
        (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
        command = [sys.executable, "-m", "stackbert", "pretrain", str(folder / "recipe.yaml")]
        command += ["--corpus", str(corpus)]
        run = folder / "run"
        watched = watch([*command, "--budget", given.budget], run)
        rows = sb.read_ledger(run)
        kinds, grown = seconds_by_kind(run, rows), growths(rows)
        as_run = sb.load_recipe(run / "recipe.yaml")
        first = next(row for row in rows if row["kind"] == "step")
        lengths = {"a short run": SHORT}
        if kinds["training"] >= LONG:
            lengths["a run of this length"] = as_run.total_steps
        again = starts(command, folder, lengths, given.starts)
        machine |= json.loads((run / "run.json").read_text(encoding="utf-8"))["machine"]
    outside = watched.wall - kinds["training"] - kinds["evaluation"]
    depths = " → ".join(map(str, given.depths))
    report = Report(
        given.name or ("overhead-smoke" if given.smoke else f"overhead-{Path(given.recipe).stem}"),
        "Time outside training",
        tables(watched, kinds, grown, again),
        {
            "wall": watched.wall,
            "before_pretrain": watched.called,
            "after_the_end": watched.wall - watched.ended,
            "seconds": kinds,
            "outside_training_share": outside / watched.wall,
            "growths": grown,
            "first_steps": {"seconds": watched.first_step, "steps": first["step"]},
            "starts": again,
            "peak_memory": watched.peak_memory,
        },
        settings={
            "recipe": Path(given.recipe).stem,
            "depths": given.depths,
            "budget": given.budget,
            "set": given.set,
            "steps": as_run.total_steps,
            "precision": as_run.precision,
            "compile": as_run.compile,
        },
        machine=machine,
        notes=(
            f"{Path(given.recipe).stem}'s model grown {depths}, {as_run.total_steps:,} steps, "
            f"{as_run.precision}, {'compiled' if as_run.compile is True else 'not compiled'}, "
            f"budget {given.budget}, peak memory {watched.peak_memory / 1e9:.2f} GB. The first "
            f"{first['step']} steps were done {watched.first_step:.1f} s after the process was "
            "started: a budget is measured first.",
            "The wall time, the time before `pretrain` is called and that of the export are taken "
            "from outside, to a tenth of a second; the kinds of work are the ledger's.",
            "A growth's evaluation: the mean of the stage that it opens, on the same rows.",
            "From start to first step: until the first step is in the ledger. What torch.compile "
            "keeps on the disk is there from the run before.",
        ),
        seconds=time.monotonic() - begun,
        smoke=given.smoke,
    )
    path = report.write(given.out)
    print(f"{report.markdown()}\n{path}")


if __name__ == "__main__":
    main()
