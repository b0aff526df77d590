"""What a task predicts and how it is scored, and the settings that it is fine-tuned with."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from stackbert.errors import UserError
from stackbert.files import explain


class Settings(BaseModel):
    """One fine-tuning run. Each field can be set with `--set field=value`.

    The defaults are those of the paper (Gong et al. 2019, its released script); what it leaves
    open is BERT's (Devlin et al. 2019, appendix A.3 and released code).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    learning_rate: Annotated[float, Field(gt=0.0, lt=1.0)] | Literal["auto"] = 5e-5
    """The highest, after warm-up; then it falls linearly to zero. "auto": chosen for each model
    (`train.choose_rate`)."""
    pooling: Literal["cls", "mean"] = "cls"
    """What the head sees: transformers' own head on the first token, or the mean of all."""
    save: bool = False  # keep every run's model
    epochs: PositiveFloat = 3.0
    max_steps: PositiveInt | None = None  # instead of epochs; to try things out
    batch: PositiveInt = 16
    warmup_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01  # AdamW's, of matrices only
    max_grad_norm: Annotated[float, Field(ge=0.0)] = 1.0  # 0 does not clip
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] | None = 0.1
    """Replaces each dropout rate of the model, as small data is passed over several times; None
    keeps the model's own."""
    max_length: Annotated[int, Field(ge=8)] = 128
    """Tokens of a row, if the model has as many positions; of SQuAD, of a window."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """"auto" is bf16 where the processor has instructions for it."""


@dataclass(frozen=True)
class Task:
    """What is predicted, how it is scored, and which columns hold it."""

    name: str
    title: str
    kind: Literal["classes", "number", "span"]
    metrics: tuple[str, ...]  # the first is the headline
    labels: tuple[str, ...] = ()  # the classes, in the order of their numbers
    text: str = ""  # its column
    pair: str = ""  # that of the second text, if there is one
    label: str = ""


@dataclass(frozen=True)
class TaskData:
    """A task with its data.

    Splits that begin with "dev" are scored; those that begin with "test" are predicted and have no
    labels. Columns: key, text, text_pair, label (a class's number, or the number to predict); of
    SQuAD key, text (the question), context, answers, start (of the first).
    """

    task: Task
    splits: dict[str, pd.DataFrame]
    notes: tuple[str, ...] = ()

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of each split's content, wherever it was read from."""
        texts = {split: frame.to_json(orient="values") for split, frame in self.splits.items()}
        return {split: hashlib.sha256(text.encode()).hexdigest() for split, text in texts.items()}


_ENTAILMENT, _NLI = "entailment not_entailment", "entailment neutral contradiction"
# Wang et al., "GLUE" (ICLR 2019), table 1. Of two metrics the usually quoted one comes first.
_GLUE = (
    # title, classes, metrics, text, second text, label
    ("CoLA", "0 1", "matthews", "sentence", "", "label"),
    ("SST-2", "0 1", "accuracy", "sentence", "", "label"),
    ("MRPC", "0 1", "f1 accuracy", "#1 String", "#2 String", "Quality"),
    ("STS-B", "", "pearson spearman", "sentence1", "sentence2", "score"),
    ("QQP", "0 1", "f1 accuracy", "question1", "question2", "is_duplicate"),
    ("MNLI", _NLI, "accuracy", "sentence1", "sentence2", "gold_label"),
    ("QNLI", _ENTAILMENT, "accuracy", "question", "sentence", "label"),
    ("RTE", _ENTAILMENT, "accuracy", "sentence1", "sentence2", "label"),
    ("WNLI", "0 1", "accuracy", "sentence1", "sentence2", "label"),
)
TASKS = {
    title.lower(): Task(
        title.lower(),
        title,
        "classes" if labels else "number",
        tuple(metrics.split()),
        tuple(labels.split()),
        *columns,
    )
    for title, labels, metrics, *columns in _GLUE
} | {
    name: Task(name, title, "span", ("f1", "exact_match"))
    for name, title in (("squad", "SQuAD v1.1"), ("squad-v2", "SQuAD v2.0"))
}
GLUE = tuple(name for name, task in TASKS.items() if task.kind != "span")
# WNLI is in neither paper's tables and is set like RTE, which is as small. SQuAD is set as in
# Devlin et al. (2019), sections 4.2 and 4.3.
_DEFAULTS: dict[str, dict[str, float]] = {
    "sts-b": {"batch": 32, "epochs": 4.0},
    "qqp": {"batch": 32, "epochs": 4.0},
    "qnli": {"batch": 32},
    "rte": {"epochs": 4.0, "learning_rate": 3e-5},
    "wnli": {"epochs": 4.0, "learning_rate": 3e-5},
    "squad": {"batch": 32, "max_length": 384},
    "squad-v2": {"batch": 48, "epochs": 2.0, "max_length": 384},
}


def settings_for(task: str, overrides: Sequence[str], tasks: Sequence[str]) -> Settings:
    """A task's settings with the user's changes, "field=value" or "task.field=value"."""
    fields: dict[str, object] = dict(_DEFAULTS.get(task, {}))
    for override in overrides:
        path, equals, value = override.partition("=")
        only, _, name = path.rpartition(".")
        if not equals or only not in ("", *tasks):
            raise UserError(
                f"--set {override}: write it as field=value or TASK.field=value, with a task of "
                f"{', '.join(tasks)}."
            )
        if only in ("", task):
            name = "learning_rate" if name == "lr" else name
            fields[name] = None if value == "null" else value
    try:
        return Settings.model_validate(fields)
    except ValidationError as error:
        raise UserError(f"--set: {explain(error, Settings)}.") from error
