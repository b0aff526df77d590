"""Where the time of a run goes that is not training, and how long its first step takes to come.

    python benchmarks/overhead.py --corpus corpus --budget 30m

Runs `stackbert pretrain` in a process of its own, on small-cpu's model grown 1 → 2 → 4 → 8. The
wall time is taken from outside, the kinds of work from the run's ledger. What a ledger cannot know
is timed from outside, too: Python and its libraries before `pretrain` is called, and the export of
the model after the last line. Then short runs are started, to see how long it takes from the start
of the process to the end of the first step.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

import reporting
from stackbert.corpus.build import build_corpus
from stackbert.demo import write_factbook
from stackbert.pretraining.ledger import LEDGER, read_ledger
from stackbert.recipe import Recipe
from stackbert.recipes import load_recipe

SHORT = 40
"""Steps of a run that is too short to measure anything before it starts."""


def recipe_at(name: str, depths: list[int], overrides: list[str]) -> Recipe:
    """A recipe over other depths, each with as many steps as the others."""
    recipe = load_recipe(name, overrides)
    stages = [{"depth": d, "steps": max(1, recipe.total_steps // len(depths))} for d in depths]
    return Recipe.model_validate(recipe.model_dump(mode="json") | {"stages": stages})


def watch(command: list[str], run: Path, *, until_first_step: bool = False) -> dict[str, float]:
    """Train, and look at the run's ledger now and then.

    Returns seconds since the process was started: "called" (when the run directory appeared),
    "step" (the ledger's first line about steps), "end" (its last line), "wall".
    """
    log, ledger = run.with_name(run.name + ".log"), run / LEDGER
    seen: dict[str, float] = {}
    begun = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen([*command, "--out", str(run)], stdout=output, stderr=output)
        try:
            while process.poll() is None:
                now = time.monotonic() - begun
                if run.exists():
                    seen.setdefault("called", now)
                last = ledger.read_bytes()[-8192:] if ledger.exists() else b""
                for kind in ("step", "end"):
                    if f'"kind": "{kind}"'.encode() in last:
                        seen.setdefault(kind, now)
                if until_first_step and "step" in seen:
                    return seen
                time.sleep(0.1 if "step" in seen else 0.02)
        finally:
            seen["wall"] = time.monotonic() - begun
            process.kill()
            process.wait()
    if process.returncode:
        sys.exit(f"The training failed:\n{log.read_text(encoding='utf-8', errors='replace')}")
    return {"called": 0.0, "step": seen["wall"], "end": seen["wall"]} | seen


def time_table(watched: dict[str, float], ledger: pd.DataFrame) -> pd.DataFrame:
    """Seconds and share of the wall time for each kind of work."""
    kinds: dict[str, float] = dict(ledger.wall.dropna().iloc[-1])
    kinds["before pretrain is called"] = watched["called"]
    kinds["export of the model, end of the process"] = watched["wall"] - watched["end"]
    kinds["everything else"] = watched["wall"] - sum(kinds.values())
    kinds = dict(sorted(kinds.items(), key=lambda item: -item[1]))
    kinds["outside training and evaluation"] = (
        watched["wall"] - kinds["training"] - kinds["evaluation"]
    )
    kinds["wall time"] = watched["wall"]
    table = pd.DataFrame({"": list(kinds), "seconds": list(kinds.values())})
    return table.assign(share=table.seconds / watched["wall"])


def main() -> None:
    """Train, look, and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--recipe", default="small-cpu", help="a shipped recipe or a YAML file")
    add("--depths", default="1,2,4,8")
    add("--corpus", type=Path, help="by default the demo's text")
    add("--budget", default="30m")
    add("--set", action="append", default=[], metavar="FIELD=VALUE", help="override a field")
    add("--starts", type=int, default=3, help="short runs that are watched to their first step")
    add("--out", type=Path, default=reporting.RESULTS, help="folder of the report")
    add("--name", help="of the report; overhead-RECIPE")
    given = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="overhead-") as name:
        folder = Path(name)
        if given.corpus is None:
            write_factbook(folder / "text.txt")
            given.corpus = folder / "corpus"
            build_corpus(given.corpus, text=folder / "text.txt", vocab_size=2048, validation=0.05)
        recipe = recipe_at(given.recipe, [int(d) for d in given.depths.split(",")], given.set)
        (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
        command = [sys.executable, "-m", "stackbert", "pretrain", str(folder / "recipe.yaml")]
        command += ["--corpus", str(given.corpus)]
        watched = watch([*command, "--budget", given.budget], folder / "run")
        ledger = read_ledger(folder / "run")
        as_run = load_recipe(folder / "run" / "recipe.yaml")
        short = [*command, "--steps", str(SHORT), "--set", "log_every=1"]
        starts = [
            watch(short, folder / f"start-{number}", until_first_step=True)["step"]
            for number in range(given.starts)
        ]
    compiled = "compiled" if as_run.compile is True else "not compiled"
    first = int(ledger[ledger.kind == "step"].step.iloc[0])
    notes = [
        f"{recipe.name} at depths {given.depths}, budget {given.budget}: {as_run.total_steps:,} "
        f"steps, {as_run.precision}, {compiled}. A budget is measured first, so the first {first} "
        f"steps were done {watched['step']:.1f} s after the process was started.",
        f"A run of {SHORT} steps, from the start of its process to the end of its first step: "
        f"{reporting.spread(starts, '{:.1f}')} s.",
        "Before pretrain is called, export and wall time are taken from outside, to a tenth of a "
        "second; the rest is the ledger's.",
    ]
    print(
        reporting.write_report(
            given.out,
            given.name or f"overhead-{Path(given.recipe).stem}",
            "Time outside training",
            {"Where the time goes": time_table(watched, ledger)},
            notes=notes,
            seconds=time.monotonic() - begun,
            formats={"seconds": "{:,.2f}", "share": "{:.2%}"},
        )
    )


if __name__ == "__main__":
    main()
