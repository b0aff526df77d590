"""One fine-tuning run: a new head, transformers' Trainer, and what the model then predicts.

The last step counts. No checkpoint is chosen by the split that it is scored on.
"""

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import (
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from stackbert.batches.randomness import I64, Permutation, derive_key
from stackbert.files import new_folder
from stackbert.finetuning import sentences, squad
from stackbert.finetuning.models import Model, Opened, open_with_head
from stackbert.finetuning.tasks import Settings, Task, TaskData
from stackbert.machine import pick_device
from stackbert.model_files import quiet_transformers, save_model

OnStep = Callable[[float], None]  # hears of the share of a run that is done; may raise to stop it
# Among which "auto" chooses: weights of another scale want another rate.
RATES = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
_RATE_STEPS = 200  # that each of them is tried, or those of a run if they are fewer
_HELD_OUT, _MOST_HELD_OUT = 0.2, 1000  # share and number, at most, of the rows that judge them
_LOSSES = 40  # readings of the training loss over a run
_BATCHES = 50  # of a group in which rows are sorted by length, as transformers has it
_PREDICTED = 64  # rows of a forward pass that only predicts; changes time, not the result


@dataclass
class RunResult:
    """What one run gave."""

    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    """By split and metric; empty if the run diverged."""
    predictions: str = ""  # a JSON object a line: split, key and prediction
    learning_rate: float = math.nan
    notes: list[str] = field(default_factory=list)  # on rows that were cut
    steps: int = 0
    loss: float = math.nan  # the mean over the last fortieth of the steps
    seconds: float = 0.0  # of training and predicting
    diverged: bool = False  # the loss, or an output of the trained model, was not finite


def _kind_of(task: Task) -> Any:  # noqa: ANN401 (a module)
    """The module with a task's `encode` and `judge`."""
    return squad if task.kind == "span" else sentences


def finetune_once(
    model: Model,
    data: TaskData,
    settings: Settings,
    seed: int,
    *,
    splits: Sequence[str],
    save_to: Path | None = None,
    on_step: OnStep = lambda done: None,
) -> RunResult:
    """Fine-tune a model on a task once, then predict `splits`; keep the model in `save_to`."""
    result, kind = RunResult(learning_rate=float(settings.learning_rate)), _kind_of(data.task)
    with torch.random.fork_rng(), quiet_transformers():
        opened = open_with_head(model, data.task, settings, seed=seed)
        names = dict.fromkeys(("train", *splits))
        encoded = {split: kind.encode(data, split, opened, settings) for split in names}
        result.notes = [each.note for each in encoded.values() if each.note]
        trainer = _trainer(opened, encoded["train"].rows, settings, seed, result, on_step)
        begun = time.perf_counter()
        trainer.train()
        for split in splits:
            outputs = [] if result.diverged else _predict(trainer, encoded[split].rows)
            if result.diverged or not all(np.isfinite(each).all() for each in outputs):
                result.diverged, result.scores, result.predictions = True, {}, ""
                break
            result.scores[split], rows = kind.judge(data, split, encoded[split], outputs)
            rows.insert(0, "split", split)
            result.predictions += rows.to_json(orient="records", lines=True, force_ascii=False)
        result.seconds = time.perf_counter() - begun
        if save_to is not None and not result.diverged:
            shutil.rmtree(save_to, ignore_errors=True)  # of a run that was stopped right after
            with new_folder(save_to) as new:
                longest = opened.tokenizer.model_max_length
                save_model(opened.model, new, tokenizer=None, sequence_length=longest)
                opened.tokenizer.save_pretrained(new)
    return result


def choose_rate(
    model: Model, data: TaskData, settings: Settings, on_step: OnStep = lambda done: None
) -> float:
    """The learning rate of `RATES` with the least loss on training rows that are held out.

    Each is tried in a run of at most 200 steps, warm-up and decay included, from the weights of
    seed 0, on the training rows without a fifth of them (1,000 at most). The dev split is not
    looked at.
    """
    losses = []
    with torch.random.fork_rng(), quiet_transformers():
        opened = open_with_head(model, data.task, settings, seed=0)
        rows = _kind_of(data.task).encode(data, "train", opened, settings).rows
        order = _shuffled(len(rows), 0, "held out", 0)
        count = max(1, min(_MOST_HELD_OUT, round(_HELD_OUT * len(rows))))
        held: Any = [rows[n] for n in order[:count]]
        used = [rows[n] for n in order[count:]]
        steps = min(_RATE_STEPS, math.ceil(_rows_of(len(rows), settings) / settings.batch))
        for place, rate in enumerate(RATES):

            def on_trial(done: float, place: int = place) -> None:
                on_step((place + done) / len(RATES))

            opened = open_with_head(model, data.task, settings, seed=0)
            trial = settings.model_copy(update={"learning_rate": rate, "max_steps": steps})
            trainer = _trainer(opened, used, trial, 0, RunResult(), on_trial)
            trainer.train()
            metrics: Any = trainer.predict(held).metrics
            losses.append(np.nan_to_num(metrics["test_loss"], nan=math.inf))
    return RATES[losses.index(min(losses))]


def _rows_of(size: int, settings: Settings) -> int:
    if settings.max_steps:
        return settings.batch * settings.max_steps
    return max(1, round(size * settings.epochs))


def _trainer(
    opened: Opened,
    rows: Sequence[dict[str, Any]],
    settings: Settings,
    seed: int,
    result: RunResult,
    on_step: OnStep,
) -> Trainer:
    order = row_order([len(row["input_ids"]) for row in rows], settings, seed)
    in_order: Any = [rows[place] for place in order]
    total = math.ceil(len(order) / settings.batch)

    class Listener(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
            result.steps = state.global_step
            on_step(result.steps / total)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ANN401
            if "loss" in logs:
                result.loss = float(logs["loss"])
                result.diverged = not math.isfinite(result.loss)
                control.should_training_stop = result.diverged

    arguments = TrainingArguments(
        output_dir=tempfile.gettempdir(),  # there in any case; nothing is saved
        save_strategy="no",
        use_cpu=pick_device().type == "cpu",
        bf16=settings.precision == "bf16",
        remove_unused_columns=False,  # rows hold what the model takes and nothing else
        disable_tqdm=True,
        # The default would put the mean of earlier losses in place of one that is not finite.
        logging_nan_inf_filter=False,
        logging_steps=max(1, total // _LOSSES),
        seed=seed,
        max_steps=total,
        train_sampling_strategy="sequential",  # they come in the order of `row_order`
        per_device_train_batch_size=settings.batch,
        per_device_eval_batch_size=_PREDICTED,
        learning_rate=float(settings.learning_rate),
        # A whole number: one below 1 would be taken for a share.
        warmup_steps=round(settings.warmup_fraction * total),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch_fused",  # on a CPU too: a pass over memory instead of many
        adam_epsilon=1e-6,  # as in BERT's own code and in pre-training here
    )
    # Several GPUs would each take a batch, and the settings' batch mean another one there.
    arguments._n_gpu = min(1, arguments.n_gpu)
    collator = DataCollatorWithPadding(opened.tokenizer)
    trainer = Trainer(opened.model, arguments, collator, in_order, callbacks=[Listener()])
    trainer.remove_callback(PrinterCallback)
    return trainer


def _predict(trainer: Trainer, rows: Sequence[dict[str, Any]]) -> list[npt.NDArray[Any]]:
    # In order of length, to save padding.
    order = sorted(range(len(rows)), key=lambda place: -len(rows[place]["input_ids"]))
    in_order: Any = [rows[place] for place in order]
    found = trainer.predict(in_order).predictions
    outputs = found if isinstance(found, tuple) else (found,)
    return [each[np.argsort(order)] for each in outputs]


def row_order(lengths: Sequence[int], settings: Settings, seed: int) -> I64:
    """Which training row comes when; the same for all models that tokenise alike.

    Every row comes once before any comes twice, but for the groups at the seam. To save padding,
    shuffled rows are sorted by length within groups of up to 50 batches, and the batches shuffled.
    """
    size, batch = len(lengths), settings.batch
    rows = _rows_of(size, settings)
    passes = range(math.ceil(rows / size))
    order = np.concatenate([_shuffled(size, seed, "rows", each) for each in passes])[:rows]
    group = batch * max(1, min(_BATCHES, size // (4 * batch)))
    parts = []
    for number, start in enumerate(range(0, rows, group)):
        some = order[start : start + group]
        some = some[np.argsort(np.asarray(lengths)[some], kind="stable")]
        whole = len(some) // batch
        batches = some[: whole * batch].reshape(whole, batch)
        parts.append(batches[_shuffled(whole, seed, "batches", number)].reshape(-1))
        parts.append(some[whole * batch :])  # the run's last batch may be a short one
    return np.concatenate(parts)


def _shuffled(size: int, seed: int, what: str, number: int) -> I64:
    return Permutation(size, derive_key(seed, "finetuning", what, number))(np.arange(size))
