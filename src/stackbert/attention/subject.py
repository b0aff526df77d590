"""The models that are measured, the sentences that they read, and what is kept of that."""

import copy
import hashlib
import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stackbert.attention.likeness import SENTENCES, Rows, keep_rows
from stackbert.attention.maps import SentenceMaps, attention_maps
from stackbert.attention.measures import F64, MEASURES, head_table, sentence_sums
from stackbert.corpus.sentences import split_sentences
from stackbert.corpus.text import open_files
from stackbert.errors import UserError
from stackbert.model_files import open_model, open_tokenizer, stored_class
from stackbert.pretraining.record import MODEL, is_run

MIN_TOKENS = 12  # with special ones; in shorter sentences every token is near every other
EXAMPLES = 4  # sentences whose maps are kept, the first ones
EXAMPLE_TOKENS = 32  # at which they are cut: the labels of more could not be read


@dataclass(frozen=True)
class Observed:
    """What is kept of a model that read a sample."""

    about: dict[str, Any]
    heads: pd.DataFrame
    rows: Rows
    examples: list[SentenceMaps]  # shortest first


def open_subject(
    model: str | Path | PreTrainedModel,
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    """Open a Hugging Face folder or a run's final model, or take a model; give its name, too."""
    if isinstance(model, str | Path):
        name, folder = Path(model).resolve().name, final_model(Path(model))
        tokenizer = folder if tokenizer is None else tokenizer
        model = load_encoder(folder)
    else:
        name = Path(model.config.name_or_path or type(model).__name__).name
    if tokenizer is None:
        raise UserError("A model passed as an object needs tokenizer=, an object or a folder.")
    if isinstance(tokenizer, str | Path):
        tokenizer = open_tokenizer(Path(tokenizer))
    return model, tokenizer, name


def final_model(folder: Path) -> Path:
    """`folder` itself, or the place where a run directory has its final model."""
    if not is_run(folder):
        return folder
    if not (folder / MODEL).is_dir():
        raise UserError(
            f"The run {folder} has no {MODEL}/ yet. Let it finish, or name a checkpoint."
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


def sample_sentences(
    text: str | Path, tokenizer: PreTrainedTokenizerBase, count: int, *, seed: int = 0
) -> list[str]:
    """At most `count` of a text's sentences of at least `MIN_TOKENS` tokens, in random order.

    Those with the smallest hashes of seed and words are taken: a sentence that occurs twice counts
    once, and one pass in bounded memory is enough.
    """
    sentences = (
        " ".join(sentence.split())
        for file in open_files(text)[0]
        for document in file.documents()
        for sentence in split_sentences(document.strip())
    )
    salt = seed.to_bytes(8, "little", signed=True)
    heap: list[tuple[int, str]] = []  # keys are negative: the one to be dropped first is on top
    for sentence in sentences:
        digest = hashlib.blake2b(sentence.encode(), digest_size=8, key=salt).digest()
        entry = (-int.from_bytes(digest, "little"), sentence)
        if (len(heap) == count and entry < heap[0]) or entry in heap:
            continue
        # Tokenising takes most of the time, so it comes last.
        if len(tokenizer(sentence, truncation=False, verbose=False)["input_ids"]) < MIN_TOKENS:
            continue
        heapq.heappush(heap, entry)
        if len(heap) > count:
            heapq.heappop(heap)
    if not heap:
        raise UserError(f"{text} has no sentence of at least {MIN_TOKENS} tokens. Give more text.")
    return [sentence for _, sentence in sorted(heap, reverse=True)]


def observe(
    model: PreTrainedModel,
    name: str,
    *,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[str],
    max_length: int,
    seed: int,
) -> Observed:
    """Make a model read sentences."""
    sums_LHM: F64 = np.zeros(())
    uniform_M: F64 = np.zeros(())
    tokens, rows = 0, {}
    for sentence in attention_maps(model, tokenizer, sentences, max_length=max_length):
        heads_LHM, alike_M = sentence_sums(sentence)
        sums_LHM, uniform_M = sums_LHM + heads_LHM, uniform_M + alike_M
        tokens += len(sentence.tokens)
        if sentence.index < SENTENCES:
            rows[sentence.index] = keep_rows(sentence, seed)
    uniform = dict(zip(MEASURES, (uniform_M / tokens).tolist(), strict=True))
    heads = head_table(sums_LHM / tokens, uniform)
    about = {
        "name": name,
        "type": model.config.model_type,
        "depth": int(heads["layer"].max()),
        "heads_per_layer": int(heads["head"].max()),
        "sentences": len(sentences),
        "tokens": tokens,
    }
    cut = min(max_length, EXAMPLE_TOKENS)
    drawn = attention_maps(model, tokenizer, sentences[:EXAMPLES], max_length=cut)
    return Observed(about | uniform, heads, rows, list(drawn))
