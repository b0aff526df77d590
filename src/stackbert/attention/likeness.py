"""How alike the maps of two layers are: Jensen-Shannon divergence, heads matched one to one.

Shape letters: L layers, H heads, R rows kept of a sentence, S tokens; 2 is the second model.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from stackbert.attention.maps import F32, SentenceMaps
from stackbert.intervals import F64

Rows = dict[int, F32]  # index of a sentence → (L, H, R, S)

ROWS = 16  # most queries kept of a sentence
SENTENCES = 64  # of which rows are kept: some 1,000 queries, steady to a few thousandths
DEALS = 20  # times that heads are dealt to the layers at random
_TINY = 1e-30  # added to weights, so that no logarithm is of 0


@dataclass(frozen=True)
class Contrast:
    """Divergence of some layers from the most similar of others, a mean over the former."""

    matched: float
    dealt: float  # after heads were dealt to the layers at random
    untrained: float  # from the layers of an untrained model

    @property
    def share(self) -> float:
        """How alike the layers are: 0 if no closer than `untrained`, 1 if as close as `dealt`."""
        way = max(self.untrained - self.dealt, 1e-9)
        return min(max((self.untrained - self.matched) / way, 0.0), 1.0)


def keep_rows(sentence: SentenceMaps, seed: int) -> F32:
    """(L, H, R, S): some rows of a sentence, the same ones for every model."""
    random = np.random.default_rng((seed, sentence.index))
    kept = np.sort(random.permutation(len(sentence.tokens))[:ROWS])
    rows: F32 = sentence.maps_LHSS[:, :, kept]
    rows /= rows.sum(axis=-1, keepdims=True)  # half precision is off by some thousandths
    return rows


def divergences(first: Rows, second: Rows) -> F64:
    """(L, H, L2, H2): between every two heads, means over the queries that both models have.

    Of two rows with the mean m it is (H(m) - (H(p) + H(q)) / 2) / ln 2: 1 without a common token.
    """
    total, queries = torch.zeros(()), 0
    for index in sorted(first.keys() & second.keys()):
        one, other = torch.from_numpy(first[index]), torch.from_numpy(second[index])
        total = total + _divergence_sums(one.flatten(0, 1), other.flatten(0, 1))
        queries += one.shape[2]
    shape = (*one.shape[:2], *other.shape[:2])
    return np.clip(total.numpy() / queries / math.log(2), 0.0, 1.0).reshape(shape)


def _divergence_sums(p_ARS: Tensor, q_BRS: Tensor) -> Tensor:
    """(A, B): divergences in nats, summed over the rows.

    With m = p + q, not halved, a row's is ln 2 + (Σ p ln p + Σ q ln q - Σ m ln m) / 2.
    """
    p, q = p_ARS.flatten(1) + _TINY, q_BRS.flatten(1) + _TINY
    # Written into again and again: fresh memory for every product takes a third of the time.
    sums, logs = torch.empty_like(q), torch.empty_like(q)
    mixed = torch.zeros(len(p), len(q), dtype=torch.float64)
    for head, row in enumerate(p):
        torch.add(row, q, out=sums)
        mixed[head] = torch.log(sums, out=logs).mul_(sums).sum(1)
    p_self, q_self = ((x.log() * x).sum(1).double() for x in (p, q))
    return p_ARS.size(1) * math.log(2) + (p_self[:, None] + q_self - mixed) / 2


def match(heads: F64) -> F64:
    """(L, H, L2, H2) to (L, L2): mean divergence of two layers, heads matched at their best."""
    layers, _, others, _ = heads.shape
    divergence = np.zeros((layers, others))
    for one, other in np.ndindex(layers, others):
        block = heads[one, :, other]
        divergence[one, other] = block[linear_sum_assignment(block)].mean()
    return divergence


def contrast(heads: F64, to_untrained: F64, seed: int, *, halves: bool) -> Contrast:
    """Compare a model's layers with the most similar of another's, and of an untrained one.

    With `halves`, `heads` are of a model and itself: its top half is compared with its bottom half.
    """

    def nearest(heads: F64) -> float:
        layers = match(heads)
        if halves:
            half = len(layers) // 2
            layers = layers[-half:, :half]
        return float(layers.min(axis=1).mean())

    flat = heads.reshape(heads.shape[0] * heads.shape[1], -1)
    random, dealt = np.random.default_rng(seed), []
    for _ in range(DEALS):
        rows = random.permutation(len(flat))
        columns = rows if halves else random.permutation(flat.shape[1])
        dealt.append(nearest(flat[np.ix_(rows, columns)].reshape(heads.shape)))
    return Contrast(nearest(heads), float(np.mean(dealt)), nearest(to_untrained))
