"""One pass through a transformers encoder, carried only as far as the loss looks.

The modules and their weights are transformers'; the path through them is ours. Beyond the last
layer's keys and values nothing mixes positions, so it takes its queries, output projection and
feed-forward at the masked positions alone: at depth 2 with 15 % masked a third of the encoder's
arithmetic is saved. Rows are full, so attention needs no mask and is torch's fused one for every
type; in bf16 on a CPU it is multiplied out. One function is every layer: compiled, it is one graph
for all layers and depths, so growing compiles nothing again. Types whose layers are built otherwise
go through their own forward pass.

Shape letters: B rows, S positions of a row, K looked at in each row, H hidden size, M = B·K.
"""

import functools
from collections.abc import Callable, Sequence
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
IN_CACHE = 1 << 18
"""Logits that the loss takes at a time on a CPU: a megabyte in fp32."""
Head = Callable[[Tensor], Tensor]
MASKED_FORWARD_TYPES = frozenset(
    {"bert", "roberta", "megatron-bert", "roberta-prelayernorm", "modernbert"}
)
"""config.model_type of those whose layers `layer` knows."""


def layer(
    module: nn.Module,
    x_BSH: Tensor,
    positions_M: Tensor | None = None,
    rotation: "Rotation | None" = None,
) -> Tensor:
    """A whole layer of BERT's kind, post-norm or pre-norm, or with a `rotation` ModernBERT's.

    It takes all positions and gives (B, S, H), or (B, K, H) at some: indices into the flattened
    (B·S) rows, K of each row, row by row.
    """
    parts: Any = module
    attend = _attend if rotation is None else functools.partial(_attend_rotated, rotation=rotation)
    context = attend(parts, x_BSH, positions_M)
    at_BKH = x_BSH if positions_M is None else _at(x_BSH, positions_M)
    if rotation is None:
        result: Tensor = parts.feed_forward_chunk(parts.attention.output(context, at_BKH))
    else:
        attended = at_BKH + parts.attn.out_drop(parts.attn.Wo(context))
        result = attended + parts.mlp(parts.mlp_norm(attended))
    return result


def _attend(parts: Any, x_BSH: Tensor, positions_M: Tensor | None) -> Tensor:  # noqa: ANN401
    attention = parts.attention
    own = attention.self
    # What the pre-norm types call their norm; post-norm BERT's belongs to attention.output.
    norm = getattr(attention, "ln", None) or getattr(attention, "LayerNorm", None)
    normed_BSH = x_BSH if norm is None else norm(x_BSH)
    if positions_M is None:
        query, key, value = _linear(normed_BSH, own.query, own.key, own.value)
    else:
        query = own.query(_at(normed_BSH, positions_M))
        key, value = _linear(normed_BSH, own.key, own.value)
    shape = (own.num_attention_heads, -1)
    heads = [each.view(*each.shape[:-1], *shape) for each in (query, key, value)]
    return _mix(*heads, dropout=own.dropout.p if own.training else 0.0)


def _on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu"


def _linear(x: Tensor, *maps: nn.Linear) -> Sequence[Any]:
    """Linear maps of one input; on a GPU one product, and one for the input's gradient."""
    if _on_cpu(x):
        return [linear(x) for linear in maps]
    weight, bias = (torch.cat([getattr(m, name) for m in maps]) for name in ("weight", "bias"))
    return F.linear(x, weight, bias).chunk(len(maps), -1)


@dataclass(frozen=True)
class Rotation:
    """What turns queries and keys by their positions in ModernBERT (RoPE), and who sees whom."""

    cos_SD: Tensor
    sin_SD: Tensor
    """Halves of a head's width D are pairs; the second half of sin and cos repeats the first."""
    sees_SS: Tensor | None
    """A window's mask; None where every position sees all."""


def _attend_rotated(
    parts: Any,  # noqa: ANN401
    x_BSH: Tensor,
    positions_M: Tensor | None,
    rotation: Rotation,
) -> Tensor:
    own = parts.attn
    normed_BSH = parts.attn_norm(x_BSH)
    dropout = own.attention_dropout if own.training else 0.0
    if positions_M is None:
        qkv = own.Wqkv(normed_BSH).unflatten(-1, (3, -1, own.head_dim))
        query, key = _rotate(qkv[:, :, :2], rotation.cos_SD, rotation.sin_SD).unbind(2)
        return _mix(query, key, qkv[:, :, 2], dropout=dropout, sees=rotation.sees_SS)
    width = x_BSH.size(-1)
    weights = own.Wqkv.weight.split([width, 2 * width])
    biases = (None, None) if own.Wqkv.bias is None else own.Wqkv.bias.split([width, 2 * width])
    query = F.linear(_at(normed_BSH, positions_M), weights[0], biases[0])
    key_value = F.linear(normed_BSH, weights[1], biases[1])
    columns_BK = positions_M.view(len(x_BSH), -1) % x_BSH.size(1)
    query = query.view(*query.shape[:2], 1, -1, own.head_dim)
    key, value = key_value.view(*key_value.shape[:2], 2, -1, own.head_dim).unbind(2)
    sees = rotation.sees_SS
    return _mix(
        _rotate(query, rotation.cos_SD[columns_BK], rotation.sin_SD[columns_BK])[:, :, 0],
        _rotate(key[:, :, None], rotation.cos_SD, rotation.sin_SD)[:, :, 0],
        value,
        dropout=dropout,
        sees=None if sees is None else sees[columns_BK][:, None],
    )


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn (B, S, n, heads, D) by cos and sin of (…, S, D)."""
    # The angles were made in fp32; in bf16 their cos and sin may be rounded as the products are.
    cos, sin = (each[..., None, None, :].to(x.dtype) for each in (cos, sin))
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def _mix(
    query: Tensor, key: Tensor, value: Tensor, *, dropout: float, sees: Tensor | None = None
) -> Tensor:
    """Attention of (B, S, heads, D) each, to (B, S, H): torch's fused one but for bf16 on a CPU."""
    query, key, value = (each.transpose(1, 2) for each in (query, key, value))
    in_bf16 = query.dtype == torch.bfloat16
    if _on_cpu(query) and in_bf16 and key.size(2) <= MULTIPLIED_OUT and sees is None:
        context = _products(query, key, value, dropout)
    else:
        context = F.scaled_dot_product_attention(
            query, key, value, attn_mask=sees, dropout_p=dropout
        )
    return context.transpose(1, 2).flatten(2)


def _products(query: Tensor, key: Tensor, value: Tensor, dropout_p: float) -> Tensor:
    """Attention without a mask, multiplied out: (B, heads, S, D) each."""
    weights = torch.softmax((query * query.size(-1) ** -0.5) @ key.mT, -1)
    return F.dropout(weights, dropout_p) @ value


def _at(x_BSH: Tensor, positions_M: Tensor) -> Tensor:
    rows, _, width = x_BSH.shape
    return x_BSH.flatten(0, 1).index_select(0, positions_M).view(rows, -1, width)


def masked_loss(head: Head, hidden_MH: Tensor, labels_M: Tensor) -> Tensor:
    """Cross-entropy in nats of the head's predictions, summed; labels of -100 do not count."""
    logits_MV = head(hidden_MH)
    if _on_cpu(logits_MV) and logits_MV.requires_grad:
        loss: Tensor = _CrossEntropy.apply(logits_MV, labels_M)  # type: ignore[no-untyped-call]
        return loss
    return F.cross_entropy(logits_MV.float(), labels_M, reduction="sum")


class _CrossEntropy(torch.autograd.Function):
    """The loss and its gradient in one pass, a few rows at a time.

    By the usual way four fp32 tensors of rows × vocabulary go through a CPU's memory. Here a few
    rows stay in its cache, and the gradient takes the place of the logits.
    """

    @staticmethod
    def forward(ctx: Any, logits_MV: Tensor, labels_M: Tensor) -> Tensor:  # noqa: ANN401
        gradient_MV = logits_MV.detach()
        ctx.save_for_backward(gradient_MV)
        loss = torch.zeros(())
        rows = max(1, IN_CACHE // logits_MV.size(1))
        for part_RV, labels_R in zip(
            torch.split(gradient_MV, rows), torch.split(labels_M, rows), strict=True
        ):
            counts_R1 = (labels_R >= 0)[:, None]
            place_R1 = labels_R.clamp(min=0)[:, None]
            log_RV = part_RV.float().log_softmax(1)
            loss -= (log_RV.gather(1, place_R1) * counts_R1).sum()
            share_RV = log_RV.exp_()
            share_RV.scatter_add_(1, place_R1, -torch.ones_like(place_R1, dtype=torch.float32))
            part_RV.copy_(share_RV).mul_(counts_R1)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (gradient_MV,) = ctx.saved_tensors
        return gradient_MV.mul_(gradients[0]), None


class BF16Norm(nn.LayerNorm):
    """Its output and, with it, a residual stream in bf16; statistics stay fp32. Compiled, this
    halves what passes through a GPU's memory between the products."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, H) to (…, H)."""
        return super().forward(x).bfloat16()


@dataclass(frozen=True)
class Kernels:
    """The functions that a pass is made of, eager or compiled."""

    layer: Callable[..., Tensor]
    last_layer: Callable[..., Tensor]
    masked_loss: Callable[[Head, Tensor, Tensor], Tensor]


EAGER = Kernels(layer, layer, masked_loss)


@functools.cache
def compiled(device: str) -> Kernels:
    """The kernels under torch.compile, one graph a shape.

    Shapes are static: a run has few, and kernels for fixed sizes are faster. The embeddings are
    left as they are: compiled, their gradients are added up in no fixed order, so that a run could
    not be repeated to the bit. On a CPU so are the last layer and the loss: compiling them doubles
    the wait for the first step and brings next to nothing. On a GPU the compiled loss saves a pass
    over the logits.
    """
    one = torch.compile(layer, dynamic=False)
    if device == "cpu":
        return Kernels(one, layer, masked_loss)
    last, loss = (torch.compile(each, dynamic=False) for each in (layer, masked_loss))
    return Kernels(one, last, loss)


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
    """Of full rows: (B·K, H) hidden states after the final norm, at the columns looked at, and the
    (B, H) pooled first positions, None without a pooler."""
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
    rotations: list[Rotation | None]
    if model.config.model_type == "modernbert":
        hidden = base.embeddings(ids_BS)
        layers, final_norm = base.layers, base.final_norm
        rotations = _rotations(base, hidden)
    else:
        hidden = _embed(base.embeddings, ids_BS, types_BS)
        layers = base.encoder.layer
        final_norm = getattr(base.encoder, "ln", None) or getattr(base, "LayerNorm", None)
        rotations = [None] * len(layers)
    for module, rotation in zip(layers[:-1], rotations[:-1], strict=True):
        hidden = kernels.layer(module, hidden, None, rotation)
    hidden = kernels.last_layer(layers[-1], hidden, _flat(columns_BK, length), rotations[-1])
    if final_norm is not None:
        hidden = final_norm(hidden)
    if pooler is None:
        return hidden.flatten(0, 1), None
    return hidden[:, 1:].flatten(0, 1), pooler(hidden)


def _embed(parts: Any, ids_BS: Tensor, types_BS: Tensor | None) -> Tensor:  # noqa: ANN401
    """The embeddings' forward pass. On a GPU positions and token types are broadcast: the gradient
    of a row that is looked up thousands of times would be a serial sum."""
    if _on_cpu(ids_BS):
        total_BSH: Tensor = parts(input_ids=ids_BS, token_type_ids=types_BS)
        return total_BSH
    first = getattr(parts, "padding_idx", -1) + 1  # RoBERTa counts positions from there
    types = parts.token_type_embeddings.weight
    added = parts.position_embeddings.weight[first : first + ids_BS.size(1)] + types[0]
    if types_BS is not None:
        added = added + types_BS[..., None] * (types[1] - types[0])
    total_BSH = parts.word_embeddings(ids_BS) + added
    norm = getattr(parts, "LayerNorm", None)
    result: Tensor = parts.dropout(total_BSH if norm is None else norm(total_BSH))
    return result


def _rotations(base: Any, hidden_BSH: Tensor) -> list["Rotation | None"]:  # noqa: ANN401
    """Of each of ModernBERT's layers; those of one kind share theirs."""
    positions_S = torch.arange(hidden_BSH.size(1), device=hidden_BSH.device)
    window = base.config.sliding_window
    of_kind: dict[str, Rotation] = {}
    for kind in set(base.config.layer_types):
        cos_1SD, sin_1SD = base.rotary_emb(hidden_BSH, positions_S[None], kind)
        cut = kind == "sliding_attention" and len(positions_S) > window + 1
        sees_SS = (positions_S[:, None] - positions_S).abs() <= window if cut else None
        of_kind[kind] = Rotation(cos_1SD[0], sin_1SD[0], sees_SS)
    return [of_kind[kind] for kind in base.config.layer_types]


def _flat(columns_BK: Tensor, length: int) -> Tensor:
    """Columns of each row as indices into the flattened rows."""
    starts = torch.arange(len(columns_BK), device=columns_BK.device) * length
    return (columns_BK + starts[:, None]).flatten()
