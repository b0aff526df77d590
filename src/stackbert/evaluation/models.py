"""The models of an evaluation, opened one at a time, and made to read."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from stackbert.errors import UserError
from stackbert.machine import pick_device
from stackbert.model_files import longest_row, open_model, open_tokenizer, stored_class
from stackbert.pretraining.checkpoints import STATE, CheckpointState
from stackbert.pretraining.record import CHECKPOINTS, MODEL, is_run

BATCH_TOKENS = 8192
"""Of a forward pass, padding included."""


@dataclass(frozen=True)
class Place:
    """Where a model lies, and what it is called."""

    name: str
    folder: Path
    step: int | None = None
    """Of a run's checkpoint."""


@dataclass(frozen=True)
class Subject:
    """An opened model in float32 and evaluation mode, with its tokenizer."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    has_head: bool
    """Whether it can fill masks."""
    longest: int
    """Tokens of a row that it can read."""


def find_places(models: Sequence[str | Path]) -> list[Place]:
    """The folders to open: a checkpoint folder is one, of a run its checkpoints and final model.

    Raises:
        UserError: there is none, or two have the same name.
    """
    places: list[Place] = []
    for model in map(Path, models):
        if not is_run(model):
            folder = model.resolve()
            is_final = folder.name == MODEL and is_run(folder.parent)
            places.append(Place(folder.parent.name if is_final else folder.name, folder))
            continue
        name, found = model.resolve().name, {}
        for folder in sorted((model / CHECKPOINTS).glob("step-????????")):
            step = CheckpointState.read(folder / STATE).counters.step
            found[step] = Place(f"{name} step {step:,}", folder, step)
        if (model / MODEL).is_dir() and found:  # it may be more than its last checkpoint: a mean
            step = max(found)
            found[step] = Place(found[step].name, model / MODEL, step)
        if not found:
            raise UserError(f"The run {model} has no checkpoint yet. Wait for its first.")
        places += found.values()
    names = [place.name for place in places]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"Two models are called '{twice[0]}'. Rename a folder, or leave one out.")
    if not places:
        raise UserError("Name at least one model to evaluate: a checkpoint folder or a run.")
    return places


def open_subject(place: Place) -> Subject:
    """Open a model, with its masked-LM head if it has one.

    Raises:
        UserError: transformers does not open the folder, or its tokenizer has no fast form.
    """
    has_head = stored_class(place.folder).__name__.endswith(("ForMaskedLM", "ForPreTraining"))
    model = open_model(
        place.folder,
        AutoModelForMaskedLM if has_head else AutoModel,
        may_miss=r"(.*\.)?pooler\..*",
        may_ignore=r"(?!.*\.\d+\.).*",  # what is in no numbered layer: other heads
    )
    tokenizer = open_tokenizer(place.folder)
    if not tokenizer.is_fast or tokenizer.pad_token_id is None:
        raise UserError(
            f"The tokenizer in {place.folder} has no fast form (tokenizer.json) or no padding "
            "token, so its tokens cannot be assigned to words."
        )
    model.to(pick_device())  # type: ignore[arg-type]
    return Subject(place.name, model, tokenizer, has_head, longest_row(model, tokenizer))


def random_twin(subject: Subject, seed: int) -> Subject:
    """The encoder of the same shape with weights as its class initialises them."""
    base: Any = subject.model.base_model
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        fresh: PreTrainedModel = type(base)(copy.deepcopy(base.config)).eval()
    fresh.to(subject.model.device)  # type: ignore[arg-type]
    return Subject(subject.name, fresh, subject.tokenizer, False, subject.longest)


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places of the rows that share a pass: of similar length, `BATCH_TOKENS` with padding."""
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if group and (len(group) + 1) * lengths[index] > BATCH_TOKENS:
            yield group
            group = []
        group.append(index)
    if group:
        yield group
