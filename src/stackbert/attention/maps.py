"""Attention maps of any transformers encoder, one sentence at a time.

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
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stackbert.errors import UserError
from stackbert.files import reason
from stackbert.model_files import longest_row

F32 = npt.NDArray[np.float32]

BATCH_TOKENS = 2048
"""Of a forward pass, padding included: of 12 x 12 heads and 128 tokens the maps take 151 MB."""
ROW_TOLERANCE = 0.01
"""How far the sum of a row may be from 1. Half precision is off by some thousandths."""


@dataclass(frozen=True)
class SentenceMaps:
    """All attention maps of one sentence, without padding."""

    index: int
    """Of the sentence in the list that was given."""
    tokens: tuple[str, ...]
    separators: tuple[int, ...]
    """Positions of [SEP] (`</s>` in RoBERTa)."""
    maps_LHSS: F32


def attention_maps(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[str],
    *,
    batch_tokens: int = BATCH_TOKENS,
    max_length: int = 128,
) -> Iterator[SentenceMaps]:
    """Run an encoder over sentences and yield the maps of each, shortest sentence first.

    Each sentence is encoded alone, between the tokenizer's special tokens, and cut at `max_length`
    tokens. Sentences of similar length share a forward pass of at most `batch_tokens`, padding
    included; only the maps of one pass are held.

    Raises:
        UserError: the model returns no attention probabilities, or does not know the tokenizer's
            ids.
    """
    encoded = encode(tokenizer, sentences, max_length)
    highest = max((max(ids) for ids in encoded if ids), default=0)
    known = getattr(model.config, "vocab_size", None)
    if known and highest >= known:
        raise UserError(
            f"The tokenizer gives the id {highest}, but {type(model).__name__} knows only {known} "
            "ids. Use the tokenizer that the model was trained with."
        )
    for group in _groups(encoded, batch_tokens):
        layers = _forward(model, [encoded[index] for index in group])
        for row, index in enumerate(group):
            ids = encoded[index]
            maps_LHSS = np.stack([layer[row, :, : len(ids), : len(ids)] for layer in layers])
            sums = maps_LHSS.sum(axis=-1)
            # Also refuses NaN, which is close to nothing.
            if maps_LHSS.min() < 0 or not np.allclose(sums, 1, rtol=0, atol=ROW_TOLERANCE):
                raise _refusal(
                    model,
                    "returns attention weights that are not probabilities: those of a token sum "
                    f"to anything from {sums.min():.3g} to {sums.max():.3g}, not to 1",
                )
            separators = [at for at, each in enumerate(ids) if each == tokenizer.sep_token_id]
            tokens = readable_tokens(tokenizer, sentences[index], ids)
            yield SentenceMaps(index, tokens, tuple(separators), maps_LHSS)


def encode(
    tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str], max_length: int
) -> list[list[int]]:
    """Token ids of each sentence, special ones included, cut at `max_length`."""
    options = {"truncation": True, "max_length": max_length, "verbose": False}
    return [tokenizer(sentence, **options)["input_ids"] for sentence in sentences]


def readable_tokens(
    tokenizer: PreTrainedTokenizerBase, sentence: str, ids: list[int]
) -> tuple[str, ...]:
    """The tokens of a sentence as a reader knows them.

    Byte-level tokens are shown as the text that they stand for; parts of a character as the whole.
    """
    tokens = list(tokenizer.convert_ids_to_tokens(ids))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if "ByteLevel" not in repr(getattr(backend, "pre_tokenizer", None)):
        return tuple(tokens)
    encoded = tokenizer(sentence, truncation=True, max_length=len(ids), return_offsets_mapping=True)
    # A special token stands for no text, and neither does a space alone ("Ġ").
    return tuple(
        sentence[start:end] or token.replace("Ġ", " ")
        for token, (start, end) in zip(tokens, encoded["offset_mapping"], strict=True)
    )


def longest_sentence(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> int:
    """`max_length`, or fewer tokens if the model's positions or its tokenizer allow only fewer."""
    return min(max_length, longest_row(model, tokenizer))


def _groups(encoded: list[list[int]], batch_tokens: int) -> Iterator[list[int]]:
    """Positions of the sentences that share a forward pass."""
    group: list[int] = []
    for index in sorted(range(len(encoded)), key=lambda i: len(encoded[i])):
        if not encoded[index]:
            continue  # an empty sentence of a tokenizer without special tokens
        if group and (len(group) + 1) * len(encoded[index]) > batch_tokens:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def _forward(model: PreTrainedModel, encoded: list[list[int]]) -> list[F32]:
    """An array (B, H, S, S) for each layer."""
    longest = max(map(len, encoded))
    padding = getattr(model.config, "pad_token_id", None) or 0
    ids_BS = torch.tensor([ids + [padding] * (longest - len(ids)) for ids in encoded])
    mask_BS = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in encoded])
    inputs = {"input_ids": ids_BS.to(model.device), "attention_mask": mask_BS.to(model.device)}
    try:
        with _eager_attention(model), torch.no_grad():
            output = model.base_model(**inputs, output_attentions=True, return_dict=True)
    except Exception as error:  # every architecture fails in its own way
        raise _refusal(model, f"does not run with output_attentions: {reason(error)}") from error
    layers: Any = getattr(output, "attentions", None) or [None]
    shapes = {tuple(getattr(layer, "shape", ())) for layer in layers}
    shape = shapes.pop()
    if shapes or len(shape) != 4 or (shape[0], *shape[2:]) != (len(encoded), longest, longest):
        raise _refusal(model, "returns no attention weights of every token to every token")
    return [layer.float().cpu().numpy() for layer in layers]


def _refusal(model: PreTrainedModel, why: str) -> UserError:
    return UserError(
        f"{type(model).__name__} ('{model.config.model_type}') {why}. Use an encoder such as BERT, "
        "RoBERTa, Megatron-BERT or ModernBERT."
    )


@contextlib.contextmanager
def _eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Run eager attention, the only one that returns weights, in evaluation mode in this block."""
    before = model.config._attn_implementation
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.set_attn_implementation("eager")
        model.train(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        model.set_attn_implementation(before)
