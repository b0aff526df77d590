"""Let an optimiser's state follow its parameters through growth, by name."""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from stackbert.errors import UserError
from stackbert.growth.model import Growth

Policy = Literal["reset", "copy"]


def grow_optimizer_state(
    state: Mapping[str, Mapping[str, Tensor]], growth: Growth, policy: Policy
) -> dict[str, dict[str, Tensor]]:
    """Map an optimiser's state onto the grown model's parameters.

    Args:
        state: for each parameter name of the source model (as `named_parameters` gives it) its
            tensors: `exp_avg` and `exp_avg_sq` of the parameter's shape, `step` of shape (),
            `momentum_buffer`, whatever the optimiser keeps. Parameters without state may be left
            out. Nothing in it is changed.
        growth: what `grow_with_origins` returned.
        policy: "reset" starts every moment anew (Gong et al. 2019, section 3: "at a switch"
            nothing is carried over); "copy" gives each parameter the state of the parameter that
            it was copied from (Shen et al., Staged Training, ICML 2022).

    Returns:
        Under "reset" an empty mapping; under "copy" one entry for each parameter of the grown
        model that is a bit-for-bit copy of one with state, in tensors of its own. Fresh and
        changed parameters (zeroed projections) have no entry and start anew.

    Raises:
        UserError: `state` names something that is no parameter of the source model, or the policy
            is unknown. Checked under both policies: a wrong name is a fault of the caller that a
            reset would hide.
    """
    if policy not in ("reset", "copy"):
        raise UserError(f"The optimiser-state policy is '{policy}'; choose 'reset' or 'copy'.")
    unknown = sorted(set(state) - growth.source_parameters)
    if unknown:
        raise UserError(
            f"The optimiser's state names {', '.join(unknown)}, which the model that was grown "
            "does not have as parameters. State goes by the names of named_parameters()."
        )
    if policy == "reset":
        return {}
    return {
        name: {key: tensor.detach().clone() for key, tensor in state[origin].items()}
        for name, origin in growth.origins.items()
        if origin is not None and origin in state
    }
