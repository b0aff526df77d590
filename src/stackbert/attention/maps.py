"""Attention maps of any transformers encoder, a sentence at a time.

Only the eager implementation hands its weights out. It is switched on for each forward pass and
the model's own put back after it, so that between two sentences the model is as it was given.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stackbert.attention.result import SentenceMaps
from stackbert.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH_TOKENS = 2048
"""Tokens of a forward pass, padding included. With 12 x 12 heads and sentences of 128 tokens their
maps take 151 MB."""


def attention_maps(
    model: "PreTrainedModel",
    tokenizer: Any,  # noqa: ANN401 (any transformers tokenizer)
    sentences: Sequence[str],
    *,
    batch_tokens: int = BATCH_TOKENS,
    max_length: int = 128,
) -> Iterator[SentenceMaps]:
    """The maps of each sentence, without padding; shortest sentence first.

    Sentences of similar length share a forward pass; `index` says which one each result is of.
    Nothing of a sentence is kept once the next is asked for, but for those of the same pass.

    Args:
        model: a transformers encoder, with or without a head; left as it was.
        tokenizer: its tokenizer.
        sentences: to look at; a longer one is cut at `max_length` tokens.
        batch_tokens: tokens of a forward pass, padding included.
        max_length: tokens of a sentence, special ones included.

    Yields:
        One `SentenceMaps` for each sentence.

    Raises:
        UserError: the model gives no attention weights, or the tokenizer has ids that the model
            does not know.
    """
    encoded = encode_sentences(tokenizer, sentences, max_length)
    embeddings: Any = model.get_input_embeddings()
    rows = embeddings.num_embeddings
    highest = max((max(ids) for ids in encoded if ids), default=0)
    if highest >= rows:
        raise UserError(
            f"The tokenizer gives the id {highest}, but {type(model).__name__} has {rows} "
            "embeddings. Use the tokenizer that the model was trained with."
        )
    separator = tokenizer.sep_token_id
    for group in _groups(encoded, batch_tokens):
        attentions = _forward(model, [encoded[index] for index in group])
        for place, index in enumerate(group):
            ids = encoded[index]
            length = len(ids)
            maps = np.stack([layer[place, :, :length, :length] for layer in attentions])
            yield SentenceMaps(
                index=index,
                tokens=tuple(tokenizer.convert_ids_to_tokens(ids)),
                separators=tuple(at for at, each in enumerate(ids) if each == separator),
                maps=maps,
            )


def encode_sentences(
    tokenizer: Any,  # noqa: ANN401
    sentences: Sequence[str],
    max_length: int,
) -> list[list[int]]:
    """Token ids of each sentence, with its special tokens, cut at `max_length`."""
    if not sentences:
        return []
    encoded = tokenizer(
        list(sentences), truncation=True, max_length=max_length, padding=False, verbose=False
    )
    return [list(map(int, ids)) for ids in encoded["input_ids"]]


def longest_sentence(model: "PreTrainedModel", tokenizer: Any, max_length: int) -> int:  # noqa: ANN401
    """Tokens that a sentence may have: `max_length`, or what model and tokenizer allow."""
    positions = getattr(model.config, "max_position_embeddings", None) or max_length
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    before = getattr(table, "padding_idx", None)
    if before is not None:  # RoBERTa counts positions from behind the padding id
        positions -= before + 1
    allowed = tokenizer.model_max_length or max_length
    return int(min(max_length, positions, allowed))


def _groups(encoded: list[list[int]], batch_tokens: int) -> Iterator[list[int]]:
    """Places of sentences that share a forward pass."""
    group: list[int] = []
    for index in sorted(range(len(encoded)), key=lambda i: len(encoded[i])):
        if not encoded[index]:
            continue  # a tokenizer without special tokens, and nothing to look at
        if group and (len(group) + 1) * len(encoded[index]) > batch_tokens:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def _forward(model: "PreTrainedModel", encoded: list[list[int]]) -> list[Any]:
    """A float32 array (B, H, S, S) for each layer."""
    base: Any = model.base_model
    longest = max(map(len, encoded))
    padding = getattr(model.config, "pad_token_id", None) or 0
    ids = torch.full((len(encoded), longest), padding)
    mask = torch.zeros_like(ids)
    for row, each in enumerate(encoded):
        ids[row, : len(each)] = torch.tensor(each)
        mask[row, : len(each)] = 1
    inputs = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
    with eager_attention(model), torch.no_grad():
        try:
            output = base(**inputs, output_attentions=True, return_dict=True)
        except TypeError as error:  # a forward pass without these arguments
            raise _no_weights(model) from error
    attentions = getattr(output, "attentions", None)
    shapes = {tuple(layer.shape) for layer in attentions or () if layer is not None}
    heads = next(iter(shapes), (0, 0))[1]
    if (
        not attentions
        or any(layer is None for layer in attentions)
        or shapes != {(len(encoded), heads, longest, longest)}
    ):
        raise _no_weights(model)
    return [layer.float().cpu().numpy() for layer in attentions]


def _no_weights(model: "PreTrainedModel") -> UserError:
    return UserError(
        f"{type(model).__name__} ('{model.config.model_type}') gives no attention weights of "
        "every token to every token with its eager implementation, so there is nothing to "
        "measure. Encoders such as bert, roberta, megatron-bert and modernbert do."
    )


@contextlib.contextmanager
def eager_attention(model: "PreTrainedModel") -> Iterator[None]:
    """Within this block the model runs eager attention, in evaluation mode; then as before.

    Raises:
        UserError: transformers refuses the eager implementation for this model.
    """
    before = model.config._attn_implementation
    modes = [(module, module.training) for module in model.modules()]
    try:
        if before != "eager":
            _switch(model, "eager")
        model.train(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        if before is not None and model.config._attn_implementation != before:
            _switch(model, before)


def _switch(model: "PreTrainedModel", implementation: str) -> None:
    try:
        model.set_attn_implementation(implementation)
    except (ValueError, ImportError) as error:
        raise UserError(
            f"{type(model).__name__} cannot run the attention implementation '{implementation}': "
            f"{error}"
        ) from error
