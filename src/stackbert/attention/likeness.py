"""How alike the maps of two layers are: Jensen-Shannon divergence, heads matched one to one.

For two rows of attention p and q with the mean m = (p + q) / 2 the divergence is
H(m) - (H(p) + H(q)) / 2, here divided by ln 2: 0 for equal rows, 1 for rows without a common token.
That of two heads is the mean over queries, that of two layers the mean over their heads, matched
so that it is smallest: the order of heads means nothing.

Every head is compared with every other on every row, so only some rows are kept of a model, drawn
at random. Two models are never in memory together.

Shape letters: L layers, H heads, R rows kept of a sentence, S tokens; 2 is the second model.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from stackbert.attention.maps import F32, SentenceMaps
from stackbert.attention.measures import F64

Rows = dict[int, F32]
"""Index of a sentence → (L, H, R, S)."""

ROWS = 16
"""Most queries kept of a sentence."""
SENTENCES = 64
"""Sentences of which rows are kept: some 1,000 queries, whose mean divergence is steady to a few
thousandths."""
DEALS = 20
"""Times that heads are dealt to the layers at random."""
_TINY = 1e-30


@dataclass(frozen=True)
class Likeness:
    """How much the maps of two models differ, or those of one and itself; 0 to 1."""

    sentences: int
    queries: int
    heads: F64
    """(L, H, L2, H2): between every two heads."""
    divergence: F64
    """(L, L2): mean over the heads of two layers, matched so that it is smallest."""
    random_pairs: F64
    """(L, L2): mean over all pairs of heads, which is the mean over all matchings."""


@dataclass(frozen=True)
class Contrast:
    """How alike some layers are to others, and what to compare that with.

    Divergences, 0 to 1, means over the layers in question.
    """

    matched: float
    """From the most similar of the other layers."""
    all_pairs: float
    """From all of the other layers."""
    random_pairs: float
    """From the most similar one, with heads paired at random (the exact mean)."""
    dealt: float
    """As `matched`, after heads were dealt to the layers at random: what `matched` would be if it
    did not matter in which layer a head is."""
    untrained: float
    """As `matched`, with an untrained model's layers in place of the others."""
    untrained_alike: float | None = None
    """`matched` of the untrained model itself. Small, as all its maps are nearly uniform."""


def keep_rows(sentence: SentenceMaps, seed: int) -> F32:
    """(L, H, R, S): some rows of a sentence, the same ones for every model."""
    random = np.random.default_rng((seed, sentence.index))
    kept = np.sort(random.permutation(len(sentence.tokens))[:ROWS])
    rows: F32 = sentence.maps_LHSS[:, :, kept]
    return rows / rows.sum(axis=-1, keepdims=True)  # half precision is off by some thousandths


def divergences(first: Rows, second: Rows) -> tuple[F64, int]:
    """Between every head of one model and every head of another, on the sentences of both.

    Returns:
        ((L, H, L2, H2) from 0 to 1, queries compared).
    """
    total, queries = torch.zeros(()), 0
    for index in sorted(first.keys() & second.keys()):
        one, other = first[index], second[index]
        total = total + _divergence_sums(
            torch.from_numpy(one).flatten(0, 1), torch.from_numpy(other).flatten(0, 1)
        )
        queries += one.shape[2]
    shape = (*one.shape[:2], *other.shape[:2])
    return np.clip(total.numpy() / queries / math.log(2), 0.0, 1.0).reshape(shape), queries


def _divergence_sums(p_ARS: Tensor, q_BRS: Tensor) -> Tensor:
    """(A, B): divergences in nats, summed over the rows.

    With m = p + q, not halved, a row's is ln 2 + (Σ p ln p + Σ q ln q - Σ m ln m) / 2.
    """
    same, rows = p_ARS.data_ptr() == q_BRS.data_ptr(), p_ARS.size(1)
    p, q = p_ARS.flatten(1) + _TINY, q_BRS.flatten(1) + _TINY  # so that no logarithm is of 0
    # Written into again and again: fresh memory for every product takes a third of the time.
    sums, logs = torch.empty_like(q), torch.empty_like(q)
    mixed = torch.zeros(len(p), len(q), dtype=torch.float64)
    for head in range(len(p)):
        start = head if same else 0
        x, log = sums[start:], logs[start:]
        torch.add(p[head], q[start:], out=x)
        mixed[head, start:] = torch.log(x, out=log).mul_(x).sum(1)
    if same:
        mixed = mixed.triu() + mixed.triu(1).T
    p_self, q_self = ((x.log() * x).sum(1).double() for x in (p, q))
    return rows * math.log(2) + (p_self[:, None] + q_self - mixed) / 2


def match(heads: F64) -> F64:
    """(L, H, L2, H2) to (L, L2): mean divergence of two layers, heads matched at their best."""
    layers, _, others, _ = heads.shape
    divergence = np.zeros((layers, others))
    for one, other in np.ndindex(layers, others):
        block = heads[one, :, other]
        divergence[one, other] = block[linear_sum_assignment(block)].mean()
    return divergence


def likeness(first: Rows, second: Rows) -> Likeness:
    """How alike every two layers of two models (or of one) are."""
    heads, queries = divergences(first, second)
    sentences = len(first.keys() & second.keys())
    return Likeness(sentences, queries, heads, match(heads), heads.mean(axis=(1, 3)))


def top_and_bottom(
    own: Likeness, to_untrained: Likeness, untrained: Likeness, *, seed: int = 0
) -> Contrast | None:
    """Compare the layers of a model's top half with those of its bottom half.

    Args:
        own: the model with itself.
        to_untrained: the model with an untrained one of the same config.
        untrained: the untrained one with itself.
        seed: of dealing.

    Returns:
        The contrast; `untrained` in it is against the untrained model's bottom half, which is what
        fresh layers would have been. None for a single layer, which has no halves.
    """
    depth = len(own.divergence)
    if depth < 2:
        return None
    halves = np.ix_(range(depth - depth // 2, depth), range(depth // 2))
    alike = float(untrained.divergence[halves].min(axis=1).mean())
    return _contrast(own, halves, to_untrained.divergence[halves], seed, alike)


def shallow_and_deep(between: Likeness, deep_to_untrained: Likeness, *, seed: int = 0) -> Contrast:
    """Compare the layers of the deeper model with those of the shallower.

    Args:
        between: the two models; of equal depth, the second counts as the deeper.
        deep_to_untrained: the deeper model with an untrained one.
        seed: of dealing.
    """
    if between.heads.shape[0] <= between.heads.shape[2]:
        between = replace(
            between,
            heads=between.heads.transpose(2, 3, 0, 1),
            divergence=between.divergence.T,
            random_pairs=between.random_pairs.T,
        )
    return _contrast(between, ..., deep_to_untrained.divergence, seed)


def _contrast(
    between: Likeness,
    layers: Any,  # noqa: ANN401 (an index into an array of layers by layers)
    to_untrained: F64,
    seed: int,
    untrained_alike: float | None = None,
) -> Contrast:
    """Of some layers, the rows that `layers` picks, with others, the columns."""
    shape = between.heads.shape
    flat = between.heads.reshape(shape[0] * shape[1], -1)
    random = np.random.default_rng(seed)
    dealt = []
    for _ in range(DEALS):
        order = others = random.permutation(len(flat))
        if untrained_alike is None:  # of two models each keeps its own heads
            others = random.permutation(flat.shape[1])
        heads = flat[np.ix_(order, others)].reshape(shape)
        dealt.append(match(heads)[layers].min(axis=1).mean())
    divergence = between.divergence[layers]
    nearest = np.arange(len(divergence)), divergence.argmin(axis=1)
    return Contrast(
        matched=float(divergence[nearest].mean()),
        all_pairs=float(divergence.mean()),
        random_pairs=float(between.random_pairs[layers][nearest].mean()),
        dealt=float(np.mean(dealt)),
        untrained=float(to_untrained.min(axis=1).mean()),
        untrained_alike=untrained_alike,
    )
