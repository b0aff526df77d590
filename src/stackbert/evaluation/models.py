"""The models of an evaluation, opened one at a time, and rows of one length for them to read."""

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModel, AutoModelForMaskedLM, BatchEncoding

from stackbert.errors import UserError
from stackbert.machine import pick_device
from stackbert.model_files import longest_row, open_model, open_tokenizer, stored_class
from stackbert.pretraining.record import CHECKPOINTS, MODEL, is_run

LONGEST = 128
"""Tokens of a row; what comes after is cut."""
BATCH_TOKENS = 8192
"""Of a forward pass."""


class Place(NamedTuple):
    """A model's name and folder, and the step of a checkpoint."""

    name: str
    folder: Path
    step: int | None


@dataclass(frozen=True)
class Subject:
    """An opened model in float32 and evaluation mode, with its tokenizer."""

    model: Any
    tokenizer: Any
    has_head: bool
    """Whether it can fill masks."""

    def encode(self, texts: Sequence[str]) -> BatchEncoding:
        """Their ids, with the characters and the word that each token stands for."""
        longest = longest_row(self.model, min(LONGEST, int(self.tokenizer.model_max_length)))
        encoded: BatchEncoding = self.tokenizer(
            list(texts), truncation=True, max_length=longest, return_offsets_mapping=True
        )
        return encoded

    @property
    def shape(self) -> str:
        """Equal for models whose random twins differ in nothing: type, sizes and tokenizer."""
        sizes = [tuple(each.shape) for each in self.model.base_model.parameters()]
        return f"{type(self.model)} {sizes} {self.tokenizer.backend_tokenizer.to_str()}"

    def random_twin(self) -> "Subject":
        """An encoder of the same shape, with weights as its class initialises them."""
        base = self.model.base_model
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            fresh = type(base)(copy.deepcopy(base.config)).eval()
        return replace(self, model=fresh.to(self.model.device), has_head=False)


def find_places(models: Sequence[str | Path]) -> list[Place]:
    """The folders to open; of a run its checkpoints in turn and the final model.

    Raises:
        UserError: there is none, or two have the same name.
    """
    places = []
    for model in (Path(model).resolve() for model in models):
        folders = [model]
        if is_run(model):
            # The final model may be more than its last checkpoint: a mean of several.
            found = sorted((model / CHECKPOINTS).glob("step-????????"))
            folders = [*found, *model.glob(MODEL)]
        for folder in folders:
            name, step = folder.name, folder.name.removeprefix("step-")
            if is_run(folder.parent.parent):  # a checkpoint
                name = f"{folder.parent.parent.name} {name}"
            elif is_run(folder.parent):
                name = folder.parent.name
            places.append(Place(name, folder, int(step) if step.isdigit() else None))
    names = [place.name for place in places]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"Two models are called '{twice[0]}'. Rename a folder, or leave one out.")
    if not places:
        raise UserError("There is no model: name checkpoint folders, or runs with checkpoints.")
    return places


def open_subject(folder: Path) -> Subject:
    """Open a model, with its masked-LM head if it has one.

    Raises:
        UserError: transformers does not open it, or its tokenizer has no fast form.
    """
    has_head = stored_class(folder).__name__.endswith(("ForMaskedLM", "ForPreTraining"))
    model = open_model(
        folder,
        AutoModelForMaskedLM if has_head else AutoModel,
        may_miss=r"(.*\.)?pooler\..*",
        may_ignore=r"(?!.*\.\d+\.).*",  # what is in no numbered layer: other heads
    )
    tokenizer = open_tokenizer(folder)
    if not tokenizer.is_fast:
        raise UserError(f"The tokenizer in {folder} has no fast form (tokenizer.json).")
    device: Any = pick_device()
    return Subject(model.to(device), tokenizer, has_head)


def passes(rows: Sequence[Sequence[int]], copies: bool = False) -> Iterator[list[int]]:
    """Places of rows of the same length, for a forward pass each; nothing has to be padded.

    With `copies` the pass takes each row once for each of its tokens.
    """
    order = sorted(range(len(rows)), key=lambda at: len(rows[at]))
    for length, group in itertools.groupby(order, key=lambda at: len(rows[at])):
        size = max(1, BATCH_TOKENS // (length * (length if copies else 1)))
        while chosen := list(itertools.islice(group, size)):
            yield chosen
