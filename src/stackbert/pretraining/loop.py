"""The training loop: grow if due → step → ledger → evaluate if due → save if due.

It seldom waits for the device: losses are read when due, threads make batches and checkpoints.
"""

import contextlib
import copy
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stackbert.batches.batches import Batch, training_plan, validation_batch
from stackbert.corpus.store import Corpus
from stackbert.errors import Interrupted, RunError, StackBertError
from stackbert.pretraining.autotune import evaluation_interval
from stackbert.pretraining.checkpoints import Checkpoints, CheckpointState, Counters, Window
from stackbert.pretraining.distributed import World
from stackbert.pretraining.layers import layer_warning
from stackbert.pretraining.ledger import Ledger, Stopwatch
from stackbert.pretraining.record import RunRecord
from stackbert.pretraining.schedule import averaged_before, learning_rate_factor
from stackbert.pretraining.signals import StopRequest
from stackbert.pretraining.tracking import Tracker
from stackbert.pretraining.trainer import Trainer, stage_flops
from stackbert.progress import Progress

_AHEAD = {"cpu": 0, "cuda": 3}
"""Batches made ahead. On a CPU the thread would only take cores from the step."""


@dataclass
class Run:
    """A run in progress, in one process; only the main one has a ledger and trackers."""

    folder: Path
    record: RunRecord
    corpus: Corpus
    trainer: Trainer
    counters: Counters
    checkpoints: Checkpoints
    watch: Stopwatch
    progress: Progress
    world: World
    ledger: Ledger | None = None
    trackers: Sequence[Tracker] = ()

    def __post_init__(self) -> None:
        self.recipe = self.record.recipe
        self.validation = validation_batch(self.recipe, self.corpus)
        self.flops = stage_flops(self.recipe, self.corpus)
        stages = zip(self.recipe.stages, self.flops, strict=True)
        self.total_flops = sum(stage.steps * flops for stage, flops in stages)
        self.unread: list[tuple[int, Tensor]] = []  # losses on the device, by their step's number
        self.warned = False

    def close(self) -> None:
        """Finish the checkpoint that is being written; close the ledger and the trackers."""
        with contextlib.ExitStack() as stack:
            for tracker in self.trackers:
                stack.callback(tracker.close)
            if self.ledger is not None:
                stack.callback(self.ledger.close)
            stack.callback(self.checkpoints.close)

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
            index = recipe.stage_index(at.step)
            stage = recipe.stage(index)
            if trainer.depth != stage.depth:
                _grow(run, stage.depth)
            trainer.freeze(recipe.frozen_layers(index))

            # While the device still works on earlier steps, waiting for a batch costs nothing.
            with watch.measuring("input" if trainer.idle else "training", on_device=False):
                batch = next(batches)
            trainer.micro_batch = stage.micro_batch
            compiles = trainer.will_compile(batch)
            with watch.measuring("compilation" if compiles else "training", on_device=compiles):
                result = trainer.step(at.step, batch, learning_rate_factor(recipe, at.step))
            run.unread.append((at.step, result))
            if trainer.device.type == "cpu" or recipe.skip_bad_steps:
                _read_losses(run)  # on a CPU the step has ended, so this costs nothing
            tokens = batch.input_ids_BS.numel() * world.size
            at.step, at.last_loss = at.step + 1, None
            for each in (at,) if compiles else (at, at.window):  # compiling is no training time
                each.tokens += tokens
                each.flops += run.flops[index]

            if (before := averaged_before(recipe, at.step)) is not None:
                trainer.average(before)

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
            if at.step in recipe.kept_steps or signal or due:
                _save(run)
                saved = time.monotonic()
            run.checkpoints.wait(if_done=True)
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
    plan, ahead = training_plan(run.recipe, run.corpus), _AHEAD[run.trainer.device.type]
    ready: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        for step in range(run.counters.step, run.recipe.total_steps):
            if not ahead:
                yield plan.batch(step, run.world.rank, run.world.size)
                continue
            ready.append(thread.submit(plan.batch, step, run.world.rank, run.world.size))
            if len(ready) > ahead:
                yield ready.popleft().result()
        while ready:
            yield ready.popleft().result()


def _grow(run: Run, depth: int) -> None:
    at, trainer, growth = run.counters, run.trainer, run.recipe.growth
    source, before = trainer.depth, at.last_loss
    with run.watch.measuring("growth"):
        trainer.grow(depth, at.step)
    with run.watch.measuring("evaluation"):
        after = sum(trainer.evaluate(run.validation))
    line: dict[str, Any] = {"step": at.step, "stage": run.recipe.stage_index(at.step)}
    line |= {"operator": growth.rule.name, "optimizer_state": growth.optimizer_state}
    line |= {"source_depth": source, "target_depth": depth}
    line |= {"loss_before": before, "loss_after": after, "seconds": run.watch.read("training")}
    run.write("growth", **line, growth_seconds=run.watch.seconds["growth"])
    was = "" if before is None else f" from {before:.3f}"
    run.progress.say(
        f"step {at.step:,}: grown {source} → {depth} layers by {growth.rule.name}; validation "
        f"loss{was} to {after:.3f}"
    )


def _read_losses(run: Run) -> None:
    """Add the losses of the steps since the last reading to the window."""
    at, window, allowed = run.counters, run.counters.window, run.recipe.skip_bad_steps
    for number, result in run.unread:
        masked_lm, pair, norm = result.tolist()
        if math.isfinite(masked_lm + pair + norm):
            window.steps += 1
            window.masked_lm += masked_lm
            window.next_sentence += pair
            continue
        stage = run.recipe.stage_index(number)
        if at.skipped >= allowed:
            raise _not_finite(run, "loss", number, stage)
        at.skipped += 1
        run.write("skipped", step=number, stage=stage, depth=run.trainer.depth)
        run.progress.say(
            f"step {number:,} was skipped: its loss or gradient is not finite; {at.skipped} of at "
            f"most {allowed}"
        )
    run.unread.clear()


def _log(run: Run, last: Tensor) -> None:
    """A line of the ledger on the steps since the one before."""
    _read_losses(run)
    at, window, recipe = run.counters, run.counters.window, run.recipe
    line = run.standing()
    seconds = line["seconds"] - window.started
    finite = window.steps or math.nan  # all steps of a window may have been skipped
    masked, pair = window.masked_lm / finite, window.next_sentence / finite
    line |= {
        "loss": masked + pair,
        "masked_lm": masked,
        "next_sentence": pair if recipe.objective.next_sentence else None,
        "lr": learning_rate_factor(recipe, at.step - 1) * recipe.optimizer.lr,
        "gradient_norm": float(last[2]),
        "tokens_per_second": window.tokens / seconds,
        "mfu": window.flops / seconds / (run.record.matrix_rate * run.world.size),
    }
    run.write("step", **line)
    text = (
        f"steps, loss {line['loss']:.3f}, stage {run.stage + 1}/{len(recipe.stages)}, depth "
        f"{line['depth']}, lr {line['lr']:.2e}, {line['tokens_per_second']:,.0f} tokens/s"
    )
    left = line["seconds"] * (run.total_flops / at.flops - 1.0)  # deeper stages are slower
    run.progress.step(at.step, recipe.total_steps, text, left)
    at.window = Window(started=line["seconds"])


def _evaluate(run: Run) -> None:
    """Of the last evaluation the losses are those of the mean weights, where they are asked for."""
    _read_losses(run)
    at, trainer, recipe = run.counters, run.trainer, run.recipe
    averaged = at.step == recipe.total_steps and recipe.tail_average > 0
    line: dict[str, Any] = {}
    with run.watch.measuring("evaluation"):
        if averaged:
            line["plain_loss"] = sum(trainer.evaluate(run.validation))
            trainer.swap_average()
        masked_lm, pair = trainer.evaluate(run.validation)
        layers = trainer.layers(run.validation) if run.world.is_main else None
        if averaged:
            trainer.swap_average()
    loss = masked_lm + pair
    if not math.isfinite(loss):
        raise _not_finite(run, "validation loss", at.step, run.stage)
    at.last_loss = loss
    warning = layer_warning(layers) if layers else None
    line |= {"loss": loss, "masked_lm": masked_lm, "layers": layers, "warning": warning}
    line["next_sentence"] = pair if recipe.objective.next_sentence else None
    run.write("evaluation", **run.standing(), **line)
    what = "validation loss of the mean weights" if averaged else "validation loss"
    run.progress.say(f"step {at.step:,}: {what} {loss:.3f} (depth {trainer.depth})")
    if warning and not run.warned:
        run.progress.say(f"step {at.step:,}: {warning}")
        run.warned = True


def _save(run: Run) -> None:
    run.corpus.verify_if_touched()  # what was trained on another text is not kept
    _read_losses(run)
    trainer = run.trainer
    with run.watch.measuring("checkpoint"):
        run.checkpoints.wait()
        weights, optimizer = trainer.parallel.full_weights(), trainer.full_optimizer_state()
        # A checkpoint must be worth resuming from.
        if not torch.stack([tensor.isfinite().all() for tensor in weights.values()]).all():
            raise _not_finite(run, "model", run.counters.step, run.stage)
        if run.ledger is None:
            return
        copies = {id(t): t.to("cpu", copy=True) for t in weights.values()}  # tied ones are one
        weights = {name: copies[id(tensor)] for name, tensor in weights.items()}
        tensors = {
            f"{name}|{key}": tensor.to("cpu", copy=True)
            for name, held in optimizer.items()
            for key, tensor in held.items()
        }
        run.watch.read("checkpoint")  # so that the state has the time of these copies
        state = CheckpointState(
            counters=copy.deepcopy(run.counters),
            depth=trainer.depth,
            seconds=dict(run.watch.seconds),
            ledger_bytes=run.ledger.sync(),
        )
        run.checkpoints.save(state, trainer.model, weights, tensors)


def _not_finite(run: Run, what: str, step: int, stage: int) -> RunError:
    with contextlib.suppress(StackBertError):
        run.checkpoints.wait()  # so that the last checkpoint is the last
    kept = run.checkpoints.paths()
    last = f"The last checkpoint is {kept[-1]}. " if kept else "No checkpoint was due yet. "
    return RunError(
        f"The {what} is not finite at step {step:,} (stage {stage + 1}, depth "
        f"{run.trainer.depth}), so the run was stopped. {last}Likely causes: a learning rate too "
        "high for this model (optimizer.lr, optimizer.muon_lr), a warm-up too short "
        "(schedule.warmup_steps), the jump after a growth (schedule.rewarmup_steps), gradients "
        "that are not clipped (optimizer.clip_norm). Change one and start a new run."
    )
