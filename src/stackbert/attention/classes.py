"""What a head is called, by thresholds on its measures.

The paper (Gong et al. 2019) sees most heads as a mixture of two: one that stays close to the query,
one that sits on the first token. Names for these are "local" and "[CLS]", or "mixed" where it takes
both. The other three are there so that what is not of these kinds is not forced into them.

A mass is counted beyond what looking at all tokens alike would give: on short sentences a uniform
head, too, has much of its mass near the query.
"""

import numpy as np

from stackbert.attention.result import CLASSES, F64, WINDOWS, Measures, Names

PAPERS = CLASSES[:3]
"""Those that the paper speaks of: local, [CLS], mixed."""
LOCAL_WINDOW = 4
"""Positions on either side that "close to the query" means: about a phrase. One of `WINDOWS`."""
SHARE = 0.5
"""Of the mass that a uniform head spreads elsewhere, the part that must lie on the pattern: more
is there than not."""
BROAD = 0.25
"""A head that is of no pattern is "broad" if it looks at this share of a sentence's tokens at
least. Their number is e to the power of its entropy; of a uniform head it is all of them."""


def excess(mass: F64, uniform: float) -> F64:
    """Mass beyond uniform as a share of all that could be: 0 for uniform, 1 for all of it there.

    Negative for a head that avoids the place.
    """
    return np.asarray((mass - uniform) / max(1.0 - uniform, 1e-9), dtype=np.float64)


def classify(
    *,
    near: F64,
    near_uniform: F64,
    first: F64,
    first_uniform: float,
    sep: F64,
    sep_uniform: float,
    entropy: F64,
    entropy_uniform: float,
    window: int = LOCAL_WINDOW,
) -> Names:
    """Name each head; the arguments are those of `Measures`, the first rule that fits decides.

    local: at least `SHARE` near the query, first column apart. [CLS]: at least `SHARE` on the first
    token. mixed: at least `SHARE` on both together. [SEP]: at least `SHARE` on separators. broad:
    none of these, and over `BROAD` of the tokens. other: none of these, and over fewer tokens.

    Returns:
        (L, H), of `CLASSES`.
    """
    which = WINDOWS.index(window)
    close, close_uniform = near[which], float(near_uniform[which])
    rules = [
        excess(close, close_uniform) >= SHARE,
        excess(first, first_uniform) >= SHARE,
        excess(close + first, close_uniform + first_uniform) >= SHARE,
        excess(sep, sep_uniform) >= SHARE,
        np.exp(entropy - entropy_uniform) >= BROAD,
    ]
    return np.select(rules, list(CLASSES[:-1]), default=CLASSES[-1]).astype(np.str_)


def paper_share(measures: Measures, window: int = LOCAL_WINDOW) -> float:
    """Share of the heads that are of one of the paper's kinds, "close" being within `window`."""
    names = classify(
        near=measures.near,
        near_uniform=measures.near_uniform,
        first=measures.first,
        first_uniform=measures.first_uniform,
        sep=measures.sep,
        sep_uniform=measures.sep_uniform,
        entropy=measures.entropy,
        entropy_uniform=measures.entropy_uniform,
        window=window,
    )
    return float(np.isin(names, PAPERS).mean())
