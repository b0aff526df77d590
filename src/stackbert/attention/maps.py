"""Attention maps of any transformers encoder, a sentence at a time: rows are queries and sum to 1.

Letters: L layers, B sentences of a forward pass, H heads of a layer, S tokens of a sentence.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stackbert.errors import UserError
from stackbert.files import reason
from stackbert.model_files import passes

F32 = npt.NDArray[np.float32]

BATCH_TOKENS = 2048  # of a forward pass: of 12 x 12 heads and 128 tokens the maps take 151 MB
ROW_TOLERANCE = 0.01  # of a row's sum; half precision is off by some thousandths


@dataclass(frozen=True)
class SentenceMaps:
    """All attention maps of one sentence."""

    index: int  # of the sentence in the list that was given
    tokens: tuple[str, ...]
    separators: tuple[int, ...]  # positions of [SEP] (`</s>` in RoBERTa)
    maps_LHSS: F32


def attention_maps(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[str],
    *,
    max_length: int = 128,
) -> Iterator[SentenceMaps]:
    """Run a copy of an encoder over sentences and yield the maps of each, shortest sentence first.

    Each sentence is encoded alone, between the tokenizer's special tokens, and cut at `max_length`
    tokens. Byte-level tokens are shown as the text that they stand for.
    """
    pre_tokenizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "pre_tokenizer", None)
    byte_level = "ByteLevel" in repr(pre_tokenizer)
    encoded = tokenizer(
        list(sentences), truncation=True, max_length=max_length, return_offsets_mapping=byte_level
    )
    encoder: Any = copy.deepcopy(model.base_model).eval()
    for group in passes(encoded["input_ids"], tokens=BATCH_TOKENS):
        maps_LBHSS = _forward(encoder, [encoded["input_ids"][index] for index in group])
        for row, index in enumerate(group):
            ids, maps_LHSS = encoded["input_ids"][index], np.ascontiguousarray(maps_LBHSS[:, row])
            sums = maps_LHSS.sum(axis=-1)
            # Also refuses NaN, which is close to nothing.
            if maps_LHSS.min() < 0 or not np.allclose(sums, 1, rtol=0, atol=ROW_TOLERANCE):
                raise _refusal(
                    encoder,
                    "gives attention weights that are not probabilities: those of a token sum to "
                    f"anything from {sums.min():.3g} to {sums.max():.3g}, not to 1",
                )
            tokens = tokenizer.convert_ids_to_tokens(ids)
            if byte_level:  # a special token or a space alone ("Ġ") stands for no text
                spans = encoded["offset_mapping"][index]
                tokens = [
                    sentences[index][start:end] or token.replace("Ġ", " ")
                    for token, (start, end) in zip(tokens, spans, strict=True)
                ]
            separators = [at for at, each in enumerate(ids) if each == tokenizer.sep_token_id]
            yield SentenceMaps(index, tuple(tokens), tuple(separators), maps_LHSS)


def _forward(encoder: Any, rows: Sequence[Sequence[int]]) -> F32:  # noqa: ANN401 (of any architecture)
    ids_BS = torch.tensor(rows, device=encoder.device)
    sentences, length = ids_BS.shape
    try:
        encoder.set_attn_implementation("eager")  # the only one that returns weights
        with torch.no_grad():
            output = encoder(
                ids_BS,
                attention_mask=torch.ones_like(ids_BS),
                output_attentions=True,
                return_dict=True,
            )
        maps = torch.stack(tuple(output.attentions)).float().cpu()
        return maps.view(len(maps), sentences, -1, length, length).numpy()
    except Exception as error:  # every architecture fails in its own way
        raise _refusal(
            encoder, f"gives no attention weights of every token to every token: {reason(error)}"
        ) from error


def _refusal(encoder: PreTrainedModel, why: str) -> UserError:
    return UserError(
        f"{type(encoder).__name__} ('{encoder.config.model_type}') {why}. Use an encoder such as "
        "BERT, RoBERTa, Megatron-BERT or ModernBERT, with its own tokenizer."
    )
