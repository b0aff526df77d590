"""The steps of growing a model: build it empty, place, tie, draw what is fresh, fill.

Special about this module: the new model is built empty (no initialisation is run for what will be
overwritten), its non-persistent buffers are those its own constructor computes, fresh layers are
drawn on the CPU in float32 whatever the model's device and dtype, so that the same seed gives the
same layers everywhere, and each copied tensor is a clone that replaces an untouched placeholder:
at no time is there more than one copy of the target in memory.

In all of it `new` is the model being built, `old` the one to grow, `stack` the dotted name of the
list of layers in both, and "stored" means what a checkpoint holds: parameters and persistent
buffers.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from stackbert.errors import UserError
from stackbert.growth.layers import output_projections, takes_pooler_switch
from stackbert.growth.operators import NOISE_SIGMA, DepthMap

# Parameters that a layer may lose on its way to another place: ModernBERT's first layer has no
# norm before attention (the embeddings end in one), so a higher layer copied there drops its own.
_MAY_BE_DROPPED = {"modernbert": ("attn_norm.",), "modernbert-decoder": ("attn_norm.",)}


def empty_like(model: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    """Construct the target, initialising and tying nothing; its weights are untouched memory.

    `torch.empty` on the CPU maps memory without filling it, so the placeholders cost nothing until
    they are replaced. The meta device would do as well, but leaves non-persistent buffers
    (position_ids, rotary frequencies) without values.
    """
    default = torch.get_default_dtype()
    without_pooler = takes_pooler_switch(type(model)) and getattr(model, "pooler", None) is None
    options = {"add_pooling_layer": False} if without_pooler else {}
    try:
        torch.set_default_dtype(torch.float32)
        with no_init_weights(), torch.device("cpu"), torch.random.fork_rng(devices=[]):
            new = type(model)(config, **options)
    except Exception as error:
        # Constructors raise whatever they like; the user needs the reason in one sentence.
        raise UserError(
            f"{type(model).__name__} cannot be built with {config.num_hidden_layers} layers: "
            f"{error}"
        ) from error
    finally:
        torch.set_default_dtype(default)
    return new


def _stored(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and persistent buffer under each of its names (tied ones under both)."""
    return model.state_dict(keep_vars=True)


def find_places(
    new: PreTrainedModel, old: PreTrainedModel, stack: str, depth_map: DepthMap
) -> dict[str, str | None]:
    """For each persistent tensor of the new model its source's name, or None if it has none.

    Raises:
        UserError: a tensor outside the layers is in only one of the two models, a layer's tensor
            has no place in the new model, or the shapes differ.
    """
    sources, targets = _stored(old), _stored(new)
    changed = tuple(
        f"{stack}.{place}.{module}."
        for place, origin in enumerate(depth_map)
        if origin.outputs != "kept"
        for module in output_projections(
            new.get_submodule(f"{stack}.{place}"), old.config.model_type
        )
    )
    places: dict[str, str | None] = {}
    for name in targets:
        place, rest = _split(name, stack)
        if place is None:
            places[name] = name
            continue
        origin = depth_map[place]
        source = f"{stack}.{origin.source}.{rest}"
        fresh = origin.source is None or source not in sources or name.startswith(changed)
        places[name] = None if fresh else source
    droppable = _MAY_BE_DROPPED.get(old.config.model_type, ())
    wanted = set(targets)
    for name in sources:
        place, rest = _split(name, stack)
        if place is None:
            homes = [name]
        elif rest.startswith(droppable) and droppable:
            homes = []
        else:
            homes = [
                f"{stack}.{new_place}.{rest}"
                for new_place, origin in enumerate(depth_map)
                if origin.source == place
            ]
        for home in homes:
            if home not in wanted:
                raise UserError(
                    f"The model's '{name}' has no place in the grown {type(new).__name__} (as "
                    f"'{home}'). It was added by hand, or this architecture cannot be grown."
                )
    for name, source_name in places.items():
        if source_name is None:
            continue
        if source_name not in sources:
            raise UserError(
                f"The grown {type(new).__name__} has '{name}', which the model to grow lacks."
            )
        if sources[source_name].shape != targets[name].shape:
            raise UserError(
                f"'{source_name}' has the shape {tuple(sources[source_name].shape)}, but the "
                f"config asks for {tuple(targets[name].shape)} at '{name}'."
            )
    return places


def _inside(name: str, stack: str) -> bool:
    return name.startswith(f"{stack}.")


def _split(name: str, stack: str) -> tuple[int | None, str]:
    """('bert.encoder.layer.3.output.dense.bias') -> (3, 'output.dense.bias'); (None, name) else."""
    if not _inside(name, stack):
        return None, name
    number, _, rest = name[len(stack) + 1 :].partition(".")
    return int(number), rest


def match_ties(new: PreTrainedModel, old: PreTrainedModel, stack: str) -> None:
    """Outside the layers, share a parameter in the new model exactly where the old one does.

    Neither the config nor the constructor is enough: a checkpoint that holds two different tensors
    for a tied pair is loaded untied by transformers, whatever its config says.
    """
    first_name: dict[int, str] = {}
    canonical: dict[str, str] = {}
    for name, parameter in old.named_parameters(remove_duplicate=False):
        canonical[name] = first_name.setdefault(id(parameter), name)
    taken: set[int] = set()
    for name, parameter in list(new.named_parameters(remove_duplicate=False)):
        if _inside(name, stack):
            continue
        owner = canonical[name]
        if owner != name and not _inside(owner, stack):
            parameter = new.get_parameter(owner)
        elif id(parameter) in taken:
            parameter = nn.Parameter(torch.empty_like(parameter))
        taken.add(id(parameter))
        module, _, attribute = name.rpartition(".")
        setattr(new.get_submodule(module), attribute, parameter)
    # What save_pretrained leaves out of the file because its twin is there.
    if hasattr(old, "all_tied_weights_keys"):
        new.all_tied_weights_keys = dict(old.all_tied_weights_keys)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Within this block the CPU's random numbers follow `seed`; afterwards all is as before."""
    # fork_rng restores only what it is told of: no CUDA generator is seeded here, so none is
    # listed. torch.manual_seed would seed those too, even ones that are not yet initialised.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def draw_fresh(
    new: PreTrainedModel,
    stack: str,
    places: Mapping[str, str | None],
    depth_map: DepthMap,
    seed: int,
) -> None:
    """Initialise what is not copied: whole fresh layers, missing norms, changed projections."""
    initialise = _initialiser(new, stack)
    with torch.no_grad(), _seeded(seed):
        for place, origin in enumerate(depth_map):
            layer = new.get_submodule(f"{stack}.{place}")
            fresh = {
                name: tensor
                for name, tensor in layer.state_dict(keep_vars=True).items()
                if places[f"{stack}.{place}.{name}"] is None and tensor.is_floating_point()
            }
            # Placeholders are untouched memory: NaN shows whether the architecture's own
            # initialisation reaches each of them.
            for tensor in fresh.values():
                tensor.fill_(torch.nan)
            if origin.source is None:
                layer.apply(initialise)
            else:
                for name in sorted({name.rpartition(".")[0] for name in fresh}):
                    initialise(layer.get_submodule(name))
            if origin.outputs != "kept":
                for name in output_projections(layer, new.config.model_type):
                    _change_output(layer.get_submodule(name), noised=origin.outputs == "noised")
            for name, tensor in fresh.items():
                # A sum reads a tensor nine times as fast as isnan() does, and one NaN spoils it.
                if tensor.sum().isnan():
                    raise UserError(
                        f"{type(new).__name__} does not initialise '{stack}.{place}.{name}' by "
                        "itself, so fresh layers cannot be made. Use stack or interleave."
                    )


def _initialiser(model: PreTrainedModel, stack: str) -> Callable[[nn.Module], None]:
    """The `_init_weights` of the innermost transformers model around the stack."""
    owner: Any = model
    parts = stack.split(".")
    for end in range(1, len(parts)):
        module = model.get_submodule(".".join(parts[:end]))
        if isinstance(module, PreTrainedModel):
            owner = module
    return cast("Callable[[nn.Module], None]", owner._init_weights)


def _change_output(projection: nn.Module, *, noised: bool) -> None:
    """Zero an output projection, weight and bias, and put noise on the matrix if asked to."""
    for name, parameter in projection.named_parameters(recurse=False):
        parameter.zero_()
        if noised and name == "weight":
            parameter.normal_(0.0, NOISE_SIGMA)


def fill(
    new: PreTrainedModel,
    old: PreTrainedModel,
    stack: str,
    places: Mapping[str, str | None],
) -> None:
    """Replace each placeholder by a clone of its source; give fresh tensors the stack's dtype."""
    sources = _stored(old)
    # Of layers on several devices the topmost counts: fresh layers come on top of it.
    like = {
        _split(name, stack)[1]: tensor for name, tensor in sources.items() if _inside(name, stack)
    }
    any_layer = next(tensor for tensor in like.values() if tensor.is_floating_point())
    done: set[int] = set()
    for name, tensor in _stored(new).items():
        if id(tensor) in done:
            continue
        done.add(id(tensor))
        source = places[name]
        if source is None:
            model_tensor = like.get(_split(name, stack)[1], any_layer)
            tensor.data = tensor.data.to(device=model_tensor.device, dtype=model_tensor.dtype)
            continue
        tensor.data = sources[source].detach().clone()
        if isinstance(tensor, nn.Parameter):
            tensor.requires_grad_(sources[source].requires_grad)


def settle_buffers(new: PreTrainedModel, old: PreTrainedModel, stack: str) -> None:
    """Put buffers that no checkpoint holds onto the old ones' device and into their dtype.

    Their values are the constructor's, which knows each layer's new place.
    """
    stored = set(_stored(new))
    device = next(old.parameters()).device
    outside: dict[str, Tensor] = {}
    inside: dict[str, Tensor] = {}
    for name, buffer in old.named_buffers():
        place, rest = _split(name, stack)
        (outside if place is None else inside)[rest] = buffer
    for name, buffer in new.named_buffers():
        if name in stored:
            continue
        place, rest = _split(name, stack)
        like = (outside if place is None else inside).get(rest)
        dtype = buffer.dtype if like is None else like.dtype
        buffer.data = buffer.data.to(device=device if like is None else like.device, dtype=dtype)


def match_activation_checkpointing(new: PreTrainedModel, old: PreTrainedModel) -> None:
    """Recompute activations where the old model does; a run must not outgrow its memory here."""
    # By attribute: the public switch has changed its name between versions and forgets its options.
    switched = [m for m in old.modules() if getattr(m, "gradient_checkpointing", False)]
    if not switched:
        return
    for module in new.modules():
        if hasattr(module, "gradient_checkpointing"):
            for attribute in ("gradient_checkpointing", "_gradient_checkpointing_func"):
                setattr(module, attribute, getattr(switched[0], attribute))
