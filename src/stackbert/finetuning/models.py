"""The models of a study, and opening one with a new head on top.

The head is new, and the pooler under it where pre-training had none; of the control everything.
"""

import hashlib
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)

from stackbert.errors import UserError
from stackbert.files import reading, sha256
from stackbert.finetuning.pooled import MeanPooled
from stackbert.finetuning.tasks import Settings, Task
from stackbert.model_files import (
    longest_row,
    open_model,
    open_tokenizer,
    quiet_transformers,
    read_config,
    seeded,
)
from stackbert.pretraining.record import final_model, model_name

CONTROL = "untrained"
_FILES = re.compile(  # what a model is: config, weights and tokenizer
    r"config\.json|model.*\.safetensors.*|tokenizer\.json|tokenizer_config\.json"
    r"|(special|added)_tokens.*\.json|vocab\..*|merges\.txt|.*\.model"
)


class Model(BaseModel):
    """One set of weights that is fine-tuned."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    folder: str
    fingerprint: str
    untrained: bool = False  # random weights are taken in place of those in the folder

    @property
    def key(self) -> str:
        """For file names."""
        plain = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")
        return f"{plain[:48]}-{self.fingerprint[:10]}"


def find_models(paths: Sequence[str | Path]) -> list[Model]:
    """The models in checkpoint folders and runs."""
    found = []
    for path in paths:
        folder = final_model(Path(path))
        read_config(folder)  # its errors are this function's
        found.append(
            Model(name=model_name(folder), folder=str(folder), fingerprint=_fingerprint(folder))
        )
    if not found:
        raise UserError("Name at least one model to fine-tune: a checkpoint folder or a run.")
    for one, other in itertools.combinations(found, 2):
        if one.name == other.name or one.fingerprint == other.fingerprint:
            raise UserError(
                f"{one.folder} and {other.folder} have the same name or the same weights. Leave "
                "one out, or rename a folder."
            )
    return found


def control_of(model: Model) -> Model:
    """A model with random weights, other ones for each seed; of one shape it is always the same."""
    shape = _fingerprint(Path(model.folder), weights=False)
    drawn = hashlib.sha256(f"untrained 0 {shape}".encode()).hexdigest()
    return Model(name=CONTROL, folder=model.folder, fingerprint=drawn, untrained=True)


def _fingerprint(folder: Path, *, weights: bool = True) -> str:
    whole = hashlib.sha256()
    with reading(folder):
        for path in sorted(folder.iterdir()):
            if _FILES.fullmatch(path.name) and (weights or ".safetensors" not in path.name):
                whole.update(f"{path.name} {sha256(path)}\n".encode())
    return whole.hexdigest()


class Opened(NamedTuple):
    """A model with a head, and its tokenizer, which knows what the model takes."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


class Encoded(NamedTuple):
    """A split's rows as a model takes them."""

    rows: list[dict[str, Any]]  # the model's arguments; of the training split with the labels
    note: str = ""  # how many were cut, if any
    windows: Sequence[Any] = ()  # of SQuAD, one a row


def head_class(model: Model, task: Task, pooling: str) -> tuple[type[PreTrainedModel], str, Any]:
    """The class with a head for a task, its encoder's name in it, and the model's config."""
    with reading(model.folder), quiet_transformers():
        config: Any = AutoConfig.from_pretrained(
            model.folder, local_files_only=True, trust_remote_code=False
        )
    is_span = task.kind == "span"
    classes: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if is_span:
        classes = MODEL_FOR_QUESTION_ANSWERING_MAPPING
    if type(config) not in classes:
        raise UserError(
            f"{model.folder} is a model of type '{config.model_type}', for which transformers has "
            f"no head for {task.title}. Take an encoder such as BERT."
        )
    if pooling == "mean" and is_span:
        raise UserError(f"pooling=mean is for sentences: set it for other tasks than {task.title}.")
    encoder = classes[type(config)].base_model_prefix
    return MeanPooled if pooling == "mean" else classes[type(config)], encoder, config


def open_with_head(model: Model, task: Task, settings: Settings, *, seed: int) -> Opened:
    """Open a model with a new head for a task, drawn from `seed`; torch's own state stays."""
    model_class, encoder, config = head_class(model, task, settings.pooling)
    brings_head = config.architectures == [model_class.__name__]
    for name, value in config.to_dict().items():
        if "dropout" in name and settings.dropout is not None and not isinstance(value, bool | str):
            setattr(config, name, settings.dropout)
    labels = task.labels or (("start", "end") if task.kind == "span" else ("number",))
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    config.problem_type = None  # the loss goes by the type of the labels
    config.pooled_texts = 2 if task.pair else 1
    if model.untrained:
        drawn = hashlib.sha256(f"{model.fingerprint} {seed}".encode()).digest()
        seed = int.from_bytes(drawn[:4], "big")  # torch's generator for a CPU drops the other bits
    base = rf"{encoder}\."
    new = rf"(?!{base}).*|{base}pooler\..*"
    folder = Path(model.folder)
    with seeded(seed), quiet_transformers():
        if model.untrained:
            opened: Any = model_class(config)
        else:
            ignore = rf"{new}|.*position_ids"
            opened = open_model(folder, model_class, may_miss=new, may_ignore=ignore, config=config)
            if brings_head:  # it may be for other labels, and no other model has one
                fresh = model_class(config).state_dict()
                head = {name: tensor for name, tensor in fresh.items() if not re.match(base, name)}
                opened.load_state_dict(opened.state_dict() | head, strict=True)
    tokenizer = open_tokenizer(folder)
    known = len(opened.get_input_embeddings().weight)
    if tokenizer.pad_token_id is None or max(tokenizer.get_vocab().values()) >= known:
        raise UserError(
            f"The tokenizer in {folder} has no padding token, or ids beyond the model's {known:,}. "
            "Take the model's own."
        )
    tokenizer.model_max_length = longest_row(opened, int(tokenizer.model_max_length))
    # RoBERTa takes token types as an argument but has only one; ModernBERT has none.
    types = ["token_type_ids"] if getattr(opened.config, "type_vocab_size", 0) > 1 else []
    tokenizer.model_input_names = ["input_ids", *types, "attention_mask"]
    return Opened(opened, tokenizer)
