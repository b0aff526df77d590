"""Growth operators: which old layer each new layer starts from.

An operator knows nothing of tensors, so this module imports without torch. To add your own, make an
`Operator` of a rule and call `register_operator` (examples/own_operator.py). Every operator shipped
here has a card in docs/operators/.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from stackbert.errors import UserError

Outputs = Literal["kept", "zeroed", "noised"]

NOISE_SIGMA = 0.03
"""Standard deviation of the noise on output projections (Gong et al. 2019, section 4)."""


@dataclass(frozen=True)
class Origin:
    """Where one new layer comes from."""

    source: int | None
    """The old layer it copies, counted from 0 at the bottom; None for a fresh layer with the
    architecture's own initialisation."""
    outputs: Outputs = "kept"
    """Its two output projections (of attention and of the feed-forward part). `zeroed`: weights and
    biases are zero, so that a pre-norm layer passes its input through; `noised`: biases are zero,
    matrices drawn from N(0, `NOISE_SIGMA`²)."""


DepthMap = tuple[Origin, ...]
"""One `Origin` for each layer of the grown model, bottom first."""


def _whole_blocks(source: int, target: int) -> bool:
    return target > source and target % source == 0


@dataclass(frozen=True)
class Operator:
    """A named way of growing in depth."""

    name: str
    rule: Callable[[int, int], Sequence[Origin | int | None]]
    """Gives for (source depth, target depth) an entry for each new layer, bottom first: the old
    layer to copy, None for a fresh one, or an `Origin`."""
    reaches: Callable[[int, int], bool] = lambda source, target: target > source
    """Whether the rule is defined for (source depth, target depth)."""
    preserves_function: bool = False
    """The grown model computes what the source computed. Claimed for pre-norm models only: a
    post-norm layer normalises even what it passes through."""

    def depth_map(self, source_depth: int, target_depth: int) -> DepthMap:
        """Say where each of `target_depth` layers comes from, bottom layer first.

        Raises:
            UserError: this operator cannot get from one depth to the other (the sentence names
                the nearest depths that it can reach), or its rule gives something else.
        """
        if not self.reaches(source_depth, target_depth):
            # A rule that repeats blocks reaches something within two source depths of any target.
            last = max(target_depth, source_depth) + 2 * source_depth
            reached = [n for n in range(1, last + 1) if self.reaches(source_depth, n)]
            near = [n for n in reached if n < target_depth][-1:]
            near += [n for n in reached if n > target_depth][:1]
            raise UserError(
                f"The operator '{self.name}' cannot grow {source_depth} layers to {target_depth}. "
                f"The nearest depths it can reach from {source_depth}: "
                f"{' or '.join(map(str, near)) or 'none'}."
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


# stack: Gong et al., ICML 2019, section 3 and Algorithm 1; G_stack in Du et al., NeurIPS 2024.
# interleave: compared in Du et al.; called interposition in Orthogonal Growth, 2025.
# identity, identity-noise: baselines in Gong et al., section 4. random: the plain control.
_SHIPPED = (
    Operator("stack", lambda old, new: [i % old for i in range(new)], _whole_blocks),
    Operator("interleave", lambda old, new: [i * old // new for i in range(new)], _whole_blocks),
    Operator("identity", _on_top("zeroed"), preserves_function=True),
    Operator("identity-noise", _on_top("noised")),
    Operator("random", _on_top("kept")),
)

OPERATORS: dict[str, Operator] = {operator.name: operator for operator in _SHIPPED}
"""The operators by the name that recipes use; `register_operator` adds to it."""


def register_operator(operator: Operator) -> None:
    """Make an operator of your own known by its name, in this process.

    It replaces an earlier one of the same name, so that a notebook cell can run twice.

    Raises:
        UserError: the name is that of a shipped operator.
    """
    if any(operator.name == shipped.name for shipped in _SHIPPED):
        raise UserError(f"The operator '{operator.name}' is built in. Give yours another name.")
    OPERATORS[operator.name] = operator


def get_operator(name: str) -> Operator:
    """Look an operator up by its name.

    Raises:
        UserError: no operator has that name; the sentence lists those there are.
    """
    if name not in OPERATORS:
        raise UserError(
            f"There is no growth operator '{name}'. Choose one of: {', '.join(OPERATORS)}."
        )
    return OPERATORS[name]
