"""Growth operators: which old layer each new layer starts from.

An operator is a pure function (source depth, target depth) -> depth map. It knows nothing of
tensors, so this module imports without torch; `stackbert.growth.model` carries a depth map out.

To add an operator: write its rule, say which depths it reaches, put it into `OPERATORS`, and give
it a card in docs/operators/. A depth map may also be written by hand (an explicit list of layers,
also a shorter one than the source) and handed to `stackbert.growth.grow_by_map`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from stackbert.errors import UserError

Outputs = Literal["kept", "zeroed", "noised"]

NOISE_SIGMA = 0.03
"""Standard deviation of the noise on zeroed output projections (Gong et al. 2019, section 4)."""


@dataclass(frozen=True)
class LayerOrigin:
    """Where one new layer comes from.

    Attributes:
        source: the old layer it copies, counted from 0 at the bottom; None for a fresh layer with
            the architecture's own initialisation.
        outputs: what happens to its two output projections (of attention and of the feed-forward
            part, weights and biases). `kept` leaves them; `zeroed` sets them to zero, so that a
            pre-norm layer passes its input through; `noised` sets the biases to zero and draws
            the matrices from N(0, `NOISE_SIGMA`²).
    """

    source: int | None
    outputs: Outputs = "kept"


DepthMap = tuple[LayerOrigin, ...]
"""One `LayerOrigin` for each layer of the grown model, bottom first."""


@dataclass(frozen=True)
class Operator:
    """A named way of growing in depth.

    Attributes:
        name: what recipes and the command line call it.
        summary: one line for listings.
        paper: where it is described.
        preserves_function: the grown model computes what the source computed. Claimed for
            pre-norm models only: a post-norm layer normalises even what it passes through.
        reaches: whether (source depth, target depth) is a pair the rule is defined for.
        rule: the depth map of a pair that `reaches` accepts.
    """

    name: str
    summary: str
    paper: str
    preserves_function: bool
    reaches: Callable[[int, int], bool]
    rule: Callable[[int, int], DepthMap]

    def depth_map(self, source_depth: int, target_depth: int) -> DepthMap:
        """Say where each of `target_depth` layers comes from.

        Args:
            source_depth: layers of the trained model, at least 1.
            target_depth: layers of the model to build.

        Returns:
            `target_depth` origins, bottom layer first.

        Raises:
            UserError: this operator cannot get from one depth to the other; the sentence names
                the nearest depths that it can reach.
        """
        if source_depth < 1:
            raise UserError(
                f"The source depth is {source_depth}; a model to grow has 1 layer or more."
            )
        if not self.reaches(source_depth, target_depth):
            near = " or ".join(
                str(depth) for depth in self.nearest_depths(source_depth, target_depth)
            )
            raise UserError(
                f"The operator '{self.name}' cannot grow {source_depth} layers to {target_depth}. "
                f"The nearest depths that it can reach from {source_depth}: {near}."
            )
        return self.rule(source_depth, target_depth)

    def nearest_depths(self, source_depth: int, target_depth: int) -> tuple[int, ...]:
        """Depths next to `target_depth`, below and above it, that this operator can reach.

        Args:
            source_depth: layers of the trained model.
            target_depth: the depth that was asked for.

        Returns:
            One or two depths, ascending.
        """
        below = range(target_depth - 1, 0, -1)
        # A rule that repeats blocks reaches something within two source depths of any target.
        above = range(
            max(target_depth, 0) + 1, max(target_depth, source_depth) + 2 * source_depth + 1
        )
        found = [
            next((depth for depth in side if self.reaches(source_depth, depth)), None)
            for side in (below, above)
        ]
        return tuple(depth for depth in found if depth is not None)


def _whole_blocks(source: int, target: int) -> bool:
    return target > source and target % source == 0


def _deeper(source: int, target: int) -> bool:
    return target > source


def _stack(source: int, target: int) -> DepthMap:
    return tuple(LayerOrigin(layer % source) for layer in range(target))


def _interleave(source: int, target: int) -> DepthMap:
    copies = target // source
    return tuple(LayerOrigin(layer // copies) for layer in range(target))


def _on_top(outputs: Outputs) -> Callable[[int, int], DepthMap]:
    def rule(source: int, target: int) -> DepthMap:
        kept = tuple(LayerOrigin(layer) for layer in range(source))
        return kept + (LayerOrigin(None, outputs),) * (target - source)

    return rule


_GONG = "Gong et al., Efficient Training of BERT by Progressively Stacking, ICML 2019"

_ALL = (
    Operator(
        name="stack",
        summary="repeat the whole block of trained layers on top of itself (l1 l2 l1 l2)",
        paper=f"{_GONG}, section 3 and Algorithm 1; G_stack in Du et al., NeurIPS 2024",
        preserves_function=False,
        reaches=_whole_blocks,
        rule=_stack,
    ),
    Operator(
        name="interleave",
        summary="repeat each trained layer in place (l1 l1 l2 l2)",
        paper="compared in Du et al., NeurIPS 2024; as interposition in Orthogonal Growth, 2025",
        preserves_function=False,
        reaches=_whole_blocks,
        rule=_interleave,
    ),
    Operator(
        name="identity",
        summary="new layers on top whose output projections are zero: they pass their input on",
        paper=f"{_GONG}, section 4 (a baseline there)",
        preserves_function=True,
        reaches=_deeper,
        rule=_on_top("zeroed"),
    ),
    Operator(
        name="identity-noise",
        summary=f"identity with Gaussian noise (sigma {NOISE_SIGMA}) on the zeroed matrices",
        paper=f"{_GONG}, section 4 (a baseline there)",
        preserves_function=False,
        reaches=_deeper,
        rule=_on_top("noised"),
    ),
    Operator(
        name="random",
        summary="new layers on top, freshly initialised",
        paper="the plain control for every growth operator",
        preserves_function=False,
        reaches=_deeper,
        rule=_on_top("kept"),
    ),
)

OPERATORS: Mapping[str, Operator] = MappingProxyType({operator.name: operator for operator in _ALL})
"""The operators by the name that recipes use."""


def get_operator(name: str) -> Operator:
    """Look an operator up by its name.

    Args:
        name: a key of `OPERATORS`, such as "stack".

    Returns:
        The operator.

    Raises:
        UserError: no operator has that name; the sentence lists those there are.
    """
    try:
        return OPERATORS[name]
    except KeyError:
        raise UserError(
            f"There is no growth operator '{name}'. Choose one of: {', '.join(OPERATORS)}."
        ) from None
