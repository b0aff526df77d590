"""Bring the weights of a pre-norm model back to their initial scale without changing its function.

Training with Muon leaves matrices up to ten times as large as they began, and AdamW at the usual
rates of fine-tuning hardly moves them.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from stackbert.errors import UserError
from stackbert.growth.grow import find_layers

TOLERANCE = 1e-4
"""Of a norm's eps, which stays as it is, to the smallest variance that it is added to."""


class _Parts(NamedTuple):
    """What transformers calls the parts of a pre-norm model."""

    reads: dict[str, tuple[str, ...]]  # by a layer's norm, the matrices that read what it gives
    writes: tuple[str, ...]  # matrices that add to the residual stream
    tables_norm: str  # of the embeddings, if they have one
    head_norm: str  # before the decoder


_QKV = tuple(f"attention.self.{name}" for name in ("query", "key", "value"))
_BERT_UP, _BERT_WRITES = ("intermediate.dense",), ("attention.output.dense", "output.dense")
_FAMILIES = {
    "megatron-bert": _Parts(
        {"attention.ln": _QKV, "ln": _BERT_UP},
        _BERT_WRITES,
        tables_norm="",
        head_norm="cls.predictions.transform.LayerNorm",
    ),
    "roberta-prelayernorm": _Parts(
        {"attention.LayerNorm": _QKV, "intermediate.LayerNorm": _BERT_UP},
        _BERT_WRITES,
        tables_norm="LayerNorm",
        head_norm="lm_head.layer_norm",
    ),
    "modernbert": _Parts(
        {"attn_norm": ("attn.Wqkv",), "mlp_norm": ("mlp.Wi",)},
        ("attn.Wo", "mlp.Wo"),
        tables_norm="norm",
        head_norm="head.norm",
    ),
}


@torch.no_grad()
def rebalance(model: PreTrainedModel) -> None:
    """Rescale the weights in place to the size that the model's class initialises them to.

    Matrices that read a norm hand their factor to it. Those that write to the residual stream share
    one with what enters the stream, of which later norms see only the direction. Embedding tables
    hand theirs to the norm behind them, and to the one before a tied decoder. Factors are powers of
    two, so nothing is rounded in any dtype; logits differ by the norms' eps alone, by less than
    1e-4 of their size. For that, modernbert (eps 1e-5) keeps a part of its stream's factor; its
    first attention reads the stream without a norm, and grows as it shrinks. Heads and pooler stay.

    Args:
        model: megatron-bert, roberta-prelayernorm or modernbert, with or without a head.

    Raises:
        UserError: another type, which has no norms in these places.
    """
    config: Any = model.config
    parts = _FAMILIES.get(config.model_type)
    if parts is None:
        raise UserError(
            f"A model of type '{config.model_type}' cannot be rebalanced: only with norms before "
            f"the layers do rescaled weights compute the same ({', '.join(_FAMILIES)})."
        )
    with torch.random.fork_rng(devices=[]):
        fresh = type(model)(config)
    layers, fresh_layers = find_layers(model)[1], find_layers(fresh)[1]
    written, fresh_written = (_within(each, parts.writes) for each in (layers, fresh_layers))
    (words, *others), (fresh_words, *_) = _tables(model), _tables(fresh)
    tables_norm: Any = getattr(model.base_model.embeddings, parts.tables_norm, None)
    eps = max(module.eps for module in layers.modules() if isinstance(module, nn.LayerNorm))
    entering = _size([tables_norm or words])
    stream = _exact(_factor(written, fresh_written), entering, eps)
    _scale(written, 1 / stream)
    for layer, fresh_layer in zip(layers, fresh_layers, strict=True):
        for norm_name, names in parts.reads.items():
            matrices, norm = _within([layer], names), layer.get_submodule(norm_name)
            factor = 1 / stream
            if isinstance(norm, nn.LayerNorm):
                factor = _factor(matrices, _within([fresh_layer], names))
                _scale([norm], factor)
            for matrix in matrices:
                matrix.weight.div_(factor)
    factor = stream
    if tables_norm is not None:
        _scale([tables_norm], 1 / stream)
        factor = _exact(_factor([words], [fresh_words]), _size([words]), tables_norm.eps)
    whole: Any = model
    decoder = whole.get_output_embeddings()
    if decoder is not None and decoder.weight is words.weight:
        _scale([model.get_submodule(parts.head_norm)], factor)
    for table in (words, *others):
        table.weight.div_(factor)


def _within(layers: Iterable[nn.Module], names: Iterable[str]) -> list[Any]:
    return [layer.get_submodule(name) for layer in layers for name in names]


def _tables(model: PreTrainedModel) -> list[Any]:
    """The embedding tables, that of the words first."""
    words: Any = model.get_input_embeddings()
    tables = (each for each in model.base_model.modules() if isinstance(each, nn.Embedding))
    return [words, *(each for each in tables if each is not words)]


def _size(modules: list[Any]) -> float:
    """Root mean square of the weights."""
    return math.sqrt(sum(float(m.weight.float().square().mean()) for m in modules) / len(modules))


def _factor(modules: list[Any], fresh: list[Any]) -> float:
    return 2.0 ** round(math.log2(_size(modules) / _size(fresh)))


def _exact(factor: float, size: float, eps: float) -> float:
    """`factor`, or less: a norm's input of this size may shrink until its eps would be felt."""
    return min(factor, max(1.0, 2.0 ** math.floor(math.log2(size * math.sqrt(TOLERANCE / eps)))))


def _scale(modules: list[Any], factor: float) -> None:
    for module in modules:
        module.weight.mul_(factor)
        if module.bias is not None:
            module.bias.mul_(factor)
