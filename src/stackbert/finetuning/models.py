"""The models of a study, and opening one with a new head on top.

The head is new, and the pooler under it where pre-training had none; of the control everything.
"""

import hashlib
import inspect
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)

from stackbert.errors import UserError
from stackbert.files import reading, sha256
from stackbert.finetuning.tasks import Task
from stackbert.model_files import open_model, open_tokenizer, quiet_transformers, read_config
from stackbert.pretraining.checkpoints import STATE, CheckpointState
from stackbert.pretraining.run import CHECKPOINTS, MODEL, is_run

ModelPath = str | Path
CONTROL = "untrained"
_FILES = re.compile(
    r"config\.json|model.*\.safetensors.*|tokenizer\.json|tokenizer_config\.json"
    r"|(special|added)_tokens.*\.json|vocab\..*|merges\.txt|.*\.model"
)
"""What a model is: config, weights and tokenizer."""


class Model(BaseModel):
    """One set of weights that is fine-tuned."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """In tables. The same model from several pre-training seeds has one name."""
    member: int = 0
    """Which of these seeds, from 1; 0 of a model alone."""
    folder: str
    fingerprint: str
    untrained: bool = False
    """Whether random weights are taken in place of those in the folder."""
    run: str | None = None  # of a checkpoint, as are step, seconds and depth
    step: int | None = None
    seconds: float | None = None
    depth: int | None = None

    @property
    def key(self) -> str:
        """For file names."""
        plain = re.sub(r"[^a-z0-9]+", "-", self.label.lower()).strip("-")
        return f"{plain[:48]}-{self.fingerprint[:10]}"

    @property
    def label(self) -> str:
        """What tells it from the others: "stack 2"."""
        return f"{self.name} {self.member}" if self.member else self.name


def find_models(
    models: ModelPath | Sequence[ModelPath],
    groups: Mapping[str, Sequence[ModelPath]],
    along: ModelPath | Sequence[ModelPath],
) -> list[Model]:
    """The models in the order they are named; arguments as of `finetune`.

    Raises:
        UserError: there is none, a folder is not a model, two have one name or the same weights, or
            groups are of different sizes.
    """
    models, along = ([x] if isinstance(x, str | Path) else list(x) for x in (models, along))
    if along and (models or groups):
        raise UserError("--along takes runs alone; leave other models and groups out.")
    named = [(_name_of(Path(path)), [path]) for path in models] + [*groups.items()]
    if len({len(paths) for _, paths in named}) > 1:
        raise UserError("Groups are paired member by member, so each needs as many models.")
    found = [model for run in along for model in _checkpoints(Path(run))]
    for name, paths in named:
        for place, path in enumerate(paths, start=1):
            found.append(_model(Path(path), name=name, member=place if len(paths) > 1 else 0))
    if not found:
        raise UserError("Name at least one model to fine-tune: a checkpoint folder or a run.")
    for one, other in itertools.combinations(found, 2):
        if one.label == other.label or (one.fingerprint == other.fingerprint and not one.run):
            raise UserError(
                f"{one.folder} and {other.folder} have the same name or the same weights. Leave "
                "one out, or name it with --group NAME=FOLDER."
            )
    return found


def control_of(models: Sequence[Model]) -> list[Model]:
    """The first model with random weights; of a group, other ones for each member."""
    if models[0].run or any(model.name == CONTROL for model in models):
        raise UserError(f"--control goes with models, not --along, of which none is '{CONTROL}'.")
    shape = _fingerprint(Path(models[0].folder), weights=False)
    found = []
    for draw, model in enumerate(each for each in models if each.name == models[0].name):
        drawn = hashlib.sha256(f"untrained {draw} {shape}".encode()).hexdigest()
        change = {"name": CONTROL, "fingerprint": drawn, "untrained": True}
        found.append(models[0].model_copy(update={**change, "member": model.member}))
    return found


def _name_of(path: Path) -> str:
    path = path.resolve()
    return path.parent.name if path.name == MODEL and is_run(path.parent) else path.name


def _model(path: Path, **fields: Any) -> Model:  # noqa: ANN401 (of Model)
    folder = path / MODEL if is_run(path) else path
    if folder != path and not folder.is_dir():
        raise UserError(f"The run {path} has no {MODEL}/ yet. Let it finish, or name a checkpoint.")
    read_config(folder)  # its errors are this function's
    return Model(folder=str(folder), fingerprint=_fingerprint(folder), **fields)


def _checkpoints(run: Path) -> list[Model]:
    folders = sorted((run / CHECKPOINTS).glob("step-*[0-9]"))
    if not folders:
        raise UserError(f"{run} is not a run directory with checkpoints.")
    found = []
    for folder in folders:
        state, name = CheckpointState.read(folder / STATE), run.resolve().name
        step, seconds = state.counters.step, state.seconds["training"]
        at = {"run": name, "step": step, "seconds": seconds, "depth": state.depth}
        found.append(_model(folder, name=f"{name} step {step:,}", **at))
    return found


def _fingerprint(folder: Path, *, weights: bool = True) -> str:
    whole = hashlib.sha256()
    with reading(folder):
        for path in sorted(folder.iterdir()):
            is_weights = ".safetensors" in path.name
            if _FILES.fullmatch(path.name) and (weights or not is_weights):
                whole.update(f"{path.name} {sha256(path)}\n".encode())
    return whole.hexdigest()


@dataclass(frozen=True)
class Opened:
    """A model with a head, and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    positions: int
    """The most tokens that a row may have."""
    takes_types: bool
    """Whether it tells the texts of a pair apart by token types."""


@dataclass(frozen=True)
class Encoded:
    """A split's rows as a model takes them."""

    rows: list[dict[str, Any]]
    """The model's arguments; of the training split with the labels."""
    note: str = ""
    """How many were cut, if any."""
    windows: Sequence[Any] = ()
    """Of SQuAD, one a row."""


def head_class(model: Model, task: Task) -> tuple[type[PreTrainedModel], Any]:
    """The class with a head for a task, and the model's config. No weights are read."""
    with reading(model.folder), quiet_transformers():
        config: Any = AutoConfig.from_pretrained(
            model.folder, local_files_only=True, trust_remote_code=False
        )
    is_span = task.kind == "span"
    classes: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    classes = MODEL_FOR_QUESTION_ANSWERING_MAPPING if is_span else classes
    if type(config) not in classes:
        raise UserError(
            f"{model.folder} is a model of type '{config.model_type}', for which transformers has "
            f"no head for {'questions' if is_span else 'sentences'}. Take an encoder such as BERT."
        )
    return classes[type(config)], config


def open_with_head(model: Model, task: Task, *, seed: int, dropout: float | None) -> Opened:
    """Open a model with a new head for a task, drawn from `seed`; torch's own state stays.

    `dropout` replaces every dropout rate of its config; None leaves them.

    Raises:
        UserError: the folder is damaged, or model and tokenizer do not belong together.
    """
    model_class, config = head_class(model, task)
    brings_head = config.architectures == [model_class.__name__]
    for name, value in config.to_dict().items():
        if "dropout" in name and dropout is not None and not isinstance(value, bool | str):
            setattr(config, name, dropout)
    config.num_labels = task.outputs  # names its outputs LABEL_0 …
    if task.kind == "classes":
        config.id2label = dict(enumerate(task.labels))
        config.label2id = {label: number for number, label in enumerate(task.labels)}
        config.problem_type = "single_label_classification"
    elif task.kind == "number":
        config.problem_type = "regression"
    if model.untrained:
        drawn = hashlib.sha256(f"{model.fingerprint} {seed}".encode()).digest()
        seed = int.from_bytes(drawn[:4], "big")  # torch's generator for a CPU drops the other bits
    base = rf"{model_class.base_model_prefix}\."
    new = rf"(?!{base}).*|{base}pooler\..*"
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.default_generator.manual_seed(seed)
        if model.untrained:
            opened: Any = model_class(config)
        else:
            ignore = rf"{new}|.*position_ids"
            opened = open_model(
                Path(model.folder), model_class, may_miss=new, may_ignore=ignore, config=config
            )
            if brings_head:  # it may be for other labels, and no other model has one
                fresh = model_class(config).state_dict()
                head = {name: tensor for name, tensor in fresh.items() if not re.match(base, name)}
                opened.load_state_dict(opened.state_dict() | head)
    return Opened(opened, *_tokenizer_for(opened, Path(model.folder)))


def _tokenizer_for(opened: Any, folder: Path) -> tuple[PreTrainedTokenizerBase, int, bool]:  # noqa: ANN401
    """A model's tokenizer, the most tokens of a row, and whether the model takes token types."""
    tokenizer = open_tokenizer(folder)
    known = len(opened.get_input_embeddings().weight)
    for wrong, what in (
        (not tokenizer.is_fast, "has no fast form (tokenizer.json)"),
        (tokenizer.pad_token_id is None, "has no padding token"),
        (max(tokenizer.get_vocab().values()) >= known, f"has ids beyond the model's {known:,}"),
    ):
        if wrong:
            raise UserError(f"The tokenizer in {folder} {what}. Take the model's own.")
    longest = tokenizer.model_max_length
    positions = getattr(opened.config, "max_position_embeddings", None) or longest
    table: Any = getattr(opened.base_model, "embeddings", None)
    padding = getattr(getattr(table, "position_embeddings", None), "padding_idx", None)
    if padding is not None:  # RoBERTa counts from behind it
        positions -= padding + 1
    arguments = inspect.signature(opened.forward).parameters
    # RoBERTa takes the argument but has only one type.
    types = getattr(opened.config, "type_vocab_size", 0)
    return tokenizer, min(positions, longest), "token_type_ids" in arguments and types > 1
