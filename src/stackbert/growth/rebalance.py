"""Bring the weights of a pre-norm model back to their initial scale without changing its function.

Training with Muon leaves matrices up to ten times as large as they began, and AdamW at the usual
rates of fine-tuning hardly moves them.
"""

import math
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from stackbert.errors import UserError
from stackbert.growth.grow import find_layers, output_projections
from stackbert.model_files import seeded

TOLERANCE = 1e-4
"""Of a norm's eps, which stays as it is, to the smallest variance that it is added to."""

# The norms before attention, before the feed-forward part, behind the embeddings, in the head.
_NORMS = {
    "megatron-bert": ("attention.ln", "ln", "", "cls.predictions.transform.LayerNorm"),
    "roberta-prelayernorm": (
        "attention.LayerNorm",
        "intermediate.LayerNorm",
        "LayerNorm",
        "lm_head.layer_norm",
    ),
    "modernbert": ("attn_norm", "mlp_norm", "norm", "head.norm"),
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
    whole: Any = model
    kind = whole.config.model_type
    if kind not in _NORMS:
        raise UserError(
            f"A model of type '{kind}' cannot be rebalanced: only with norms before the layers do "
            f"rescaled weights compute the same ({', '.join(_NORMS)})."
        )
    *layer_norms, behind_tables, head_norm = _NORMS[kind]
    with seeded(0):
        fresh: Any = type(model)(whole.config)
    layers, fresh_layers = find_layers(model)[1], find_layers(fresh)[1]
    words = whole.get_input_embeddings()
    tables_norm = getattr(whole.base_model.embeddings, behind_tables, None)

    written = _written(layers)
    eps = max(module.eps for module in layers.modules() if isinstance(module, nn.LayerNorm))
    entering = _size([tables_norm or words])
    stream = _exact(_factor(written, _written(fresh_layers)), entering, eps)
    _scale(written, 1 / stream)
    for layer, fresh_layer in zip(layers, fresh_layers, strict=True):
        readers = zip(layer_norms, _read(layer), _read(fresh_layer), strict=True)
        for norm_name, read, fresh_read in readers:
            norm, factor = layer.get_submodule(norm_name), 1 / stream
            if isinstance(norm, nn.LayerNorm):
                factor = _factor(read, fresh_read)
                _scale([norm], factor)
            for matrix in read:
                matrix.weight.div_(factor)

    factor = stream
    if tables_norm is not None:
        _scale([tables_norm], 1 / stream)
        factor = _factor([words], [fresh.get_input_embeddings()])
        factor = _exact(factor, _size([words]), tables_norm.eps)
    decoder = whole.get_output_embeddings()
    if decoder is not None and decoder.weight is words.weight:
        _scale([model.get_submodule(head_norm)], factor)
    tables = [each for each in whole.base_model.modules() if isinstance(each, nn.Embedding)]
    _scale(tables, 1 / factor)


def _written(layers: nn.ModuleList) -> list[nn.Module]:
    """The matrices that add to the residual stream."""
    return [layer.get_submodule(name) for layer in layers for name in output_projections(layer)]


def _read(layer: nn.Module) -> tuple[list[Any], list[Any]]:
    """The matrices that read a norm: in attention, and in the feed-forward part."""
    matrices = [name for name, each in layer.named_modules() if isinstance(each, nn.Linear)]
    reading = [name for name in matrices if name not in output_projections(layer)]
    attention = [layer.get_submodule(name) for name in reading if name.startswith("att")]
    return attention, [layer.get_submodule(n) for n in reading if not n.startswith("att")]


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
        for parameter in module.parameters():
            parameter.mul_(factor)
