"""Kill a training again and again, resume it each time, and compare it with one left alone.

    python benchmarks/kill_and_resume.py --kills 20
    python benchmarks/kill_and_resume.py --kills 20 --ranks 2

Every training is `python -m stackbert pretrain` in a process of its own, and every kill a SIGKILL.
The kills are spread over the whole run: start-up, training steps, growth, the writing of a
checkpoint, the export of the model; within its phase each falls at a random moment. At the end the
exported model, the last checkpoint's weights and its optimiser's state are compared byte for byte
with those of an undisturbed run, and the ledger line by line without what a clock said.

With several ranks a kill hits one process, chosen at random, or all; those that are left must end
by themselves and say why. Where one died before all had found each other, the others wait for it;
torchrun would end them, and so does this. The undisturbed run is one process, so what is compared
then are the ledger's lines, with losses within 1e-5: ranks add up in another order.

Exit code 0 if all is equal, 1 if anything differs.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import stackbert as sb
from killed_training import TOLERANCE, Run
from stackbert.factbook import write_factbook

RECIPE = "demo"
SMALLER = (
    "batch.sequences=16",
    "stages.0.steps=12",
    "stages.1.steps=12",
    "stages.2.steps=16",
    "schedule.warmup_steps=5",
    "schedule.rewarmup_steps=2",
    "model.hidden_dropout_prob=0.1",
    "evaluation.sequences=64",
    "evaluation.every_steps=6",
    "checkpoint.every_steps=3",
    "checkpoint.every_minutes=null",
    "log_every=1",
    "precision=fp32",
)
"""What makes `demo` a matter of seconds: its model, a third of its batch, few steps."""
WITHOUT_CHANCE = ("model.hidden_dropout_prob=0", "optimizer.eps=1e-4", "optimizer.lr=1e-3")
"""Ranks drop other units than one process does; and the first updates of AdamW are the signs of the
gradients, which makes much of a rounding."""
SHARES = {"start-up": 0.2, "step": 0.3, "growth": 0.15, "checkpoint": 0.25, "export": 0.1}
LOST = "Another process of the run was lost"


@dataclass(frozen=True)
class Pace:
    """Seconds that each kind of work took in the undisturbed run: kills fall within them."""

    total: float
    start_up: float
    step: float
    growth: float
    checkpoint: float
    export: float


@dataclass(frozen=True)
class Kill:
    """What to hit, and from which step on."""

    kind: str
    step: int


def undisturbed(run: Run, recipe: sb.Recipe) -> Pace:
    """Train without a kill, and time it.

    Raises:
        SystemExit: the training failed.
    """
    begun = time.monotonic()
    training = run.start()
    start_up = exporting = exported = 0.0
    while training.running:
        now = time.monotonic() - begun
        start_up = start_up or (now if run.rows() else 0.0)
        exporting = exporting or (now if run.exporting() else 0.0)
        exported = exported or (now if run.finished() else 0.0)
        time.sleep(0.002)
    total = time.monotonic() - begun
    if any(training.wait()):
        sys.exit(f"The undisturbed run failed:\n{run.log}")
    state = run.folder / "checkpoints" / f"step-{recipe.total_steps:08d}" / "state.json"
    seconds = json.loads(state.read_text(encoding="utf-8"))["seconds"]
    every = recipe.checkpoint.every_steps or recipe.total_steps
    saves = {*recipe.boundaries[1:], *range(every, recipe.total_steps + 1, every)}
    return Pace(
        total=total,
        start_up=start_up,
        step=seconds["training"] / run.steps(),
        growth=seconds["growth"] / max(1, len(recipe.growth_steps)),
        checkpoint=seconds["checkpoint"] / len(saves),
        export=exported - exporting,
    )


def plan(kills: int, growths: tuple[int, ...], total: int, draw: random.Random) -> list[Kill]:
    """So many kills of every kind, in the order in which a run comes by them."""
    planned: list[Kill] = []
    for kind, share in SHARES.items():
        for number in range(max(1, round(kills * share))):
            step = draw.randrange(total)
            if kind == "growth" and growths:
                step = growths[number % len(growths)]
            if kind == "export":
                step = total
            planned.append(Kill(kind, step))
    draw.shuffle(planned)
    return sorted(planned[:kills], key=lambda kill: kill.step)


def strike(run: Run, kill: Kill, pace: Pace, draw: random.Random) -> tuple[float, str] | None:
    """Start the training and kill it; seconds from start to end and which process was hit.

    None if the training ended before.
    """
    conditions: dict[str, tuple[Callable[[], bool], float]] = {
        "start-up": (lambda: True, pace.start_up),
        "step": (lambda: run.at_work() and run.steps() >= kill.step, 2 * pace.step),
        "growth": (
            lambda: run.at_work() and kill.step in run.checkpoints(),
            1.5 * pace.growth,
        ),
        "checkpoint": (
            lambda: run.at_work() and run.steps() >= kill.step and run.writing_checkpoint(),
            pace.checkpoint,
        ),
        "export": (run.exporting, pace.export),
    }
    due, spread = conditions[kill.kind]
    begun = time.monotonic()
    training = run.start()
    while training.running and not due():
        time.sleep(0.001)
    deadline = time.monotonic() + draw.uniform(0.0, spread)
    while training.running and time.monotonic() < deadline:
        time.sleep(0.0002)
    killed = training.running
    victims = training.kill(draw)
    if not training.end() and run.at_work():
        sys.exit(f"A process was left and did not end:\n{run.log}")
    codes = training.wait()
    # A process that is left behind ends with 1 and a sentence; nothing else may fail.
    if max(codes) > (1 if killed and run.ranks > 1 else 0) or "Traceback" in run.log:
        sys.exit(f"A training failed (exit codes {codes}):\n{run.log}")
    if max(codes) == 1 and LOST not in run.log:
        sys.exit(f"A process was left without a sentence:\n{run.log}")
    return (time.monotonic() - begun, victims) if killed else None


def small_corpus(folder: Path) -> Path:
    """The World Factbook's text as a corpus."""
    text = folder / "factbook.txt"
    write_factbook(text)
    sb.build_corpus(folder / "corpus", text=[text], vocab_size=4096, validation=0.05)
    return folder / "corpus"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--corpus", type=Path, help="by default a small one is built")
    parser.add_argument(
        "--recipe-set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help=f"a field of the recipe, which is '{RECIPE}' made small",
    )
    parser.add_argument("--ranks", type=int, default=1, help="processes of the killed trainings")
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    return parser.parse_args()


def main() -> None:
    """Run it all; see the module's text."""
    given = arguments()
    draw = random.Random(given.seed)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kill-and-resume-") as name:
        folder = Path(name)
        corpus = given.corpus or small_corpus(folder)
        overrides = [*SMALLER, *(WITHOUT_CHANCE if given.ranks > 1 else ()), *given.recipe_set]
        recipe = sb.load_recipe(RECIPE, overrides)
        command = [sys.executable, "-m", "stackbert", "pretrain", RECIPE, "--corpus", str(corpus)]
        for override in overrides:
            command += ["--set", override]

        alone = Run(folder / "alone", command)
        pace = undisturbed(alone, recipe)
        print(
            f"Undisturbed: {recipe.total_steps} steps, depths "
            f"{' → '.join(str(stage.depth) for stage in recipe.stages)}, {pace.total:.1f} s, of "
            f"which start-up {pace.start_up:.1f}; a step {1000 * pace.step:.0f} ms, a growth "
            f"{1000 * pace.growth:.0f} ms, a checkpoint {1000 * pace.checkpoint:.0f} ms."
        )
        print(f"\n{'kill':>4}  {'aimed at':22} {'after':>7}  {'fell into':22} {'step':>4}  saved")
        phases: Counter[str] = Counter()
        differing: list[str] = []
        rounds = 0
        while phases.total() < given.kills:
            rounds += 1
            run = Run(folder / f"killed-{rounds}", command, given.ranks)
            left = given.kills - phases.total()
            for kill in plan(left, recipe.growth_steps, recipe.total_steps, draw):
                struck = strike(run, kill, pace, draw)
                if struck is None:
                    continue
                seconds, victims = struck
                phase = run.phase(recipe.boundaries)
                phases[phase] += 1
                saved = run.checkpoints()
                print(
                    f"{phases.total():>4}  {f'{kill.kind}, step {kill.step}':22} {seconds:6.2f}s  "
                    f"{phase:22} {run.steps():>4}  {saved[-1] if saved else '-'}{victims}",
                    flush=True,
                )
                if run.finished():
                    break
            if any(run.start().wait()):
                sys.exit(f"The run could not be resumed:\n{run.log}")
            differing += [f"{what} of run {rounds}" for what in run.differences(alone)]
        print("\nKills by the phase they fell into:")
        for phase, count in phases.most_common():
            print(f"  {count:>3}  {phase}")
        sizes = {what: len(data) for what, data in alone.result().items()}
    compared = ", ".join(f"{what} ({size:,} bytes)" for what, size in sizes.items())
    if given.ranks > 1:
        compared = f"the ledger's lines, losses within {TOLERANCE:g}"
    print(
        f"\n{phases.total()} kills in {rounds} run(s), {time.monotonic() - begun:.0f} s in all. "
        f"Compared: {compared}."
    )
    if differing:
        sys.exit(f"DIFFERENT from the undisturbed run: {', '.join(differing)}.")
    how = "byte for byte" if given.ranks == 1 else f"losses within {TOLERANCE:g}"
    print(f"Equal to the undisturbed run, {how}.")


if __name__ == "__main__":
    main()
