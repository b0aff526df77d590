"""What measuring attention gives: arrays by layer and head, and their JSON form.

Shape letters: L layers (0 at the bottom), H heads of each, S tokens of a sentence, W windows,
D relative positions. A map's rows are queries and its columns keys; every row sums to 1.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from stackbert.attention.plain import read_json, to_plain
from stackbert.errors import UserError
from stackbert.files import explaining_os_errors, write_json_atomically
from stackbert.stored import stored

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Names = npt.NDArray[np.str_]
Flags = npt.NDArray[np.bool_]

FORMAT = 2
"""1 had no names of runs."""
WINDOWS = (1, 2, 4, 8)
"""Positions on either side of the query that count as near it."""
RADIUS = 16
"""The profile by relative position goes from -RADIUS to RADIUS."""
CLASSES = ("local", "[CLS]", "mixed", "[SEP]", "broad", "other")
"""What a head is called; `stackbert.attention.classes` has the thresholds and their reasons."""


@dataclass(frozen=True)
class SentenceMaps:
    """All attention maps of one sentence, without padding."""

    index: int
    """Place of the sentence among those given."""
    tokens: tuple[str, ...]
    """As the tokenizer writes them, special ones included; S of them."""
    separators: tuple[int, ...]
    """Positions of [SEP] (`</s>` of RoBERTa)."""
    maps: F32
    """(L, H, S, S)."""


@dataclass(frozen=True)
class Measures:
    """Where each head of a model looks: means over every token of every sentence, as the query.

    A mass is the share of a query's attention, 0 to 1. What a head that looks at all tokens alike
    would have on the same sentences stands beside it as `…_uniform`.
    """

    sentences: int
    tokens: int
    """Queries that the means are over: all tokens, special ones included."""
    within: F64
    """(W, L, H): mass within each of `WINDOWS` positions of the query, itself included."""
    within_uniform: F64
    """(W,)."""
    near: F64
    """(W, L, H): the same without the first column, so that it and `first` do not overlap."""
    near_uniform: F64
    """(W,)."""
    first: F64
    """(L, H): on the first token, [CLS]."""
    first_uniform: float
    sep: F64
    """(L, H): on [SEP]."""
    sep_uniform: float
    itself: F64
    """(L, H): of a token on itself."""
    itself_uniform: float
    previous: F64
    """(L, H): on the token before."""
    previous_uniform: float
    following: F64
    """(L, H): on the token after."""
    following_uniform: float
    entropy: F64
    """(L, H): of a query's attention, in nats."""
    entropy_uniform: float
    distance: F64
    """(L, H): mean distance in positions between a query and where it looks."""
    distance_uniform: float
    profile: F64
    """(L, H, D): mass at each relative position -RADIUS … RADIUS (key minus query); the mean is
    over all queries, also those whose neighbour at that position does not exist."""
    profile_uniform: F64
    """(D,)."""
    classes: Names
    """(L, H): one of `CLASSES`."""

    @property
    def depth(self) -> int:
        """Layers."""
        return int(self.first.shape[0])

    @property
    def heads(self) -> int:
        """Heads of a layer."""
        return int(self.first.shape[1])

    @property
    def shares(self) -> dict[str, float]:
        """Share of the heads in each of `CLASSES`."""
        return {name: float((self.classes == name).mean()) for name in CLASSES}


@dataclass(frozen=True)
class Contrast:
    """How like some layers are to others, and what to hold it against.

    Jensen-Shannon divergences, 0 to 1, means over the layers in question.
    """

    matched: float
    """From the most similar of the other layers, heads matched best to best."""
    all_pairs: float
    """From all of the other layers, heads matched best to best."""
    random_pairs: float
    """From the most similar one, heads paired at random (the exact mean over all pairings)."""
    dealt: float
    """As `matched`, heads first dealt out to the layers at random: what `matched` would be if it
    did not matter in which layer a head is."""
    untrained: float
    """As `matched`, with an untrained model's layers in place of the others."""
    untrained_alike: float | None
    """`matched` of the untrained model itself. Small: all its maps are nearly uniform."""


@dataclass(frozen=True)
class Likeness:
    """How much the maps of two models (or of one and itself) differ, on the same sentences.

    The Jensen-Shannon divergence of two rows of attention, divided by ln 2: 0 for equal rows, 1
    for rows that share no token. Means over the rows that were compared.
    """

    first: str
    """Name of the model of the rows."""
    second: str
    """Name of the model of the columns; the same for a model and itself."""
    sentences: int
    rows: int
    """Queries compared."""
    heads: F64
    """(La, Ha, Lb, Hb): between every two heads."""
    divergence: F64
    """(La, Lb): mean over the heads of two layers, matched so that this mean is smallest."""
    random_pairs: F64
    """(La, Lb): mean over all pairs of heads, so the mean of random matchings."""
    matching: I64
    """(La, Lb, Ha): the head of the second layer that is matched with each of the first; -1 for
    one left over where the second has fewer heads."""


@dataclass(frozen=True)
class ModelInfo:
    """Which model was measured."""

    name: str
    type: str
    """transformers' model_type."""
    depth: int
    heads: int
    """Of a layer."""


@dataclass(frozen=True)
class Comparison:
    """A second model beside the first, on the same sentences."""

    model: ModelInfo
    measures: Measures
    likeness: Likeness
    """Rows: the model measured; columns: this one."""
    contrast: Contrast
    """Layers of the deeper model with layers of the shallower."""


@dataclass(frozen=True)
class Untrained:
    """A model of the same config, as initialised."""

    measures: Measures
    likeness: Likeness
    """Rows: the model measured; columns: the untrained one."""


@dataclass(frozen=True)
class Moment:
    """A model at one moment of a run's growth."""

    name: str
    """"shallow", "grown", "next" or "final"."""
    step: int
    """Updates done."""
    measures: Measures
    origins: I64
    """(L,): the layer of the shallow model that each layer is compared with: the one that it
    copies, directly or through a later growth; for a fresh layer the one that stacking would
    have copied."""
    fresh: Flags
    """(L,): layers that copy none."""
    divergence: F64
    """(L, H): between each head and the same head of its origin in the shallow model, 0 to 1."""
    nearest: I64
    """(L, H, 2): layer and head of the shallow model's head that is most like it."""

    @property
    def is_nearest(self) -> Flags:
        """(L, H): whether that is the head of its origin."""
        heads = np.arange(self.nearest.shape[1])[None]
        layers = self.origins[:, None]
        found: Flags = (self.nearest[..., 0] == layers) & (self.nearest[..., 1] == heads)
        return found


@dataclass(frozen=True)
class GrowthAttention:
    """What one growth of a run, and training on, did to the maps."""

    run: str
    """Name of the run; `stackbert.attention.beside.run_names` has the rule."""
    operator: str
    step: int
    source_depth: int
    depth: int
    moments: tuple[Moment, ...]
    """The shallow model, right after growing, at the end of the next stage, and the final model
    (left out where that is the end of the next stage)."""
    outcome: Names
    """(L, H) of the grown model: "kept" if a copied head is nearest to its source right after
    growing and at the end of the next stage, "regained" if only at the end, "changed" if it is
    not at the end; "fresh" for heads that copy none."""
    chance: float
    """Share of heads that would be nearest to their source by chance."""
    weights: str
    """SHA-256 of the shallow model's tensors: growths of one started from the same weights."""

    @property
    def label(self) -> str:
        """The run's name, and its operator where that is another word."""
        return self.run if self.run == self.operator else f"{self.run} ({self.operator})"

    @property
    def new_layers(self) -> list[int]:
        """Layers of the grown model that are fresh, or a further copy of a layer copied below."""
        return new_layers(self.moment("grown").origins)

    def moment(self, name: str) -> Moment:
        """The moment of that name; "final" is the last, whatever its name.

        Raises:
            KeyError: there is none.
        """
        for each in self.moments:
            if each.name == name:
                return each
        if name == "final":
            return self.moments[-1]
        raise KeyError(name)


def new_layers(origins: I64) -> list[int]:
    """Places of the layers whose origin is that of a layer below, too."""
    places: list[int] = origins.tolist()
    return [layer for layer, origin in enumerate(places) if origin in places[:layer]]


@dataclass(frozen=True)
class AttentionResult:
    """What `measure_attention` found; `write` and `read_result` store it."""

    model: ModelInfo
    text: str
    """File name of the text, or "given" for sentences passed as a list."""
    seed: int
    max_length: int
    measures: Measures
    likeness: Likeness
    """The model with itself."""
    contrast: Contrast | None
    """Layers of the top half with layers of the bottom half; None of a single layer."""
    untrained: Untrained
    other: Comparison | None = None
    growths: tuple[GrowthAttention, ...] = ()
    """Of the run measured, in their order, then of each run beside it."""

    def to_json(self) -> dict[str, Any]:
        """Plain values: numbers rounded to six decimals, arrays as lists of lists."""
        plain: dict[str, Any] = to_plain(self)
        settings = {"windows": list(WINDOWS), "radius": RADIUS, "divergence_unit": "ln 2"}
        return {"format": FORMAT, "settings": settings, **plain}

    @classmethod
    def from_json(cls, value: dict[str, Any], source: str = "This") -> Self:
        """What `to_json` gave, as a result again.

        Args:
            value: what `to_json` gave.
            source: what an error calls it.

        Raises:
            UserError: it is something else.
        """
        try:
            if "format" not in value:
                raise ValueError("it has no format")
            if value["format"] != FORMAT:
                raise UserError(f"{source} is of another version of StackBERT; measure again.")
            own = {k: v for k, v in value.items() if k not in ("format", "settings")}
            return stored(cls, own)
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{source} is no result of stackbert attention, or a damaged one ({error})."
            ) from error

    def write(self, path: Path) -> None:
        """Write the JSON form, whole or not at all.

        Raises:
            UserError: the folder cannot be written.
        """
        with explaining_os_errors(f"writing {path}"):
            write_json_atomically(path, self.to_json())


def read_result(path: str | Path) -> AttentionResult:
    """Read what `AttentionResult.write` wrote.

    Raises:
        UserError: the file is missing or something else.
    """
    return AttentionResult.from_json(read_json(Path(path)), str(path))
