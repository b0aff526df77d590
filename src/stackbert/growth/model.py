"""Carry a depth map out on a transformers model: every tensor lands by its name, bit for bit."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedModel

from stackbert.errors import UserError
from stackbert.growth.layers import depth_key, find_layers, grown_config
from stackbert.growth.operators import DepthMap, Operator, get_operator
from stackbert.growth.transfer import (
    draw_fresh,
    empty_like,
    fill,
    find_places,
    match_activation_checkpointing,
    match_ties,
    settle_buffers,
)


@dataclass(frozen=True)
class Growth:
    """A grown model and where its parts come from.

    Attributes:
        model: the grown model.
        depth_map: the origin of each of its layers.
        origins: for each name of `model.named_parameters()` the name in the source model of the
            parameter that it is a bit-for-bit copy of; None for a fresh or changed one.
        source_parameters: every name of the source model's `named_parameters()`.
    """

    model: PreTrainedModel
    depth_map: DepthMap
    origins: Mapping[str, str | None]
    source_parameters: frozenset[str]


def grow(
    model: PreTrainedModel, depth: int, operator: str | Operator = "stack", *, seed: int = 0
) -> PreTrainedModel:
    """Make a deeper model out of a trained one.

    Args:
        model: any transformers model with one stack of layers; left as it is.
        depth: layers of the new model, more than `model` has.
        operator: an `Operator` or the name of one. The default is the paper's (Gong et al. 2019,
            section 3), whose trained layers repeat: new[j] = old[j mod L].
        seed: of the fresh layers and the noise, for operators that have any. Fresh layers are a
            pure function of (seed, config, depths); the global random state is not touched.

    Returns:
        A model of the same class, device, dtype, attention implementation and training mode.
        Everything outside the layers and every copied layer equals its source bit for bit; no two
        parameters share storage but those that share it in `model` (tied embeddings).

    Raises:
        UserError: the operator cannot reach `depth`, or the architecture cannot be grown.
    """
    return grow_with_origins(model, depth, operator, seed=seed).model


def grow_with_origins(
    model: PreTrainedModel, depth: int, operator: str | Operator = "stack", *, seed: int = 0
) -> Growth:
    """Do as `grow` does, and tell for each parameter where it comes from.

    Args:
        model: as in `grow`.
        depth: as in `grow`.
        operator: as in `grow`.
        seed: as in `grow`.

    Returns:
        The model with its depth map and the origin of every parameter, which
        `grow_optimizer_state` needs.

    Raises:
        UserError: as `grow`.
    """
    if isinstance(operator, str):
        operator = get_operator(operator)
    _check_model(model)
    present = getattr(model.config, depth_key(model.config))
    depth_map = operator.depth_map(present, depth)
    return grow_by_map(model, depth_map, seed=seed)


def grow_by_map(model: PreTrainedModel, depth_map: DepthMap, *, seed: int = 0) -> Growth:
    """Build the model that a depth map describes, of whatever depth (also a smaller one).

    Args:
        model: as in `grow`.
        depth_map: one origin for each layer of the new model, bottom first.
        seed: as in `grow`.

    Returns:
        As `grow_with_origins`.

    Raises:
        UserError: the map names a layer that `model` lacks, or the architecture cannot be grown;
            among the reasons is a tensor without a place, which is never passed over.
    """
    _check_model(model)
    stack, layers = find_layers(model)
    _check_map(depth_map, len(layers))
    new = empty_like(model, grown_config(model.config, depth_map))
    new_stack, new_layers = find_layers(new)
    if new_stack != stack or len(new_layers) != len(depth_map):
        raise UserError(
            f"{type(model).__name__} built with a depth of {len(depth_map)} has its layers "
            f"elsewhere ({new_stack}, not {stack}). This architecture cannot be grown."
        )
    places = find_places(new, model, stack, depth_map)
    match_ties(new, model, stack)
    draw_fresh(new, new_stack, places, depth_map, seed)
    fill(new, model, stack, places)
    settle_buffers(new, model, stack)
    new.train(model.training)
    match_activation_checkpointing(new, model)
    if getattr(model, "generation_config", None) is not None:
        new.generation_config = copy.deepcopy(model.generation_config)
    return Growth(
        model=new,
        depth_map=depth_map,
        origins={name: places[name] for name, _ in new.named_parameters()},
        source_parameters=frozenset(name for name, _ in model.named_parameters()),
    )


def _check_model(model: PreTrainedModel) -> None:
    if not isinstance(model, PreTrainedModel):
        raise UserError(
            f"Growth takes a transformers model, not a {type(model).__name__}. Pass the model "
            "itself, without the wrapper of torch.compile or DistributedDataParallel."
        )
    if getattr(model, "hf_quantizer", None) is not None:
        raise UserError(
            f"{type(model).__name__} is quantised; growth works on plain weights. Load it without "
            "quantisation."
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UserError(f"{type(model).__name__} has weights on the meta device: nothing to copy.")


def _check_map(depth_map: DepthMap, depth: int) -> None:
    if not depth_map:
        raise UserError("The depth map is empty; a model has 1 layer or more.")
    for place, origin in enumerate(depth_map):
        if origin.source is not None and not 0 <= origin.source < depth:
            raise UserError(
                f"The depth map lets layer {place} copy layer {origin.source}, but the model has "
                f"the layers 0 to {depth - 1}."
            )
