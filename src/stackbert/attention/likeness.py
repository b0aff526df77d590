"""How alike the maps of two layers are: Jensen-Shannon divergence, heads matched one to one.

Of two rows with the mean m it is (H(m) - (H(p) + H(q)) / 2) / ln 2, from 0 (equal) to 1 (no common
token). Every head is compared with every other, so only some rows of a model are kept.
Shape letters: L layers, H heads, R rows kept of a sentence, S tokens; 2 is the second model.
"""

import math
from dataclasses import dataclass

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
"""Sentences of which rows are kept: some 1,000 queries, steady to a few thousandths."""
DEALS = 20
"""Times that heads are dealt to the layers at random."""
_TINY = 1e-30


@dataclass(frozen=True)
class Contrast:
    """Divergence of some layers from the most similar of others, a mean over the former.

    A divergence alone says little. If it did not matter in which layer a head is, it would be
    `dealt`; for fresh layers in place of the others it would be `untrained`.
    """

    matched: float
    dealt: float
    """After heads were dealt to the layers at random."""
    untrained: float
    """From the layers of an untrained model."""


def keep_rows(sentence: SentenceMaps, seed: int) -> F32:
    """(L, H, R, S): some rows of a sentence, the same ones for every model."""
    random = np.random.default_rng((seed, sentence.index))
    kept = np.sort(random.permutation(len(sentence.tokens))[:ROWS])
    rows: F32 = sentence.maps_LHSS[:, :, kept]
    rows /= rows.sum(axis=-1, keepdims=True)  # half precision is off by some thousandths
    return rows


def divergences(first: Rows, second: Rows) -> F64:
    """(L, H, L2, H2): between every two heads of two models (or of one), means over queries.

    Only the sentences of both count.
    """
    total, queries = torch.zeros(()), 0
    for index in sorted(first.keys() & second.keys()):
        one, other = first[index], second[index]
        total = total + _divergence_sums(
            torch.from_numpy(one).flatten(0, 1), torch.from_numpy(other).flatten(0, 1)
        )
        queries += one.shape[2]
    shape = (*one.shape[:2], *other.shape[:2])
    return np.clip(total.numpy() / queries / math.log(2), 0.0, 1.0).reshape(shape)


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


def top_and_bottom(own: F64, to_untrained: F64, seed: int) -> Contrast | None:
    """Compare the layers of a model's top half with those of its bottom half.

    Args:
        own: `divergences` of the model and itself.
        to_untrained: of the model and an untrained one, whose bottom half is what fresh layers
            would have been.
        seed: of the dealing.

    Returns:
        None for a single layer, which has no halves.
    """
    depth, heads = own.shape[:2]
    if depth < 2:
        return None
    halves = np.ix_(range(depth - depth // 2, depth), range(depth // 2))
    flat = own.reshape((depth * heads,) * 2)
    random, dealt = np.random.default_rng(seed), []
    for _ in range(DEALS):
        order = random.permutation(depth * heads)
        dealt.append(_nearest(match(flat[np.ix_(order, order)].reshape(own.shape))[halves]))
    return Contrast(
        matched=_nearest(match(own)[halves]),
        dealt=float(np.mean(dealt)),
        untrained=_nearest(match(to_untrained)[halves]),
    )


def shallow_and_deep(between: F64, deep_to_untrained: F64, seed: int) -> Contrast:
    """Compare the layers of the deeper of two models with those of the shallower.

    Of equal depth, the second counts as the deeper. The arguments are those of `top_and_bottom`.
    """
    if between.shape[0] <= between.shape[2]:
        between = between.transpose(2, 3, 0, 1)
    flat = between.reshape(between.shape[0] * between.shape[1], -1)
    random, dealt = np.random.default_rng(seed), []
    for _ in range(DEALS):
        rows, columns = (random.permutation(size) for size in flat.shape)
        dealt.append(_nearest(match(flat[np.ix_(rows, columns)].reshape(between.shape))))
    return Contrast(
        matched=_nearest(match(between)),
        dealt=float(np.mean(dealt)),
        untrained=_nearest(match(deep_to_untrained)),
    )


def _nearest(divergence: F64) -> float:
    """(L, L2) to the mean over the layers of the divergence from the most similar other."""
    return float(divergence.min(axis=1).mean())
