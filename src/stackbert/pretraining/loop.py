"""The pre-training loop: stages, growth between them, evaluation, checkpoints, the ledger.

Nothing in here waits for the device inside a step: losses are read when a line of the ledger is
due, batches come ready from `batches`, checkpoints are written beside the training.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from stackbert.batches import Batch, BatchPlan
from stackbert.corpus.store import Corpus
from stackbert.errors import Interrupted, RunError
from stackbert.pretraining import prefetch
from stackbert.pretraining.background import BackgroundWriter, snapshot, snapshot_state
from stackbert.pretraining.budget import evaluation_interval
from stackbert.pretraining.checkpoints import CheckpointStore, RunState, checkpoint_name
from stackbert.pretraining.checkpoints import save_checkpoint as write_checkpoint
from stackbert.pretraining.counters import Counters, LogWindow
from stackbert.pretraining.divergence import blame, sentence
from stackbert.pretraining.ledger import Ledger, Stopwatch
from stackbert.pretraining.progress import Reporter
from stackbert.pretraining.ranks import Ranks
from stackbert.pretraining.schedule import learning_rate_factor
from stackbert.pretraining.signals import StopRequest
from stackbert.pretraining.tracking import Tracker
from stackbert.pretraining.trainer import StepResult, Trainer
from stackbert.recipe import Recipe


class TrainingLoop:
    """One run, from wherever its counters stand to its end."""

    def __init__(
        self,
        run: Path,
        recipe: Recipe,
        corpus: Corpus,
        plan: BatchPlan,
        validation: Batch,
        trainer: Trainer,
        counters: Counters,
        window: LogWindow,
        *,
        ledger: Ledger,
        watch: Stopwatch,
        store: CheckpointStore,
        trackers: list[Tracker],
        reporter: Reporter,
        matrix_rate: float,
        ranks: Ranks,
    ) -> None:
        self._run = run
        self._recipe = recipe
        self._corpus = corpus
        self._plan = plan
        self._validation = validation
        self._trainer = trainer
        self._at = counters
        self._ledger = ledger
        self._watch = watch
        self._store = store
        self._trackers = trackers
        self._reporter = reporter
        self._ranks = ranks
        self._matrix_rate = matrix_rate * ranks.count
        self._window = window
        self._unread: list[tuple[int, int, StepResult]] = []  # with stage and number
        self._writer = BackgroundWriter()
        self._evaluate_every = evaluation_interval(recipe)
        self._last_save = time.monotonic()

    def close(self) -> None:
        """Finish the checkpoint that is being written; close the ledger and the trackers."""
        try:
            self._writer.close()
        finally:
            self._ledger.close()
            for tracker in self._trackers:
                tracker.close()

    @property
    def trainer(self) -> Trainer:
        """The trainer, for its model."""
        return self._trainer

    def run_to_end(self, stop: StopRequest) -> None:
        """Train until the recipe's last step.

        Raises:
            Interrupted: `stop` was asked; the step was finished and a checkpoint written.
            RunError: the loss is not finite any more.
        """
        with self._watch.measuring("training"):
            self._run_to_end(stop)
        seconds = self._watch.seconds
        self._ledger.write(
            "end", step=self._at.step, seconds=seconds["training"], wall=dict(seconds)
        )

    def _run_to_end(self, stop: StopRequest) -> None:
        at, total = self._at, self._recipe.total_steps
        if at.step == 0 and at.last_loss is None:
            self._evaluate()
        ahead = prefetch.AHEAD[self._trainer.device.type]
        made = prefetch.batches(
            self._plan, at.step, total, ahead=ahead, rank=self._ranks.rank, ranks=self._ranks.count
        )
        while at.step < total:
            self._grow_if_due()
            self._train_one_step(made)
            at_stage_end = at.step in self._recipe.boundaries
            if at_stage_end or at.step % self._evaluate_every == 0:
                self._evaluate()
            if at_stage_end:
                self._account()
            asked, due = self._agree(stop.signal)
            if at_stage_end or asked or due:
                self._save()
            self._writer.check()
            if asked and at.step < total:
                self._wait_for_checkpoint()
                raise Interrupted(
                    f"Stopped at step {at.step:,} of {total:,}; everything is saved in "
                    f"{self._run}. Run the same command again to go on.",
                    asked,
                )
        self._wait_for_checkpoint()

    def _agree(self, signal: int | None) -> tuple[int | None, bool]:
        """A signal that any process had, and whether the first one's clock asks for a save.

        Read once a step: what comes during the save waits for the next.
        """
        due = self._ranks.is_first and self._save_is_due()
        agreed = self._ranks.largest(2 * (signal or 0) + due)
        return agreed // 2 or None, agreed % 2 == 1

    def _train_one_step(self, made: Iterator[Batch]) -> None:
        at, stage = self._at, self._recipe.stage_index(self._at.step)
        factor = learning_rate_factor(self._recipe, at.step)
        self._trainer.micro_batch = self._recipe.resolved_stage(stage).micro_batch
        # While the device still works on earlier steps, waiting for a batch holds up nothing.
        waiting = "input" if self._trainer.idle else "training"
        with self._watch.measuring(waiting, on_device=False):
            batch = next(made)
        compiles = self._trainer.will_compile(batch)
        kind = "compilation" if compiles else "training"
        with self._watch.measuring(kind, on_device=compiles):
            result = self._trainer.step(at.step, batch, factor)
        self._unread.append((stage, at.step, result))
        # On a CPU the step has ended, so reading costs nothing.
        if self._trainer.device.type == "cpu" or self._recipe.skip_bad_steps:
            self._read_losses(batch)
        flops = self._trainer.flops(batch) * self._ranks.count
        tokens = batch.input_ids.size * self._ranks.count
        at.step += 1
        at.tokens += tokens
        at.flops += flops
        at.last_loss = None
        window = self._window
        if not compiles:
            window.tokens += tokens
            window.flops += flops
        if at.step % self._recipe.log_every == 0 or at.step in self._recipe.boundaries:
            self._log(stage, factor, result)

    def _read_losses(self, batch: Batch | None = None) -> None:
        """Add the losses of the steps since the last reading to the window.

        Args:
            batch: of the last step, if its result has not changed the weights where it is bad.

        Raises:
            RunError: one is not finite, and no more may be skipped.
        """
        for stage, number, result in self._unread:
            if not result.finite:
                where = "" if batch is None else blame(self._trainer, batch, self._ranks)
                if self._at.skipped >= self._recipe.skip_bad_steps:
                    raise self._not_finite("loss", stage, number, where)
                self._skip(stage, number, result, where)
                continue
            self._window.steps += 1
            self._window.masked_lm += result.masked_lm
            self._window.next_sentence += result.next_sentence or 0.0
        self._unread.clear()

    def _skip(self, stage: int, number: int, result: StepResult, where: str) -> None:
        at, most = self._at, self._recipe.skip_bad_steps
        at.skipped += 1
        self._ledger.write(
            "skipped",
            step=number,
            stage=stage,
            depth=self._trainer.depth,
            loss=result.loss,
            gradient_norm=result.gradient_norm,
            rows=where.strip(" ()"),
        )
        self._reporter.say(
            f"step {number:,} was skipped: its loss or gradient is not finite{where}; "
            f"{at.skipped} of at most {most}"
        )

    def _log(self, stage: int, factor: float, result: StepResult) -> None:
        self._read_losses()
        at, window = self._at, self._window
        training = self._watch.read("training")
        seconds = training - window.started
        # All steps of a window may have been skipped; the ledger then has null.
        finite = window.steps or math.nan
        masked = window.masked_lm / finite
        pair = None if result.next_sentence is None else window.next_sentence / finite
        rate = factor * self._recipe.optimizer.lr
        tokens_per_second = window.tokens / seconds
        mfu = window.flops / seconds / self._matrix_rate
        loss = masked + (pair or 0.0)
        self._ledger.write(
            "step",
            step=at.step,
            stage=stage,
            depth=self._trainer.depth,
            tokens=at.tokens,
            flops=at.flops,
            seconds=training,
            loss=loss,
            masked_lm=masked,
            next_sentence=pair,
            lr=rate,
            gradient_norm=result.gradient_norm,
            tokens_per_second=tokens_per_second,
            mfu=mfu,
        )
        numbers = {
            "train/loss": loss,
            "train/lr": rate,
            "train/gradient_norm": result.gradient_norm,
            "train/tokens_per_second": tokens_per_second,
            "train/depth": float(self._trainer.depth),
        }
        for tracker in self._trackers:
            tracker.log(at.step, numbers)
        self._reporter.step(
            at.step,
            self._recipe.total_steps,
            f"stage {stage + 1}/{len(self._recipe.stages)}, depth {self._trainer.depth}, "
            f"loss {loss:.3f}, lr {rate:.2e}, {tokens_per_second:,.0f} tokens/s",
        )
        self._window = LogWindow(started=training)

    @property
    def _stage_done(self) -> int:
        # The stage of the last update: at a boundary still the one before it.
        return self._recipe.stage_index(max(0, self._at.step - 1))

    def _evaluate(self) -> float:
        self._read_losses()
        at = self._at
        with self._watch.measuring("evaluation"):
            result = self._trainer.evaluate(self._validation)
        if not math.isfinite(result.loss):
            raise self._not_finite("validation loss", self._stage_done)
        at.last_loss = result.loss
        self._ledger.write(
            "evaluation",
            step=at.step,
            stage=self._stage_done,
            depth=self._trainer.depth,
            tokens=at.tokens,
            flops=at.flops,
            seconds=self._watch.read("training"),
            loss=result.loss,
            masked_lm=result.masked_lm,
            next_sentence=result.next_sentence,
        )
        for tracker in self._trackers:
            tracker.log(at.step, {"validation/loss": result.loss})
        self._reporter.say(
            f"step {at.step:,}: validation loss {result.loss:.3f} (depth {self._trainer.depth})"
        )
        return result.loss

    def _grow_if_due(self) -> None:
        at, stage = self._at, self._recipe.stage_index(self._at.step)
        source, target = self._trainer.depth, self._recipe.stages[stage].depth
        if source == target:
            return
        before = at.last_loss
        with self._watch.measuring("growth"):
            self._trainer.grow(target, self._recipe.growth, at.step)
        with self._watch.measuring("evaluation"):
            after = self._trainer.evaluate(self._validation).loss
        self._ledger.write(
            "growth",
            step=at.step,
            stage=stage,
            operator=self._recipe.growth.operator,
            optimizer_state=self._recipe.growth.optimizer_state,
            source_depth=source,
            target_depth=target,
            loss_before=before,
            loss_after=after,
            seconds=self._watch.read("training"),
            growth_seconds=self._watch.seconds["growth"],
        )
        was = "" if before is None else f" from {before:.3f}"
        self._reporter.say(
            f"step {at.step:,}: grown {source} → {target} layers by "
            f"{self._recipe.growth.operator}; validation loss{was} to {after:.3f}"
        )

    def _save_is_due(self) -> bool:
        spec = self._recipe.checkpoint
        by_steps = spec.every_steps is not None and self._at.step % spec.every_steps == 0
        minutes = (time.monotonic() - self._last_save) / 60.0
        return by_steps or (spec.every_minutes is not None and minutes >= spec.every_minutes)

    def _account(self) -> None:
        """Write where the wall time went, from the run's beginning to the end of this stage."""
        self._watch.read("training")
        self._ledger.write(
            "time",
            step=self._at.step,
            stage=self._stage_done,
            depth=self._trainer.depth,
            seconds=self._watch.seconds["training"],
            wall=dict(self._watch.seconds),
        )

    def _save(self) -> None:
        self._read_losses()
        at, trainer = self._at, self._trainer
        # A checkpoint to go back to must be worth going back to.
        self._ranks.all_pass(self._corpus.check_unchanged)
        if not trainer.finite:
            raise self._not_finite("model", self._stage_done)
        with self._watch.measuring("checkpoint"):
            self._writer.wait()
            model = trainer.model
            whole = trainer.whole_weights(), trainer.whole_optimizer_state()
            self._last_save = time.monotonic()
            if not self._ranks.is_first:
                return
            weights, optimizer = snapshot(whole[0]), snapshot_state(whole[1])
            self._watch.read("checkpoint")  # so that the state has the time of what is done here
            state = RunState(
                step=at.step,
                depth=trainer.depth,
                tokens=at.tokens,
                flops=at.flops,
                seconds=dict(self._watch.seconds),
                ledger_bytes=self._ledger.size,
                last_loss=at.last_loss,
                corpus=self._corpus.manifest.fingerprint,
                window=asdict(self._window),
                skipped=at.skipped,
            )

            def write() -> None:
                self._ledger.sync()
                write_checkpoint(
                    self._store.folder / checkpoint_name(state.step),
                    model,
                    optimizer,
                    state,
                    self._corpus.tokenizer_folder,
                    self._recipe.longest_sequence,
                    weights=weights,
                )
                self._store.prune(self._recipe.checkpoint.keep, set(self._recipe.boundaries[1:]))

            self._writer.submit(write)

    def _wait_for_checkpoint(self) -> None:
        with self._watch.measuring("checkpoint"):
            self._writer.wait()

    def _not_finite(
        self, what: str, stage: int, step: int | None = None, where: str = ""
    ) -> RunError:
        lost = ""
        try:
            self._writer.wait()  # so that the last checkpoint is the last
        except OSError as error:
            lost = f"A later one could not be written ({error.strerror}). "
        step = self._at.step if step is None else step
        kept = self._store.last()
        return RunError(
            sentence(self._recipe, what, step, stage, where=where, kept=kept, lost=lost)
        )
