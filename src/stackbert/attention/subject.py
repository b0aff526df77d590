"""The models that are measured, the sentences that they read, and what is kept of that."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stackbert.attention.likeness import SENTENCES, Rows, keep_rows
from stackbert.attention.maps import SentenceMaps, attention_maps
from stackbert.attention.measures import MEASURES, head_table, sentence_sums
from stackbert.corpus.sentences import split_sentences
from stackbert.corpus.text import open_files
from stackbert.errors import UserError
from stackbert.intervals import F64
from stackbert.model_files import open_encoder, open_tokenizer
from stackbert.pretraining.record import final_model, model_name

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
        folder = final_model(Path(model))
        name, tokenizer = model_name(folder), folder if tokenizer is None else tokenizer
        model = open_encoder(folder)
    else:
        name = Path(model.config.name_or_path or type(model).__name__).name
    if tokenizer is None:
        raise UserError("A model passed as an object needs tokenizer=, an object or a folder.")
    if isinstance(tokenizer, str | Path):
        tokenizer = open_tokenizer(Path(tokenizer))
    return model, tokenizer, name


def sample_sentences(
    text: str | Path, tokenizer: PreTrainedTokenizerBase, count: int, *, seed: int = 0
) -> list[str]:
    """At most `count` of a text's sentences of at least `MIN_TOKENS` tokens, in random order.

    Those with the smallest hashes of seed and words are taken: a sentence that occurs twice counts
    once, and one pass in bounded memory is enough.
    """
    salt = seed.to_bytes(8, "little", signed=True)
    found: dict[bytes, str] = {}
    highest = b""  # of the hashes that may still be among the smallest; empty if any may
    for document in (text for file in open_files(text)[0] for text in file.documents()):
        for words in map(str.split, split_sentences(document.strip())):
            sentence = " ".join(words)
            digest = hashlib.blake2b(sentence.encode(), digest_size=8, key=salt).digest()[::-1]
            if digest in found or (highest and digest > highest):
                continue
            # Tokenising takes most of the time, so it comes last.
            ids = tokenizer(sentence, truncation=False, verbose=False)["input_ids"]
            if len(ids) >= MIN_TOKENS:
                found[digest] = sentence
            if len(found) >= 2 * count:
                found = dict(sorted(found.items())[:count])
                highest = max(found)
    if not found:
        raise UserError(f"{text} has no sentence of at least {MIN_TOKENS} tokens. Give more text.")
    return [sentence for _, sentence in sorted(found.items())[:count]]


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
