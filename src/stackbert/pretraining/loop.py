"""The training loop: grow if due → step → ledger → evaluate if due → save if due.

Nothing in here waits for the device inside a step: losses are read when a line of the ledger is
due, batches are made ahead, checkpoints are written by a thread.
"""

import contextlib
import copy
import math
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stackbert.batches.batches import Batch, BatchPlan
from stackbert.errors import Interrupted, RunError, StackBertError
from stackbert.pretraining.autotune import evaluation_interval
from stackbert.pretraining.checkpoints import (
    Checkpoints,
    CheckpointState,
    Counters,
    Window,
    snapshot,
)
from stackbert.pretraining.distributed import World
from stackbert.pretraining.ledger import Ledger, Stopwatch
from stackbert.pretraining.schedule import learning_rate_factor
from stackbert.pretraining.signals import StopRequest
from stackbert.pretraining.tracking import Tracker
from stackbert.pretraining.trainer import StepResult, Trainer
from stackbert.progress import Progress
from stackbert.recipe import Recipe

_AHEAD = {"cpu": 0, "cuda": 3}
"""Batches made ahead. On a CPU the thread would only take cores from the step."""
_AFTER_GROWTH = 500
"""Steps for which a growth counts among the likely causes of a loss that is not finite."""


@dataclass
class Run:
    """A run in progress, in one process."""

    folder: Path
    recipe: Recipe
    plan: BatchPlan
    validation: Batch
    trainer: Trainer
    counters: Counters
    checkpoints: Checkpoints
    ledger: Ledger | None
    """None on every rank but the main one."""
    watch: Stopwatch
    trackers: list[Tracker]
    progress: Progress
    matrix_rate: float
    """FLOP/s of all processes together: what MFU is a share of."""
    world: World
    unread: list[tuple[int, StepResult]] = field(default_factory=list)
    """Steps, by their numbers, whose losses are still on the device."""

    @property
    def stage(self) -> int:
        """The stage of the last update: at a boundary still the one before it."""
        return self.recipe.stage_index(max(0, self.counters.step - 1))

    def write(self, kind: str, **fields: Any) -> None:  # noqa: ANN401 (JSON values)
        """A line of the ledger and the trackers, on the main rank."""
        if self.ledger is not None:
            self.ledger.write(kind, **fields)
        for tracker in self.trackers:
            tracker.line(kind, fields)

    def standing(self) -> dict[str, Any]:
        """How far the run is: fields of the ledger's lines."""
        return {
            "step": self.counters.step,
            "stage": self.stage,
            "depth": self.trainer.depth,
            "tokens": self.counters.tokens,
            "flops": self.counters.flops,
            "seconds": self.watch.read("training"),
        }

    def close(self) -> None:
        """Finish the checkpoint that is being written; close the ledger and the trackers."""
        try:
            self.checkpoints.close()
        finally:
            if self.ledger is not None:
                self.ledger.close()
            for tracker in self.trackers:
                tracker.close()


def train(run: Run, stop: StopRequest) -> None:
    """Train from wherever the counters stand to the recipe's last step.

    Raises:
        Interrupted: `stop` noted a signal; the step was finished and a checkpoint written.
        RunError: a loss, gradient or weight is not finite any more.
    """
    recipe, trainer, at, watch, world = run.recipe, run.trainer, run.counters, run.watch, run.world
    every_steps = recipe.checkpoint.every_steps or recipe.total_steps
    every_minutes = recipe.checkpoint.every_minutes or math.inf
    saved = time.monotonic()
    with watch.measuring("training"):
        if at.step == 0 and at.last_loss is None:
            _evaluate(run)
        batches = _batches(run)
        while at.step < recipe.total_steps:
            stage = recipe.stage(recipe.stage_index(at.step))
            if trainer.depth != stage.depth:
                _grow(run, stage.depth)

            # While the device still works on earlier steps, waiting for a batch costs nothing.
            with watch.measuring("input" if trainer.idle else "training", on_device=False):
                batch = next(batches)
            trainer.micro_batch = stage.micro_batch
            compiles = trainer.will_compile(batch)
            with watch.measuring("compilation" if compiles else "training", on_device=compiles):
                result = trainer.step(at.step, batch, learning_rate_factor(recipe, at.step))
            run.unread.append((at.step, result))
            if trainer.device.type == "cpu" or recipe.skip_bad_steps:
                _read_losses(run, batch)  # on a CPU the step has ended, so this costs nothing
            tokens, flops = batch.input_ids_BS.numel() * world.size, trainer.flops(batch)
            at.count(tokens, flops, timed=not compiles)

            ends_stage = at.step in recipe.boundaries
            if ends_stage or at.step % recipe.log_every == 0:
                _log(run, result)

            if ends_stage or at.step % evaluation_interval(recipe) == 0:
                _evaluate(run)
            if ends_stage:
                place = {"step": at.step, "stage": run.stage, "depth": trainer.depth}
                run.write("time", **place, seconds=watch.read("training"), wall=watch.seconds)

            # The main rank's clock decides, and a signal that any of the ranks had.
            minutes = (time.monotonic() - saved) / 60.0
            due = at.step % every_steps == 0 or minutes >= every_minutes
            agreed = world.all_reduce_max(2 * (stop.signal or 0) + (due and world.is_main))
            signal, due = agreed // 2, agreed % 2 == 1
            if ends_stage or signal or due:
                _save(run)
                saved = time.monotonic()
            run.checkpoints.poll()
            if signal and at.step < recipe.total_steps:
                break
        with watch.measuring("checkpoint"):
            run.checkpoints.wait()
    if at.step < recipe.total_steps:
        raise Interrupted(
            f"Stopped at step {at.step:,} of {recipe.total_steps:,}; everything is saved in "
            f"{run.folder}. Run the same command again to resume.",
            signal,
        )
    run.write("end", step=at.step, seconds=watch.seconds["training"], wall=watch.seconds)


def _batches(run: Run) -> Iterator[Batch]:
    """This rank's batches of the steps to come, made ahead on a thread of their own."""

    def make(step: int) -> Batch:
        return run.plan.batch(step, run.world.rank, run.world.size)

    steps, ahead = range(run.counters.step, run.recipe.total_steps), _AHEAD[run.trainer.device.type]
    if not ahead:
        yield from map(make, steps)
        return
    ready: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        for step in steps:
            ready.append(thread.submit(make, step))
            if len(ready) > ahead:
                yield ready.popleft().result()
        while ready:
            yield ready.popleft().result()


def _grow(run: Run, depth: int) -> None:
    at, trainer, growth = run.counters, run.trainer, run.recipe.growth
    source, before = trainer.depth, at.last_loss
    with run.watch.measuring("growth"):
        trainer.grow(depth, growth, at.step)
    with run.watch.measuring("evaluation"):
        after = trainer.evaluate(run.validation).loss
    run.write(
        "growth",
        step=at.step,
        stage=run.recipe.stage_index(at.step),
        operator=growth.operator,
        optimizer_state=growth.optimizer_state,
        source_depth=source,
        target_depth=depth,
        loss_before=before,
        loss_after=after,
        seconds=run.watch.read("training"),
        growth_seconds=run.watch.seconds["growth"],
    )
    was = "" if before is None else f" from {before:.3f}"
    run.progress.say(
        f"step {at.step:,}: grown {source} → {depth} layers by {growth.operator}; validation "
        f"loss{was} to {after:.3f}"
    )


def _read_losses(run: Run, batch: Batch | None = None) -> None:
    """Add the losses of the steps since the last reading to the window.

    `batch` is that of the last step, if a bad result has left the weights as they were.
    """
    at, window, allowed = run.counters, run.counters.window, run.recipe.skip_bad_steps
    for number, result in run.unread:
        if result.finite:
            window.steps += 1
            window.masked_lm += result.losses.masked_lm
            window.next_sentence += result.losses.next_sentence or 0.0
            continue
        rows = "" if batch is None else run.trainer.blame(batch)
        clause = f" ({rows})" if rows else ""
        stage = run.recipe.stage_index(number)
        if at.skipped >= allowed:
            raise _not_finite(run, "loss", number, stage, clause)
        at.skipped += 1
        place = {"step": number, "stage": stage, "depth": run.trainer.depth}
        numbers = {"loss": result.losses.loss, "gradient_norm": result.gradient_norm}
        run.write("skipped", **place, **numbers, rows=rows)
        run.progress.say(
            f"step {number:,} was skipped: its loss or gradient is not finite{clause}; "
            f"{at.skipped} of at most {allowed}"
        )
    run.unread.clear()


def _log(run: Run, result: StepResult) -> None:
    """A line of the ledger on the steps since the last."""
    _read_losses(run)
    at, window, recipe = run.counters, run.counters.window, run.recipe
    line = run.standing()
    seconds = line["seconds"] - window.started
    finite = window.steps or math.nan  # all steps of a window may have been skipped
    masked = window.masked_lm / finite
    pair = window.next_sentence / finite if recipe.objective.next_sentence else None
    line |= {
        "loss": masked + (pair or 0.0),
        "masked_lm": masked,
        "next_sentence": pair,
        "lr": learning_rate_factor(recipe, at.step - 1) * recipe.optimizer.lr,
        "gradient_norm": result.gradient_norm,
        "tokens_per_second": window.tokens / seconds,
        "mfu": window.flops / seconds / run.matrix_rate,
    }
    run.write("step", **line)
    run.progress.step(
        at.step,
        recipe.total_steps,
        f"stage {run.stage + 1}/{len(recipe.stages)}, depth {line['depth']}, loss "
        f"{line['loss']:.3f}, lr {line['lr']:.2e}, {line['tokens_per_second']:,.0f} tokens/s",
    )
    at.window = Window(started=line["seconds"])


def _evaluate(run: Run) -> None:
    _read_losses(run)
    at, depth = run.counters, run.trainer.depth
    with run.watch.measuring("evaluation"):
        result = run.trainer.evaluate(run.validation)
    if not math.isfinite(result.loss):
        raise _not_finite(run, "validation loss", at.step, run.stage)
    at.last_loss = result.loss
    losses = {"masked_lm": result.masked_lm, "next_sentence": result.next_sentence}
    run.write("evaluation", **run.standing(), loss=result.loss, **losses)
    run.progress.say(f"step {at.step:,}: validation loss {result.loss:.3f} (depth {depth})")


def _save(run: Run) -> None:
    _read_losses(run)
    trainer = run.trainer
    if not trainer.finite:  # a checkpoint must be worth resuming from
        raise _not_finite(run, "model", run.counters.step, run.stage)
    with run.watch.measuring("checkpoint"):
        run.checkpoints.wait()
        weights, optimizer = trainer.parallel.full_weights(), trainer.full_optimizer_state()
        if run.ledger is None:
            return
        weights = snapshot(weights)
        tensors = snapshot(
            {f"{name}|{key}": t for name, held in optimizer.items() for key, t in held.items()}
        )
        run.watch.read("checkpoint")  # so that the state has the time of these copies
        run.ledger.sync()
        state = CheckpointState(
            counters=copy.deepcopy(run.counters),
            depth=trainer.depth,
            seconds=dict(run.watch.seconds),
            ledger_bytes=run.ledger.size,
        )
        run.checkpoints.save_on_thread(state, trainer.model, weights, tensors)


def _not_finite(run: Run, what: str, step: int, stage: int, where: str = "") -> RunError:
    with contextlib.suppress(StackBertError):
        run.checkpoints.wait()  # so that the last checkpoint is the last
    kept, recipe = run.checkpoints.paths(), run.recipe
    causes = "a learning rate too high for this model (optimizer.lr, optimizer.muon_lr)"
    if step < recipe.schedule.warmup_steps * 2:
        causes += ", a warm-up too short (schedule.warmup_steps)"
    if any(0 <= step - grown < _AFTER_GROWTH for grown in recipe.growth_steps):
        causes += ", the jump after a growth (schedule.rewarmup_steps)"
    if recipe.optimizer.clip_norm is None:
        causes += ", gradients that are not clipped (optimizer.clip_norm)"
    last = f"The last checkpoint is {kept[-1]}. " if kept else "No checkpoint was due yet. "
    return RunError(
        f"The {what} is not finite at step {step:,} (stage {stage + 1}, depth "
        f"{recipe.stages[stage].depth}){where}, so the run was stopped. {last}Likely causes: "
        f"{causes}. Change one and start a new run."
    )
