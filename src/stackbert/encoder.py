"""One pass through a transformers encoder, carried only as far as the loss looks.

The modules and their weights are transformers'; the path through them is ours, for three reasons.

The loss looks at the masked positions alone, and beyond the last layer's keys and values nothing
mixes positions any more. So the last layer takes its queries, output projection and feed-forward at
those positions only. Nothing else about the result changes, and at depth 2 with 15 % masked a third
of the encoder's arithmetic is saved: a shallow stage is where it counts.

Rows are full, so attention needs no mask, and every type goes through torch's fused attention, also
those whose own implementation multiplies it out; in bf16 on a CPU it is the other way round.

One function is every layer, with the layer as its argument. Compiled, it is one graph for all
layers and all depths, so growing compiles nothing again.

Types whose layers are built otherwise (modernbert) go through their own forward pass.

Shape letters: B rows, S positions of a row, K looked at in each row, H hidden size, M = B·K.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MULTIPLIED_OUT = 1024
"""Positions up to which attention in bf16 on a CPU is multiplied out: there the backward pass of
torch's fused kernel takes six times as long. In fp32, and beyond, the fused one is faster."""
Head = Callable[[Tensor], Tensor]
MASKED_FORWARD_TYPES = frozenset({"bert", "roberta", "megatron-bert", "roberta-prelayernorm"})
"""config.model_type of those whose layers are built as BERT's, norms before or after."""


def layer(module: nn.Module, x_BSH: Tensor) -> Tensor:
    """A whole BERT-like layer, post-norm or pre-norm: (B, S, H) to (B, S, H)."""
    parts: Any = module
    context = _attend(parts.attention, x_BSH, None)
    attended = parts.attention.output(context, x_BSH)
    result: Tensor = parts.feed_forward_chunk(attended)
    return result


def last_layer(module: nn.Module, x_BSH: Tensor, positions_M: Tensor) -> Tensor:
    """A layer at some positions only, which see all: (B, S, H) to (B, K, H).

    Args:
        module: the layer.
        x_BSH: its input at all positions.
        positions_M: indices into the flattened (B·S) rows, K of each row, row by row.
    """
    parts: Any = module
    context = _attend(parts.attention, x_BSH, positions_M)
    attended = parts.attention.output(context, _at(x_BSH, positions_M))
    result: Tensor = parts.feed_forward_chunk(attended)
    return result


def _attend(attention: Any, x_BSH: Tensor, positions_M: Tensor | None) -> Tensor:  # noqa: ANN401
    own = attention.self
    # What the pre-norm types call their norm; post-norm BERT's belongs to attention.output.
    norm = getattr(attention, "ln", None) or getattr(attention, "LayerNorm", None)
    normed_BSH = x_BSH if norm is None else norm(x_BSH)
    asking = normed_BSH if positions_M is None else _at(normed_BSH, positions_M)

    def heads(projected: Tensor) -> Tensor:
        rows, positions, _ = projected.shape
        return projected.view(rows, positions, own.num_attention_heads, -1).transpose(1, 2)

    query = heads(own.query(asking))
    in_bf16 = query.device.type == "cpu" and query.dtype == torch.bfloat16
    multiply_out = in_bf16 and x_BSH.size(1) <= MULTIPLIED_OUT
    context = (_products if multiply_out else F.scaled_dot_product_attention)(
        query,
        heads(own.key(normed_BSH)),
        heads(own.value(normed_BSH)),
        dropout_p=own.dropout.p if own.training else 0.0,
    )
    return context.transpose(1, 2).flatten(2)


def _products(query: Tensor, key: Tensor, value: Tensor, dropout_p: float) -> Tensor:
    """Attention without a mask, multiplied out: (B, heads, S, H / heads) each."""
    weights = torch.softmax((query * query.size(-1) ** -0.5) @ key.mT, -1)
    return F.dropout(weights, dropout_p) @ value


def _at(x_BSH: Tensor, positions_M: Tensor) -> Tensor:
    rows, _, width = x_BSH.shape
    return x_BSH.flatten(0, 1).index_select(0, positions_M).view(rows, -1, width)


def masked_loss(head: Head, hidden_MH: Tensor, labels_M: Tensor) -> Tensor:
    """Cross-entropy in nats of the head's predictions, summed; labels of -100 do not count."""
    return F.cross_entropy(head(hidden_MH).float(), labels_M, reduction="sum")


@dataclass(frozen=True)
class Kernels:
    """The functions that a pass is made of, eager or compiled."""

    layer: Callable[[nn.Module, Tensor], Tensor]
    last_layer: Callable[[nn.Module, Tensor, Tensor], Tensor]
    masked_loss: Callable[[Head, Tensor, Tensor], Tensor]


EAGER = Kernels(layer, last_layer, masked_loss)


@functools.cache
def compiled(device: str) -> Kernels:
    """The kernels under torch.compile, one graph a shape.

    Shapes are static: a run has few, and kernels for fixed sizes are faster. The embeddings are
    left as they are: compiled, their gradients are added up in no fixed order, so that a run could
    not be repeated to the bit. On a CPU so are the last layer and the loss: compiling them doubles
    the wait for the first step and brings next to nothing. On a GPU the compiled loss saves a pass
    over the logits.

    Args:
        device: "cpu" or "cuda".
    """
    one = torch.compile(EAGER.layer, dynamic=False)
    if device == "cpu":
        return Kernels(one, EAGER.last_layer, EAGER.masked_loss)
    return Kernels(
        one,
        torch.compile(EAGER.last_layer, dynamic=False),
        torch.compile(EAGER.masked_loss, dynamic=False),
    )


def supports_masked_forward(model: "PreTrainedModel") -> bool:
    """Whether `encode` computes the last layer of this model at some positions only."""
    config = model.config
    known = getattr(config, "model_type", "") in MASKED_FORWARD_TYPES
    return known and not getattr(config, "is_decoder", False)


def encode(
    model: "PreTrainedModel",
    ids_BS: Tensor,
    columns_BK: Tensor,
    types_BS: Tensor | None = None,
    kernels: Kernels = EAGER,
) -> tuple[Tensor, Tensor | None]:
    """Hidden states where they are looked at, and the pooled first position.

    Args:
        model: with its head.
        ids_BS: full rows, no padding.
        columns_BK: the columns looked at, of each row.
        types_BS: token types, for models with a next-sentence head.
        kernels: `EAGER` or `compiled(…)`.

    Returns:
        ((B·K, H) hidden states after the final norm, (B, H) pooled or None without a pooler).
    """
    base: Any = model.base_model
    length = ids_BS.size(1)
    pooler = getattr(base, "pooler", None)
    if not supports_masked_forward(model):
        types = {} if types_BS is None else {"token_type_ids": types_BS}
        output = base(input_ids=ids_BS, **types)
        hidden = _at(output.last_hidden_state, _flat(columns_BK, length))
        return hidden.flatten(0, 1), output.pooler_output if pooler is not None else None
    if pooler is not None:  # it looks at the first position
        columns_BK = F.pad(columns_BK, (1, 0))
    hidden = base.embeddings(input_ids=ids_BS, token_type_ids=types_BS)
    *lower, last = base.encoder.layer
    for module in lower:
        hidden = kernels.layer(module, hidden)
    hidden = kernels.last_layer(last, hidden, _flat(columns_BK, length))
    final_norm = getattr(base.encoder, "ln", None) or getattr(base, "LayerNorm", None)
    if final_norm is not None:
        hidden = final_norm(hidden)
    if pooler is None:
        return hidden.flatten(0, 1), None
    return hidden[:, 1:].flatten(0, 1), pooler(hidden)


def _flat(columns_BK: Tensor, length: int) -> Tensor:
    """Columns of each row as indices into the flattened rows."""
    starts = torch.arange(len(columns_BK), device=columns_BK.device) * length
    return (columns_BK + starts[:, None]).flatten()
