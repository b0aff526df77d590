"""The models of an evaluation, opened one at a time, and rows of one length for them to read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoModel, AutoModelForMaskedLM, BatchEncoding

from stackbert.errors import UserError
from stackbert.machine import pick_device
from stackbert.model_files import (
    longest_row,
    open_encoder,
    open_tokenizer,
    random_twin,
    stored_class,
)
from stackbert.pretraining.record import CHECKPOINTS, MODEL, is_run, model_name

LONGEST = 128  # tokens of a row; what comes after is cut


@dataclass(frozen=True)
class Subject:
    """An opened model in float32 and evaluation mode, with its tokenizer."""

    model: Any
    tokenizer: Any
    has_head: bool  # whether it can fill masks

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
        return replace(self, model=random_twin(self.model, 0).to(self.model.device), has_head=False)


def find_models(models: Sequence[str | Path]) -> dict[str, Path]:
    """The folders to open, by name; of a run its checkpoints in turn and the final model."""
    folders: list[Path] = []
    for model in map(Path, models):
        # The final model may be more than its last checkpoint: a mean of several.
        found = [*sorted((model / CHECKPOINTS).glob("step-????????")), *model.glob(MODEL)]
        folders += found if is_run(model) else [model]
    names = list(map(model_name, folders))
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"Two models are called '{twice[0]}'. Rename a folder, or leave one out.")
    if not folders:
        raise UserError("There is no model: name checkpoint folders, or runs with checkpoints.")
    return dict(zip(names, folders, strict=True))


def open_subject(folder: Path) -> Subject:
    """Open a model, with its masked-LM head if it has one; UserError if that cannot be done."""
    has_head = stored_class(folder).__name__.endswith(("ForMaskedLM", "ForPreTraining"))
    model: Any = open_encoder(folder, AutoModelForMaskedLM if has_head else AutoModel)
    return Subject(model.to(pick_device()), open_tokenizer(folder), has_head)
