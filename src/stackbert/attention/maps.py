"""Attention maps of any transformers encoder, one sentence at a time.

Only eager attention returns its weights. It is switched on for each forward pass alone, so that
between two sentences the model is as it was given.

Shape letters: B sentences of a forward pass, L layers, H heads of a layer, S tokens of a sentence.
Rows of a map are queries, columns are keys, and every row sums to 1.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import pre_tokenizers
from transformers import PreTrainedModel

from stackbert.errors import UserError
from stackbert.files import reason

F32 = npt.NDArray[np.float32]

BATCH_TOKENS = 2048
"""Tokens of a forward pass, padding included. With 12 x 12 heads and sentences of 128 tokens the
maps take 151 MB."""
ROW_TOLERANCE = 0.01
"""How far the sum of a row may be from 1. Half precision is off by up to some thousandths."""


@dataclass(frozen=True)
class SentenceMaps:
    """All attention maps of one sentence, without padding."""

    index: int
    """Position of the sentence in the list that was given."""
    tokens: tuple[str, ...]
    """S readable tokens, special ones included."""
    separators: tuple[int, ...]
    """Positions of [SEP] (`</s>` in RoBERTa)."""
    maps_LHSS: F32


def attention_maps(
    model: PreTrainedModel,
    tokenizer: Any,  # noqa: ANN401 (any transformers tokenizer)
    sentences: Sequence[str],
    *,
    batch_tokens: int = BATCH_TOKENS,
    max_length: int = 128,
) -> Iterator[SentenceMaps]:
    """Run an encoder over sentences and yield the maps of each, shortest sentence first.

    Sentences of similar length share a forward pass, and only the maps of one pass are held.

    Args:
        model: a transformers encoder, with or without a head; left as it was.
        tokenizer: the model's tokenizer.
        sentences: each is encoded alone, between the tokenizer's special tokens.
        batch_tokens: the most tokens of a forward pass, padding included.
        max_length: tokens at which a sentence is cut, special ones included.

    Raises:
        UserError: the model returns no attention probabilities, or does not know the ids of the
            tokenizer.
    """
    encoded = encode(tokenizer, sentences, max_length)
    _check_ids(model, encoded)
    for group in _groups(encoded, batch_tokens):
        layers = _forward(model, [encoded[index] for index in group])
        for row, index in enumerate(group):
            ids = encoded[index]
            maps_LHSS = np.stack([layer[row, :, : len(ids), : len(ids)] for layer in layers])
            _check_probabilities(model, maps_LHSS)
            separators = [at for at, each in enumerate(ids) if each == tokenizer.sep_token_id]
            tokens = readable_tokens(tokenizer, ids)
            yield SentenceMaps(index, tokens, tuple(separators), maps_LHSS)


def encode(
    tokenizer: Any,  # noqa: ANN401
    sentences: Sequence[str],
    max_length: int,
) -> list[list[int]]:
    """Token ids of each sentence, special ones included, cut at `max_length`."""
    if not sentences:
        return []
    encoded = tokenizer(
        list(sentences), truncation=True, max_length=max_length, padding=False, verbose=False
    )
    return [list(map(int, ids)) for ids in encoded["input_ids"]]


def readable_tokens(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:  # noqa: ANN401
    """Tokens as a reader knows them; those of a byte-level tokenizer as text, not as its bytes.

    A character may be spread over several byte-level tokens. Each of them then shows the whole
    character.
    """
    tokens: list[str] = tokenizer.convert_ids_to_tokens(ids)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if "ByteLevel" not in f"{getattr(backend, 'pre_tokenizer', '')!r}":
        return tuple(tokens)
    special = set(tokenizer.all_special_ids)
    byte_of = _byte_of_symbol()
    parts = [
        token.encode() if at in special else bytes(byte_of.get(symbol, 63) for symbol in token)
        for token, at in zip(tokens, ids, strict=True)
    ]
    text = b"".join(parts)
    ends = np.cumsum([0, *map(len, parts)])
    return tuple(
        _widened(text, int(start), int(end)) for start, end in zip(ends, ends[1:], strict=False)
    )


def _byte_of_symbol() -> dict[str, int]:
    """The byte that each symbol of a byte-level tokenizer stands for (GPT-2's alphabet).

    Printable bytes stand for themselves; the others are numbered from 256 on.
    """
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {
        chr(256 + nth): byte for nth, byte in enumerate(rest)
    }
