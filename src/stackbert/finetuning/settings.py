"""How a model is fine-tuned: the paper's settings for each task, and the user's changes."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stackbert.errors import UserError
from stackbert.recipe_files import parse_yaml

SQUAD = "squad"
SQUAD_V2 = "squad-v2"
SMALL = 10_000
"""Rows of training data below which a task is small: its runs differ more from seed to seed."""

PositiveInt = Annotated[int, Field(gt=0)]


class FinetuneSettings(BaseModel):
    """One fine-tuning run. Every field can be set with `--set field=value`.

    What is not said of the paper's own fine-tuning (Gong et al. 2019) is BERT's (Devlin et al.
    2019, appendix A.3, and its released code).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    learning_rate: Annotated[float, Field(gt=0.0, lt=1.0)] = 5e-5
    """At its highest, after the warm-up."""
    epochs: Annotated[float, Field(gt=0.0)] = 3.0
    """Passes over the training split."""
    max_steps: PositiveInt | None = None
    """Stop after so many steps instead, the learning rate at zero by then; to try things out."""
    batch: PositiveInt = 16
    """Rows of a step."""
    warmup_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """Share of the steps in which the learning rate rises; then it falls linearly to zero."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    """AdamW's, of matrices only."""
    max_grad_norm: Annotated[float, Field(ge=0.0)] = 1.0
    """Gradients are clipped to this norm; 0 leaves them."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] | None = 0.1
    """Put in place of every dropout rate of the model's config. Models that were pre-trained
    without dropout are fine-tuned with it all the same: small data is passed over several times.
    None leaves the config as it is."""
    max_length: Annotated[int, Field(ge=8)] = 128
    """Tokens of a row; longer ones are cut (of a question's paragraph: laid out in windows). A
    model with fewer positions, or trained on shorter rows, has its own bound."""
    stride: Annotated[int, Field(ge=0)] = 128
    """Questions only: tokens that a window shares with the one before."""
    max_answer: PositiveInt = 30
    """Questions only: tokens of the longest answer that is looked for."""
    candidates: PositiveInt = 20
    """Questions only: starts and ends that are tried in each window, and answers that are kept."""
    group_by_length: bool = True
    """Rows of like length share a batch (less padding, so less time); batches are shuffled."""
    predict_batch: PositiveInt = 64
    """Rows of a forward pass that only predicts; changes nothing but memory and time."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """"auto" is bf16 where this machine multiplies matrices faster in it, else fp32."""


# The paper's (its released script): learning rate 5e-5, RTE 3e-5; batch 16 or 32; 3 epochs or 4.
_TASKS: dict[str, dict[str, Any]] = {
    "cola": {"batch": 16, "epochs": 3.0},
    "sst-2": {"batch": 16, "epochs": 3.0},
    "mrpc": {"batch": 16, "epochs": 3.0},
    "sts-b": {"batch": 32, "epochs": 4.0},
    "qqp": {"batch": 32, "epochs": 4.0},
    "mnli": {"batch": 16, "epochs": 3.0},
    "qnli": {"batch": 32, "epochs": 3.0},
    "rte": {"batch": 16, "epochs": 4.0, "learning_rate": 3e-5},
    # In neither paper's tables. Set like RTE, which is as small; nothing is known to learn it.
    "wnli": {"batch": 16, "epochs": 4.0, "learning_rate": 3e-5},
    # Devlin et al. (2019), sections 4.2 and 4.3; windows as in their released code.
    SQUAD: {"batch": 32, "epochs": 3.0, "max_length": 384},
    SQUAD_V2: {"batch": 48, "epochs": 2.0, "max_length": 384},
}


def defaults_for(task: str) -> FinetuneSettings:
    """The settings of a task before anything is overridden.

    Args:
        task: a name; for one that is not known, a user's own, BERT's usual settings.
    """
    return FinetuneSettings(**_TASKS.get(task, {}))


def default_seeds(rows: int) -> int:
    """Runs of a task: the paper's 6 for small tasks and 3 for large ones.

    Args:
        rows: of the training split.
    """
    return 6 if rows < SMALL else 3


def settings_for(task: str, overrides: Iterable[str] = ()) -> FinetuneSettings:
    """A task's settings with the user's changes.

    Args:
        task: a task's name.
        overrides: "field=value" for every task, or "task.field=value" for one; the later counts.

    Raises:
        UserError: a field is unknown or its value impossible.
    """
    fields = defaults_for(task).model_dump()
    for override in overrides:
        only, field, value = _parsed(override)
        if only in (None, task):
            fields[field] = value
    return parse_settings(fields, "--set")


def check_overrides(overrides: Iterable[str], tasks: Iterable[str]) -> None:
    """Refuse a wrong change, also of a task whose turn would come hours later.

    Args:
        overrides: as `settings_for` takes them.
        tasks: that are to be run.

    Raises:
        UserError: it cannot be read, or is for a task that is not run.
    """
    known = list(tasks)
    overrides = list(overrides)
    for override in overrides:
        only, _, _ = _parsed(override)
        if only is not None and only not in known:
            raise UserError(
                f"--set {override}: there is no task '{only}' among those that are run "
                f"({', '.join(known)})."
            )
    for task in known:
        settings_for(task, overrides)


def parse_settings(fields: Mapping[str, Any], where: str) -> FinetuneSettings:
    """Validate plain values as settings.

    Raises:
        UserError: naming every field that is wrong.
    """
    try:
        return FinetuneSettings.model_validate(dict(fields))
    except ValidationError as error:
        problems = "; ".join(_problem(item) for item in error.errors())
        raise UserError(f"{where}: {problems}.") from error


def _parsed(override: str) -> tuple[str | None, str, Any]:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise UserError(f"--set {override}: write it as field=value, for example epochs=4.")
    task, dot, field = path.rpartition(".")
    return (task if dot else None), field, parse_yaml(text, f"The value of --set {path}")


def _problem(item: Any) -> str:  # noqa: ANN401 (pydantic's details)
    field = ".".join(str(part) for part in item["loc"][:1])
    if item["type"] == "extra_forbidden":
        close = difflib.get_close_matches(field, list(FinetuneSettings.model_fields), n=1)
        hint = f" (did you mean '{close[0]}'?)" if close else ""
        return f"there is no field '{field}'{hint}"
    message = item["msg"].rstrip(".")
    return f"{field}: {message[0].lower()}{message[1:]}, got {item['input']!r}"
