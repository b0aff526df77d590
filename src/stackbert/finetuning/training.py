"""One fine-tuning run: a fresh head, transformers' Trainer, and what the model then predicts.

The score is that of the last step. No checkpoint is chosen by the split it is scored on.
"""

import contextlib
import importlib.util
import math
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from stackbert.errors import RunError, UserError
from stackbert.finetuning.encoding import collate
from stackbert.finetuning.heads import Source, open_model
from stackbert.finetuning.order import row_order
from stackbert.finetuning.settings import FinetuneSettings
from stackbert.finetuning.work import Array, Encoded, Judged, Row, Work, place_back

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Progress = Callable[[int, int, float | None], None]
"""Hears of (steps done, steps in all, the last loss), and may raise to stop the run."""

_EPSILON = 1e-6
"""AdamW's, as in BERT's own code and in pre-training here."""
_LOSSES = 40
"""Readings of the training loss, spread over the run."""


@dataclass(frozen=True)
class OnceResult:
    """What one run gave."""

    seed: int
    judged: dict[str, Judged]
    """By split; empty if the run diverged."""
    seconds: float
    """Of training."""
    predicting: float
    """Seconds of predicting."""
    steps: int
    losses: tuple[float, ...]
    """Means of the training loss over equal parts of the run; the last is the last steps'."""
    diverged: bool
    """Whether the loss, or an output of the trained model, was not finite."""
    notes: tuple[str, ...]


def finetune_once(
    source: Source,
    work: Work,
    settings: FinetuneSettings,
    seed: int,
    *,
    splits: Sequence[str] = ("dev",),
    encoded: Encoded | None = None,
    progress: Progress | None = None,
) -> OnceResult:
    """Fine-tune a model on a task once.

    A function of its arguments: on a CPU two calls give the same to the last bit, with as many
    threads. Python's, numpy's and torch's random states are left as they were.

    Args:
        source: the model.
        work: the task with its data.
        settings: with a precision other than "auto".
        seed: of head, dropout and order of the rows.
        splits: to predict, and to score where they have labels.
        encoded: what `work.encode` gave for this model and these splits, to save the time.
        progress: called after every step, and while predicting.

    Raises:
        UserError: the model cannot be opened with such a head, or a library is missing.
        RunError: memory ran out.
    """
    check_libraries()
    with _random_states_kept():
        opened = open_model(source, work.head, seed=seed, dropout=settings.dropout)
        rows = encoded or work.encode(opened, settings, splits)
        run = _Run(opened.model, settings, seed, opened.tokenizer.pad_token_id, progress)
        with _explaining_out_of_memory():
            begun = time.perf_counter()
            run.train(rows.train)
            trained = time.perf_counter()
            judged: dict[str, Judged] = {}
            for split in splits:
                outputs = run.predict(rows.splits[split]) if not run.diverged else []
                if not run.diverged:
                    judged[split] = rows.judge(split, outputs)
            ended = time.perf_counter()
    return OnceResult(
        seed=seed,
        judged={} if run.diverged else judged,
        seconds=trained - begun,
        predicting=ended - trained,
        steps=run.steps,
        losses=tuple(run.losses),
        diverged=run.diverged,
        notes=(*opened.notes, *rows.notes),
    )


def check_libraries() -> None:
    """Refuse to begin without the libraries of the extra.

    Raises:
        UserError: naming what is missing.
    """
    lacking = [name for name in ("accelerate", "sklearn") if not importlib.util.find_spec(name)]
    if lacking:
        raise UserError(
            f"Fine-tuning needs {' and '.join(lacking)}. Install the extra: "
            "pip install 'stackbert[finetuning]'."
        )


def rows_of(rows: int, settings: FinetuneSettings) -> int:
    """Rows that a run trains on, each as often as it comes; of a split with so many."""
    if settings.max_steps is not None:
        return settings.max_steps * settings.batch
    return max(1, round(rows * settings.epochs))


def steps_of(rows: int, settings: FinetuneSettings) -> int:
    """Steps of a run over a split of so many rows; at least one."""
    return math.ceil(rows_of(rows, settings) / settings.batch)


class _Run:
    """A model on its way through training and prediction."""

    def __init__(
        self,
        model: "PreTrainedModel",
        settings: FinetuneSettings,
        seed: int,
        padding: int,
        progress: Progress | None,
    ) -> None:
        self._model = model
        self._settings = settings
        self._seed = seed
        self._collate = partial(collate, padding=padding)
        self._progress = progress or (lambda done, total, loss: None)
        self.losses: list[float] = []
        self.steps = 0
        self.diverged = False

    def train(self, rows: Sequence[Row]) -> None:
        """All steps, or as many as stay finite."""
        s = self._settings
        total = steps_of(len(rows), s)
        order = row_order(
            [len(row["input_ids"]) for row in rows],
            rows=rows_of(len(rows), s),
            batch=s.batch,
            seed=self._seed,
            group_by_length=s.group_by_length,
        )
        with self._trainer([rows[place] for place in order], total) as trainer:
            trainer.train()

    def predict(self, rows: Sequence[Row]) -> list[Array]:
        """The head's outputs, a row a row, computed in order of length to save padding."""
        order = sorted(range(len(rows)), key=lambda place: -len(rows[place]["input_ids"]))
        with self._trainer(None, None) as trainer:
            found = trainer.predict([rows[place] for place in order]).predictions
        outputs = list(found) if isinstance(found, tuple) else [found]
        if not all(np.isfinite(each).all() for each in outputs):
            self.diverged = True
        return [place_back(each, order) for each in outputs]

    @contextlib.contextmanager
    def _trainer(self, rows: Sequence[Row] | None, total: int | None) -> Iterator[Any]:
        from transformers import PrinterCallback, Trainer

        from stackbert.pretraining.checkpoints import quiet_transformers

        with quiet_transformers(), tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                model=self._model,
                args=self._arguments(folder, total),
                data_collator=self._collate,
                train_dataset=rows,
                callbacks=[_listener(self, total)],
            )
            trainer.remove_callback(PrinterCallback)
            yield trainer

    def _arguments(self, folder: str, total: int | None) -> Any:  # noqa: ANN401
        """What the Trainer takes; `total` is None for one that only predicts."""
        import torch
        from transformers import TrainingArguments

        from stackbert.pretraining.machine import pick_device

        s = self._settings
        on_cpu = pick_device().type == "cpu"
        chosen: dict[str, Any] = {
            "output_dir": folder,
            "seed": self._seed,
            "data_seed": self._seed,
            "use_cpu": on_cpu,
            "bf16": s.precision == "bf16",
            "per_device_eval_batch_size": s.predict_batch,
            "dataloader_pin_memory": not on_cpu,
            "remove_unused_columns": False,  # rows hold what the model takes and nothing else
            "disable_tqdm": True,
            "report_to": "none",
            "save_strategy": "no",
            "eval_strategy": "no",
            # The default would put the mean of earlier losses in place of one that is not finite.
            "logging_nan_inf_filter": False,
        }
        if total is not None:
            chosen |= {
                "max_steps": total,
                "train_sampling_strategy": "sequential",  # they come in the order of `row_order`
                "per_device_train_batch_size": s.batch,
                "learning_rate": s.learning_rate,
                "lr_scheduler_type": "linear",
                # A whole number: one below 1 would be taken for a share.
                "warmup_steps": round(s.warmup_fraction * total),
                "weight_decay": s.weight_decay,
                "max_grad_norm": s.max_grad_norm,
                "optim": "adamw_torch_fused",  # on a CPU too: a pass over memory instead of many
                "adam_epsilon": _EPSILON,
                "logging_strategy": "steps",
                "logging_steps": max(1, total // _LOSSES),
            }
        arguments = TrainingArguments(**chosen)
        if torch.cuda.device_count() > 1:
            # Several GPUs in one process would each take a batch, so that the settings' batch
            # were another one from machine to machine.
            arguments._n_gpu = 1
        return arguments


def _listener(run: _Run, total: int | None) -> Any:  # noqa: ANN401 (a TrainerCallback)
    from transformers import TrainerCallback

    class Listener(TrainerCallback):
        """Notes losses, reports progress, and ends a run that is not finite any more."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
            run.steps = state.global_step
            run._progress(run.steps, total or run.steps, run.losses[-1] if run.losses else None)

        def on_log(
            self,
            args: Any,  # noqa: ANN401
            state: Any,  # noqa: ANN401
            control: Any,  # noqa: ANN401
            logs: dict[str, Any] | None = None,
            **_: Any,  # noqa: ANN401
        ) -> None:
            if logs and "loss" in logs:
                loss = float(logs["loss"])
                run.losses.append(loss)
                if not math.isfinite(loss):
                    run.diverged = True
                    control.should_training_stop = True

        def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
            run._progress(run.steps, total or run.steps, run.losses[-1] if run.losses else None)

    return Listener()


@contextlib.contextmanager
def _random_states_kept() -> Iterator[None]:
    """The Trainer seeds every generator there is; here they are put back behind it."""
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextlib.contextmanager
def _explaining_out_of_memory() -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunError(
            "The GPU's memory is full. Set a smaller batch or a shorter max_length (--set "
            "batch=8), or predict_batch if it was full while predicting."
        ) from error
