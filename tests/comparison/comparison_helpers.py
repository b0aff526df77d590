"""A tiny recipe, tables of costs and results made by hand, and a comparison that is stopped."""

import contextlib
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import stackbert as sb
from recipe_fields import recipe_of
from stackbert.comparison.calibration import Settings
from stackbert.comparison.costs import (
    Budget,
    GrowthCost,
    Reference,
    StepCost,
    StepKind,
    all_kinds,
)
from stackbert.comparison.folder import Entry, Question, Record, Tried
from stackbert.comparison.results import Results, Run
from stackbert.comparison.runs import is_finished
from stackbert.comparison.variants import depth_pairs
from stackbert.errors import UserError
from stackbert.pretraining.ledger import LEDGER
from stackbert.recipe import Recipe
from stackbert.reporting.content import Point

STEPS = 120
BUDGET = f"{STEPS}steps"
STOPPED_AT = 6
"""Lines of every run's ledger; the runs have some hundred steps to go."""

# Whatever is left to the machine or the clock by default is settled here.
TINY: dict[str, Any] = {
    "name": "tiny",
    "model": {
        "type": "megatron-bert",
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
    "stages": [{"depth": 1, "steps": 40}, {"depth": 2, "steps": 40}, {"depth": 4, "steps": 40}],
    "batch": {"sequences": 16, "sequence_length": 32, "micro_batch": 16},
    "optimizer": {"name": "adamw", "lr": 2e-3},
    "schedule": {"warmup_steps": 6},
    "precision": "fp32",
    "compile": False,
    "evaluation": {"sequences": 64, "every_steps": 10},
    "checkpoint": {"every_steps": 5, "every_minutes": None},
    "log_every": 1,
}

REFEREE = f"""
same:                     # scratch with a seam in it, so a recipe of its own and no reused runs
  stages: [{{depth: 4, steps: {STEPS // 2}}}, {{depth: 4, steps: {STEPS // 2}}}]
  seeds: 2
half:
  stages: [{{depth: 4, steps: {STEPS}}}]
  fractions: [0.5]
diverging:
  stages: [{{depth: 4, steps: {STEPS}}}]
  optimizer: {{lr: 1.0e+12}}
  seeds: 1
twin:                     # scratch itself under another name
  stages: [{{depth: 4, steps: {STEPS}}}]
  seeds: 1
"""


def tiny_recipe(**fields: object) -> Recipe:
    """The tiny recipe; `optimizer__lr=1e-3` sets optimizer.lr."""
    return recipe_of(TINY, **fields)


def table(
    *recipes: Recipe,
    seconds: Callable[[StepKind], float] = lambda kind: 0.1 + 0.2 * kind.depth,
    growth: float = 0.5,
) -> Reference:
    """A reference table that nobody measured, for every kind of step of some recipes."""
    steps = [
        StepCost(kind, seconds(kind), (seconds(kind),), 1000 * kind.depth + kind.sequence_length)
        for kind in all_kinds(recipes)
    ]
    pairs = dict.fromkeys(pair for recipe in recipes for pair in depth_pairs(recipe))
    return Reference(tuple(steps), tuple(GrowthCost(a, b, growth) for a, b in pairs))


def refusal(call: Callable[[], object]) -> str:
    """The one sentence of the UserError that `call` must raise."""
    try:
        call()
    except UserError as error:
        text = str(error)
        assert text.endswith((".", "…", "?")), text
        assert "\n" not in text, text
        return text
    raise AssertionError("it was not refused")


Losses = Mapping[str, Mapping[float, Sequence[float | None]]]
"""Variant → share of the budget → final loss by seed from 0; None has not ended."""


def made_results(
    losses: Losses,
    *,
    entropy: float = 6.0,
    masked_lm: float | None = None,
    unit: str = "seconds",
    tried: Sequence[Tried] = (),
    rate: float = 1.0,
    curves: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    recipes: Mapping[str, Recipe] | None = None,
) -> Results:
    """A comparison's results by hand, on a budget of 100 seconds.

    Args:
        losses: of the runs.
        entropy: unigram entropy of the text.
        masked_lm: last masked-LM loss of every run; by default the whole loss.
        unit: of the budget.
        tried: learning rates.
        rate: that all took.
        curves: variant → (share of the budget, loss) before the end.
        recipes: of the variants.
    """
    recipe = tiny_recipe()
    runs, entries, missing = [], [], []
    for variant, by_share in losses.items():
        for share, by_seed in by_share.items():
            for seed, loss in enumerate(by_seed):
                entries.append(Entry(variant, share, seed, "0" * 12))
                if loss is None:
                    missing.append(f"{variant}, {share:g}, seed {seed}: it was not begun")
                    continue
                before = (curves or {}).get(variant, [(0.0, 7.0)])
                points = tuple(_point(at, value) for at, value in [*before, (share, loss)])
                last = loss if masked_lm is None else masked_lm
                runs.append(Run(variant, share, seed, Path(), recipe, points, (), last))
    record = Record(
        question=Question("variants", recipe, "f" * 8, None, 1, (1.0,)),
        corpus_folder="corpus",
        entropy=entropy,
        machine={},
        threads=1,
        settings=Settings("fp32", False, ()),
        reference=table(recipe),
        budget=Budget(100.0, unit),  # type: ignore[arg-type]
        rate=rate,
        tried=tuple(tried),
        entries=tuple(entries),
        recipes={name: each.model_dump(mode="json") for name, each in (recipes or {}).items()},
    )
    return Results(Path(), record, tuple(runs), tuple(missing))


def _point(share: float, loss: float) -> Point:
    return Point(100.0 * share, 1e9 * share, 1e6 * share, 50.0 * share, loss)


@dataclass(frozen=True)
class Called:
    """What a command line gave."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Stopped:
    """A comparison that was stopped, and called again."""

    folder: Path
    first: Called
    finished: tuple[str, ...]
    """Folders of runs that had ended when it was stopped."""
    reached: dict[str, int]
    """Folder of a run → lines of its ledger when it was stopped."""
    missing: tuple[str, ...]
    """What was said of the runs that had not ended."""
    again: Called


def command_line(arguments: Sequence[object]) -> Called:
    """`stackbert ARGUMENTS` in this process, as a shell would see it."""
    from stackbert.__main__ import main

    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    code: object = 0
    sys.argv = ["stackbert", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = before
    return Called(code if isinstance(code, int) else 1, out.getvalue(), err.getvalue())


def stop_at(lines: int, folder: Path, arguments: Sequence[object]) -> Stopped:
    """Call `stackbert`, send SIGTERM once two runs have written some lines, and call it again."""

    def ledgers() -> dict[str, int]:
        return {
            path.parent.name: len(path.read_bytes().splitlines())
            for path in (folder / "runs").glob(f"*/{LEDGER}")
        }

    def stop() -> None:
        deadline = time.monotonic() + 120.0
        while time.monotonic() < deadline and not done.is_set():
            found = ledgers()
            if len(found) == 2 and min(found.values()) >= lines:
                if callable(signal.getsignal(signal.SIGTERM)):  # never this process itself
                    os.kill(os.getpid(), signal.SIGTERM)
                return
            time.sleep(0.005)

    done = threading.Event()
    watcher = threading.Thread(target=stop)
    watcher.start()
    try:
        first = command_line(arguments)
    finally:
        done.set()
        watcher.join()
    reached = ledgers()
    finished = tuple(name for name in reached if is_finished(folder / "runs" / name))
    missing = sb.read_results(folder).missing
    return Stopped(folder, first, finished, reached, missing, command_line(arguments))


def ledger(run: Path) -> list[dict[str, Any]]:
    """A run's ledger without what a clock said."""
    timed = {"seconds", "tokens_per_second", "mfu", "growth_seconds", "wall"}
    return [{k: v for k, v in row.items() if k not in timed} for row in sb.read_ledger(run)]
