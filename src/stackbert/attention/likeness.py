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
from collections.abc import Callable
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
"""Sentences of which rows are kept: some 1,000 queries, whose mean divergence is steady to a few
thousandths."""
DEALS = 20
"""Times that heads are dealt to the layers at random."""
_TINY = 1e-30


@dataclass(frozen=True)
class Likeness:
    """How much the maps of two models differ, or those of one and itself; 0 to 1."""

    queries: int
    """That the divergences are means over."""
    heads: F64
    """(L, H, L2, H2): between every two heads."""
    divergence: F64
    """(L, L2): mean over the heads of two layers, matched so that it is smallest."""


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


def divergences(first: Rows, second: Rows) -> tuple[F64, int]:
    """(L, H, L2, H2): between every head of one model and every head of another, 0 to 1.

    Only on the sentences of both; the number of queries is returned, too.
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
    return Likeness(queries, heads, match(heads))


def top_and_bottom(own: Likeness, to_untrained: Likeness, seed: int) -> Contrast | None:
    """Compare the layers of a model's top half with those of its bottom half.

    The untrained model's bottom half is what fresh layers would have been. A single layer has no
    halves.
    """
    depth, heads = own.heads.shape[:2]
    if depth < 2:
        return None
    halves = np.ix_(range(depth - depth // 2, depth), range(depth // 2))
    flat = own.heads.reshape((depth * heads,) * 2)

    def deal(random: np.random.Generator) -> F64:
        order = random.permutation(depth * heads)
        return match(flat[np.ix_(order, order)].reshape(own.heads.shape))[halves]

    return _contrast(own.divergence[halves], deal, to_untrained.divergence[halves], seed)


def shallow_and_deep(between: Likeness, deep_to_untrained: Likeness, seed: int) -> Contrast:
    """Compare the layers of the deeper of two models with those of the shallower.

    Of equal depth, the second counts as the deeper.
    """
    heads, divergence = between.heads, between.divergence
    if heads.shape[0] <= heads.shape[2]:
        heads, divergence = heads.transpose(2, 3, 0, 1), divergence.T
    flat = heads.reshape(heads.shape[0] * heads.shape[1], -1)

    def deal(random: np.random.Generator) -> F64:
        rows, columns = (random.permutation(size) for size in flat.shape)
        return match(flat[np.ix_(rows, columns)].reshape(heads.shape))

    return _contrast(divergence, deal, deep_to_untrained.divergence, seed)


def _contrast(
    layers: F64, deal: Callable[[np.random.Generator], F64], untrained: F64, seed: int
) -> Contrast:
    """Of (layers, others) arrays of divergences; `deal` returns one after dealing."""
    random = np.random.default_rng(seed)
    dealt = [deal(random).min(axis=1).mean() for _ in range(DEALS)]
    return Contrast(
        matched=float(layers.min(axis=1).mean()),
        dealt=float(np.mean(dealt)),
        untrained=float(untrained.min(axis=1).mean()),
    )
