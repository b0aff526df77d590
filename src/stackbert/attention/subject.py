"""A model to be measured: opened with its tokenizer, and made to read sentences."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stackbert.attention.likeness import SENTENCES, Rows, keep_rows
from stackbert.attention.maps import SentenceMaps, attention_maps
from stackbert.attention.measures import F64, MEASURES, head_table, sentence_sums
from stackbert.errors import UserError
from stackbert.model_files import open_model, open_tokenizer, stored_class
from stackbert.pretraining.record import MODEL, is_run

EXAMPLE_TOKENS = 32
"""Tokens at which a sentence to be drawn is cut: the labels of more could not be read."""


class Subject(NamedTuple):
    """A model with its tokenizer and name."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str


@dataclass(frozen=True)
class Sample:
    """What every model of a measurement reads."""

    sentences: Sequence[str]
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    seed: int


@dataclass(frozen=True)
class Observed:
    """What is kept of a model that read a sample."""

    about: dict[str, Any]
    """A row of `AttentionResult.models`."""
    heads: pd.DataFrame
    rows: Rows
    examples: list[SentenceMaps]


def open_subject(
    model: str | Path | PreTrainedModel,
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
) -> Subject:
    """Open a Hugging Face folder, a run's final model (named as the run), or take a model as it is.

    Raises:
        UserError: transformers does not open the folder, or there is no tokenizer.
    """
    if isinstance(model, str | Path):
        folder = final_model(Path(model)).resolve()
        name = folder.parent.name if is_run(folder.parent) and folder.name == MODEL else folder.name
        tokenizer = folder if tokenizer is None else tokenizer
        model = load_encoder(folder)
    else:
        name = Path(model.config.name_or_path or type(model).__name__).name
    if tokenizer is None:
        raise UserError("A model passed as an object needs tokenizer=, an object or a folder.")
    if isinstance(tokenizer, str | Path):
        tokenizer = open_tokenizer(Path(tokenizer))
    return Subject(model, tokenizer, name)


def final_model(folder: Path) -> Path:
    """`folder` itself, or the place where a run directory has its final model."""
    if not is_run(folder):
        return folder
    if not (folder / MODEL).is_dir():
        raise UserError(
            f"The run {folder} is not finished: it has no {MODEL}/ yet. Wait for it to end, or "
            "name one of its checkpoints."
        )
    return folder / MODEL


def load_encoder(folder: Path) -> PreTrainedModel:
    """A folder's model in float32. A pooler may be missing, and heads may be left over."""
    return open_model(
        folder,
        stored_class(folder),
        may_miss=r"(.*\.)?pooler\..*",
        may_ignore=r"(?!.*\.\d+\.).*",  # what is in no numbered layer
    )


def untrained(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """An encoder of the same class and config, as initialised with `seed`."""
    base: Any = model.base_model
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        fresh: PreTrainedModel = type(base)(copy.deepcopy(base.config))
    return fresh


def observe(
    model: PreTrainedModel, name: str, sample: Sample, examples: Sequence[str] = ()
) -> Observed:
    """Make a model read a sample, and keep the maps of `examples`. It is left as it was."""
    sums_LHM: F64 = np.zeros(())
    uniform_M: F64 = np.zeros(())
    rows: Rows = {}
    lengths = []
    for sentence in attention_maps(
        model, sample.tokenizer, sample.sentences, max_length=sample.max_length
    ):
        heads_LHM, alike_M = sentence_sums(sentence)
        sums_LHM, uniform_M = sums_LHM + heads_LHM, uniform_M + alike_M
        lengths.append(len(sentence.tokens))
        if sentence.index < SENTENCES:
            rows[sentence.index] = keep_rows(sentence, sample.seed)
    if not lengths:
        raise UserError("None of the sentences has a token, so there is nothing to measure.")
    tokens = sum(lengths)
    uniform = dict(zip(MEASURES, (uniform_M / tokens).tolist(), strict=True))
    drawn = attention_maps(
        model, sample.tokenizer, examples, max_length=min(sample.max_length, EXAMPLE_TOKENS)
    )
    heads = head_table(sums_LHM / tokens, uniform)
    about = {
        "name": name,
        "type": model.config.model_type,
        "depth": int(heads["layer"].max()),
        "heads_per_layer": int(heads["head"].max()),
        "sentences": len(lengths),
        "tokens": tokens,
    }
    return Observed(about | uniform, heads, rows, sorted(drawn, key=lambda each: each.index))


def check_same_tokenizer(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase) -> None:
    """Refuse to compare the maps of models that cut text differently."""
    if first.get_vocab() != second.get_vocab():
        raise UserError(
            "The models have different vocabularies, so the rows of their maps do not correspond. "
            "Compare models of one tokenizer."
        )
