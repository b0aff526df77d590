"""Growing a trained model in depth: operators, models, optimiser state and checkpoint folders.

`operators` says which old layer each new layer starts from (no tensors there); `layers` finds the
layers of a transformers model; `model` carries a depth map out on a model and `optimizer` on the
state of its optimiser, everything by parameter name; `folder` does it to a checkpoint folder.

No module here is called `grow`: importing a submodule binds its name in the package, and it would
then stand in the place of the function.

Importing this package is cheap: torch and transformers load when `grow` or `grow_folder` is first
asked for.
"""

from typing import TYPE_CHECKING, Any

from stackbert.growth.operators import (
    NOISE_SIGMA,
    OPERATORS,
    DepthMap,
    LayerOrigin,
    Operator,
    get_operator,
)

if TYPE_CHECKING:
    from stackbert.growth.folder import FolderGrowth, grow_folder
    from stackbert.growth.model import Growth, grow, grow_by_map, grow_with_origins
    from stackbert.growth.optimizer import grow_optimizer_state

_LAZY = {
    "FolderGrowth": "folder",
    "grow_folder": "folder",
    "Growth": "model",
    "grow": "model",
    "grow_by_map": "model",
    "grow_optimizer_state": "optimizer",
    "grow_with_origins": "model",
}

__all__ = [
    "NOISE_SIGMA",
    "OPERATORS",
    "DepthMap",
    "FolderGrowth",
    "Growth",
    "LayerOrigin",
    "Operator",
    "get_operator",
    "grow",
    "grow_by_map",
    "grow_folder",
    "grow_optimizer_state",
    "grow_with_origins",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 (a function or a class)
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
