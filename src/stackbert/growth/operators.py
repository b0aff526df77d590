"""Growth operators: which old layer each new layer starts from.

An operator knows nothing of tensors, so this module imports without torch. examples/own_operator.py
shows how to add your own; docs/operators.md has a card for each that is built in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from stackbert.errors import UserError

Outputs = Literal["kept", "zeroed", "noised"]

MOST_LAYERS = 1000
"""Of a model: far more than any has, and few enough to be built."""
NOISE_SIGMA = 0.03
"""Standard deviation of the noise on output projections (Gong et al. 2019, section 4)."""


@dataclass(frozen=True)
class Origin:
    """Where one new layer comes from."""

    source: int | None
    """The old layer it copies, from 0 at the bottom; None for the architecture's initialisation."""
    outputs: Outputs = "kept"
    """What becomes of its two output projections (of attention and of the feed-forward part).
    `zeroed`: all zero, so that the layer passes its input through (in a post-norm model it takes
    over the norm that ends the layer below); `noised`: biases zero, matrices drawn from
    N(0, `NOISE_SIGMA`²)."""


DepthMap = tuple[Origin, ...]
"""One `Origin` for each layer of the grown model, bottom first."""


def _whole_blocks(source: int, target: int) -> bool:
    return target > source and target % source == 0


@dataclass(frozen=True)
class Operator:
    """A named way of growing in depth."""

    name: str
    rule: Callable[[int, int], Sequence[Origin | int | None]]
    """From (source depth, target depth) to an entry for each new layer, bottom first: the old layer
    to copy, None for a fresh one, or an `Origin`."""
    reaches: Callable[[int, int], bool] = lambda source, target: target > source
    """Whether the rule is defined for (source depth, target depth)."""

    def depth_map(self, source_depth: int, target_depth: int) -> DepthMap:
        """Say where each of `target_depth` layers comes from, bottom layer first.

        Raises:
            UserError: this operator cannot get there, or its rule gives something else.
        """
        if target_depth > MOST_LAYERS:
            raise UserError(f"{target_depth:,} layers are too many; at most {MOST_LAYERS:,}.")
        if not self.reaches(source_depth, target_depth):
            # A rule that repeats blocks reaches something within two source depths of any target.
            last = max(target_depth, source_depth) + 2 * source_depth
            reached = [n for n in range(1, last + 1) if self.reaches(source_depth, n)]
            near = sorted(reached, key=lambda n: abs(n - target_depth))[:2]
            raise UserError(
                f"The operator '{self.name}' cannot grow {source_depth} layers to {target_depth}. "
                f"The nearest depths it can reach from {source_depth}: "
                f"{' or '.join(map(str, sorted(near))) or 'none'}."
            )
        entries = [
            entry if isinstance(entry, Origin) else Origin(entry)
            for entry in self.rule(source_depth, target_depth)
        ]
        copied = {entry.source for entry in entries} - {None}
        if len(entries) != target_depth or not copied <= set(range(source_depth)):
            raise UserError(
                f"The operator '{self.name}' gives {len(entries)} layers, copying {copied}; it "
                f"should give {target_depth} and copy layers 0 to {source_depth - 1}."
            )
        return tuple(entries)


def _on_top(outputs: Outputs) -> Callable[[int, int], list[Origin | int | None]]:
    fresh = Origin(None, outputs)
    return lambda source, target: [*range(source), *[fresh] * (target - source)]


def _core(source: int) -> range:
    return range(source // 3, source - source // 3)


def _middle(source: int, target: int) -> list[Origin | int | None]:
    core = _core(source)
    copies = 1 + (target - source) // len(core)
    return [*range(core.start), *list(core) * copies, *range(core.stop, source)]


def _followed_by_silent_copies(source: int, target: int) -> list[Origin | int | None]:
    every = source // (target - source)
    entries: list[Origin | int | None] = []
    for layer in range(source):
        silent = [Origin(layer, "zeroed")] if (layer + 1) % every == 0 else []
        entries += [layer, *silent]
    return entries


def layer_list(layers: Sequence[int]) -> Operator:
    """The operator that copies these old layers, bottom first."""
    name = f"layers {' '.join(map(str, layers))}"
    return Operator(name, lambda old, new: layers, lambda old, new: new == len(layers))


# stack: Gong et al., ICML 2019, section 3 and Algorithm 1; G_stack in Du et al., NeurIPS 2024.
# interleave: compared in Du et al.; called interposition in Orthogonal Growth, 2025.
# middle: the core of "How Model Growth, Recursion, and Boundary Operators …", arXiv 2609.19107.
# identity, identity-noise: baselines in Gong et al., section 4. random: the plain control.
# identity-copy: block expansion of LLaMA Pro, Wu et al., ACL 2024.
_BUILT_IN = (
    Operator("stack", lambda old, new: [i % old for i in range(new)], _whole_blocks),
    Operator("interleave", lambda old, new: [i * old // new for i in range(new)], _whole_blocks),
    Operator("middle", _middle, lambda old, new: new > old and (new - old) % len(_core(old)) == 0),
    Operator("identity", _on_top("zeroed")),
    Operator("identity-noise", _on_top("noised")),
    Operator(
        "identity-copy",
        _followed_by_silent_copies,
        lambda old, new: old < new <= 2 * old and old % (new - old) == 0,
    ),
    Operator("random", _on_top("kept")),
)
BUILT_IN = tuple(operator.name for operator in _BUILT_IN)
OPERATORS = {operator.name: operator for operator in _BUILT_IN}
"""The operators by the name that recipes use; `register_operator` adds to it."""


def register_operator(operator: Operator) -> None:
    """Make an operator known by its name, in this process; it replaces one of the same name."""
    OPERATORS[operator.name] = operator


def get_operator(operator: str | Operator) -> Operator:
    """The operator of this name, or the one that is given.

    Raises:
        UserError: no operator has this name.
    """
    if isinstance(operator, Operator):
        return operator
    if operator not in OPERATORS:
        raise UserError(
            f"There is no growth operator '{operator}'. Choose one of: {', '.join(OPERATORS)}."
        )
    return OPERATORS[operator]
