"""Carry a depth map out on a transformers model: every tensor lands by its name, bit for bit.

Fresh layers are drawn on the CPU in float32, so that one seed gives the same ones everywhere. A
copy replaces untouched memory, so there is never more than one copy of the target.
"""

import contextlib
import copy
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.modeling_utils import local_torch_dtype

from stackbert.errors import UserError
from stackbert.files import reason
from stackbert.growth.operators import NOISE_SIGMA, DepthMap, Operator, Origin, get_operator

# Within a layer, the projection that ends attention and the one that ends the feed-forward part.
_OUTPUT_PROJECTIONS = (
    ("attention.output.dense", "output.dense"),  # bert, roberta, prelayernorm, megatron, electra
    ("attn.Wo", "mlp.Wo"),  # modernbert
    ("attn.c_proj", "mlp.c_proj"),  # gpt2
    ("attn.attention.out_proj", "mlp.c_proj"),  # gpt-neo
    ("self_attn.o_proj", "mlp.down_proj"),  # llama, mistral, qwen, gemma, eurobert
    ("attention.dense", "mlp.dense_4h_to_h"),  # gpt-neox
    ("self_attn.out_proj", "fc2"),  # opt
    ("attention.out_lin", "ffn.lin2"),  # distilbert
)
# ModernBERT's first layer has no norm before attention (the embeddings end in one), so a higher
# layer that is copied there loses its own.
_NOT_IN_FIRST_LAYER = {"modernbert": "attn_norm.", "modernbert-decoder": "attn_norm."}
_PLAIN_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Names of config fields with an entry for each layer, and of fields that list layers by number.
_PER_LAYER = re.compile(r"layer|block")
_LAYER_NUMBERS = re.compile(r"(layers?|blocks?)$|(layer|block|attn|mlp|moe).*_(id|ind)\w*$")


@dataclass(frozen=True)
class Growth:
    """A grown model and where its parts come from."""

    model: PreTrainedModel
    depth_map: DepthMap
    origins: Mapping[str, str | None]
    """Of each parameter of the model, by name: the source's parameter that it copies bit for bit;
    None for a fresh or changed one."""


def grow(
    model: PreTrainedModel, depth: int, operator: str | Operator = "stack", *, seed: int = 0
) -> PreTrainedModel:
    """Make a deeper model out of a trained one.

    Args:
        model: any transformers model with one list of layers; left as it is.
        depth: layers of the new model.
        operator: an `Operator` or the name of one. The default is the paper's (Gong et al. 2019,
            section 3), which repeats the trained layers: new[j] = old[j mod L].
        seed: of fresh layers and noise, for operators that have any. These are a pure function of
            (seed, config, depths); the global random state is not touched.

    Returns:
        A model of the same class, device, dtype, attention implementation and training mode.
        Everything outside the layers and every copied layer equals its source bit for bit; two
        parameters share storage only where they do in `model` (tied embeddings).

    Raises:
        UserError: the operator cannot reach `depth`, or the architecture cannot be grown, for
            example because one of its tensors has no place in the new model.
    """
    return grow_with_origins(model, depth, operator, seed=seed).model


def grow_with_origins(
    model: PreTrainedModel, depth: int, operator: str | Operator = "stack", *, seed: int = 0
) -> Growth:
    """Do as `grow`, and tell for each parameter where it comes from."""
    if isinstance(operator, str):
        operator = get_operator(operator)
    stack, layers = find_layers(model)
    depth_map = operator.depth_map(len(layers), depth)
    _check_weights(model)
    new = _build(model, grown_config(model.config, depth_map))
    find_layers(new)  # refuses a class whose layers do not follow its config
    places = _places(model, new, stack, depth_map)
    _draw_fresh(new, stack, places, depth_map, seed)
    _fill(new, model, stack, places)
    new.train(model.training)
    if getattr(model, "generation_config", None) is not None:
        new.generation_config = copy.deepcopy(model.generation_config)
    return Growth(new, depth_map, {name: places[name] for name, _ in new.named_parameters()})


def grow_optimizer_state(
    state: Mapping[str, Mapping[str, Tensor]], growth: Growth, policy: Literal["reset", "copy"]
) -> dict[str, dict[str, Tensor]]:
    """Map an optimizer's state onto the grown model's parameters, by name.

    Args:
        state: for each parameter name of the source model the tensors that the optimizer keeps.
        growth: what `grow_with_origins` returned.
        policy: "reset" starts every moment anew (Gong et al. 2019, section 3); "copy" gives each
            parameter the state of the one it copies (Shen et al., Staged Training, ICML 2022), in
            tensors of its own. What is fresh or changed starts anew.
    """
    if policy == "reset":
        return {}
    return {
        name: {key: tensor.detach().clone() for key, tensor in state[origin].items()}
        for name, origin in growth.origins.items()
        if origin is not None and origin in state
    }


def find_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Find a model's layers, with or without a head on it.

    Returns:
        The list's dotted name (`bert.encoder.layer`, `model.layers`, `transformer.h`, …) and the
        list itself, as long as the config's depth.

    Raises:
        UserError: it is not a transformers model, or does not have exactly one list of layers, each
            with weights of its own (ALBERT, encoder-decoder and composite models do not).
    """
    if not isinstance(model, PreTrainedModel):
        raise UserError(
            f"Growth takes a transformers model, not a {type(model).__name__}. Pass the model "
            "itself, without the wrapper of torch.compile or DistributedDataParallel."
        )
    depth = getattr(model.config, depth_key(model.config))
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == depth
        and _have_own_weights(module)
        # Inside a layer, experts or heads may happen to be as many as the layers.
        and not any(part.isdigit() for part in name.split("."))
    ]
    if len(found) != 1:
        raise UserError(
            f"Growth needs exactly one list of {depth} layers, each with weights of its own. In "
            f"{type(model).__name__} it finds {', '.join(name for name, _ in found) or 'none'}, "
            "so this architecture cannot be grown."
        )
    return found[0]


def _have_own_weights(layers: nn.ModuleList) -> bool:
    owned = [{id(parameter) for parameter in layer.parameters()} for layer in layers]
    return all(owned) and sum(map(len, owned)) == len(set().union(*owned))


def depth_key(config: PretrainedConfig) -> str:
    """The config's own name for its number of layers: `num_hidden_layers`, `n_layer`, …

    Raises:
        UserError: the config does not have a single number of layers that are alike.
    """
    key: str = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    unlike = config.is_encoder_decoder or getattr(config, "is_heterogeneous", False)
    if unlike or not isinstance(getattr(config, key, None), int):
        raise UserError(
            f"'{config.model_type}' is an encoder-decoder or composite model, or its layers have "
            "configs of their own; growth works on models with one stack of like layers."
        )
    return key


def _check_weights(model: PreTrainedModel) -> None:
    quantised = getattr(model, "hf_quantizer", None) is not None
    for name, parameter in model.named_parameters():
        if quantised or parameter.is_meta or parameter.dtype not in _PLAIN_DTYPES:
            raise UserError(
                f"'{name}' of this {type(model).__name__} is quantised, {parameter.dtype} or on "
                f"the {parameter.device} device. Growth needs plain floating-point weights in "
                "memory; load the model without quantisation or off-loading."
            )


def grown_config(config: PretrainedConfig, depth_map: DepthMap) -> PretrainedConfig:
    """A copy of a config whose depth and per-layer lists follow a depth map.

    A per-layer list (ModernBERT's `layer_types`) takes for a copied layer the source layer's entry,
    and for a fresh one what the class's default pattern has at that place.

    Raises:
        UserError: a field names layers by number, or the entry of a fresh layer is unknown.
    """
    key, target = depth_key(config), len(depth_map)
    depth = getattr(config, key)
    lists, defaults = _lists(config), {}
    # A list's length alone proves nothing: three end-of-text ids may meet three layers. Proof is
    # that the class, asked for another depth, makes the list follow; other lists go by their name.
    fields = {k: v for k, v in config.to_dict().items() if len(lists.get(k, ())) != depth}
    with contextlib.suppress(Exception):  # of a class that has no defaults for the open fields
        defaults = _lists(type(config).from_dict(fields | {key: target}))
    grown = copy.deepcopy(config)
    setattr(grown, key, target)
    for name, old in lists.items():
        default = defaults.get(name, ())
        follows = len(default) == target
        numbers = all(isinstance(entry, int) and not isinstance(entry, bool) for entry in old)
        if len(old) == depth and (follows or (_PER_LAYER.search(name) and not numbers)):
            if not follows and any(origin.source is None for origin in depth_map):
                raise UserError(
                    f"The config's per-layer list '{name}' has no entry for a fresh layer. Use an "
                    "operator that copies layers (stack, interleave)."
                )
            entries = [
                default[place] if origin.source is None else old[origin.source]
                for place, origin in enumerate(depth_map)
            ]
            setattr(grown, name, type(old)(copy.deepcopy(entries)))
        elif numbers and _LAYER_NUMBERS.search(name):
            raise UserError(
                f"The config's '{name}' names layers by number ({list(old)}), and after growth "
                "these numbers would mean other layers. This config cannot be grown."
            )
    return grown


def _lists(config: PretrainedConfig) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(config).items()
        if isinstance(value, list | tuple) and value and not name.startswith("_")
    }


def _build(model: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    """The target without any initialisation: memory that costs nothing until it is written to.

    The meta device would leave non-persistent buffers (rotary frequencies) without values.
    """
    takes_switch = "add_pooling_layer" in inspect.signature(type(model).__init__).parameters
    without_pooler = takes_switch and getattr(model, "pooler", None) is None
    options = {"add_pooling_layer": False} if without_pooler else {}
    plain: Any = local_torch_dtype(torch.float32)
    try:
        with plain, no_init_weights(), torch.device("cpu"), torch.random.fork_rng(devices=[]):
            return type(model)(config, **options)
    except Exception as error:  # constructors raise whatever they like
        what = f"A deeper {type(model).__name__} cannot be built"
        raise UserError(f"{what}: {reason(error)}.") from error


def _places(
    old: PreTrainedModel, new: PreTrainedModel, stack: str, depth_map: DepthMap
) -> dict[str, str | None]:
    """For each tensor of the new model's state its source's name, or None if it is fresh.

    Every tensor of the old model is sent to its places, whether the new model has them or not:
    strict loading then names what does not fit.
    """
    dropped = _NOT_IN_FIRST_LAYER.get(old.config.model_type)
    names = list(old.state_dict())
    places: dict[str, str | None] = {n: n for n in names if not n.startswith(f"{stack}.")}
    for place, origin in enumerate(depth_map):
        here, there = f"{stack}.{place}.", f"{stack}.{origin.source}."
        for name in names:
            rest = name.removeprefix(there)
            loses = place == 0 and dropped is not None and rest.startswith(dropped)
            if name.startswith(there) and not loses:
                places[here + rest] = name
        layer = new.get_submodule(here.removesuffix("."))
        changed = _changed_projections(layer, origin)
        for name in layer.state_dict():
            if name.rpartition(".")[0] in changed:
                places[here + name] = None
            places.setdefault(here + name, None)
    return places


def _changed_projections(layer: nn.Module, origin: Origin) -> tuple[str, ...]:
    """Names, within a layer, of the projections onto the residual stream that are not kept."""
    if origin.outputs == "kept":
        return ()
    modules = dict(layer.named_modules())
    known = [
        names
        for names in _OUTPUT_PROJECTIONS
        if all(hasattr(modules.get(name), "weight") for name in names)
    ]
    # A layer with cross-attention has a third projection.
    if len(known) != 1 or any("cross" in name for name in modules):
        raise UserError(
            f"{type(layer).__name__} has no output projections known by name, which this operator "
            "changes. Use stack, interleave or random."
        )
    return known[0]


def _draw_fresh(
    new: PreTrainedModel,
    stack: str,
    places: Mapping[str, str | None],
    depth_map: DepthMap,
    seed: int,
) -> None:
    """Initialise what is not copied: whole fresh layers, missing norms, changed projections."""
    initialise: Any = new._init_weights
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the GPUs' too
        for place, origin in enumerate(depth_map):
            layer = new.get_submodule(f"{stack}.{place}")
            fresh = {
                name: parameter
                for name, parameter in layer.named_parameters()
                if places[f"{stack}.{place}.{name}"] is None
            }
            for parameter in fresh.values():
                parameter.fill_(torch.nan)  # shows below whether the initialisation reaches it
            if origin.source is None:
                layer.apply(initialise)
            else:
                for name in sorted({name.rpartition(".")[0] for name in fresh}):
                    initialise(layer.get_submodule(name))
            for name in _changed_projections(layer, origin):
                for kind, parameter in layer.get_submodule(name).named_parameters():
                    parameter.zero_()
                    if origin.outputs == "noised" and kind == "weight":
                        parameter.normal_(0.0, NOISE_SIGMA)
            for name, parameter in fresh.items():
                if parameter.sum().isnan():  # nine times as fast as isnan().any()
                    raise UserError(
                        f"{type(new).__name__} does not initialise '{stack}.{place}.{name}', so "
                        "fresh layers cannot be made. Use stack or interleave."
                    )


def _fill(
    new: PreTrainedModel, old: PreTrainedModel, stack: str, places: Mapping[str, str | None]
) -> None:
    """Put a clone of its source in each copied tensor's place; cast and move everything else.

    Two names outside the layers get one parameter exactly if they share one in the old model.
    Neither config nor constructor tells: transformers loads a checkpoint that holds different
    tensors for a tied pair untied, whatever its config says.
    """
    source, built = old.state_dict(keep_vars=True), new.state_dict(keep_vars=True)
    known = {**dict(old.named_buffers()), **source}
    layers = find_layers(old)[1]
    top = next(layers[-1].parameters())
    in_layer = re.compile(rf"^{re.escape(stack)}\.\d+\.")

    def fitted(name: str, tensor: Tensor) -> Tensor:
        """With the dtype of its counterpart, outside the layers or in the old model's top one."""
        without = top if isinstance(tensor, nn.Parameter) else tensor
        like = known.get(in_layer.sub(f"{stack}.{len(layers) - 1}.", name), without)
        return tensor.detach().to(top.device, like.dtype)

    state: dict[str, Tensor] = {}
    made: dict[tuple[str, int], Tensor] = {}
    for name, origin in places.items():
        tensor = built[name] if origin is None else source[origin]
        layer = in_layer.match(name)
        key = (layer[0] if layer else "", id(tensor))
        if key not in made:
            value = fitted(name, tensor) if origin is None else tensor.detach().clone()
            made[key] = nn.Parameter(value) if isinstance(tensor, nn.Parameter) else value
        state[name] = made[key]
    try:
        new.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise UserError(
            f"The tensors of this {type(old).__name__} do not fit a deeper one: {reason(error)}."
        ) from error
    for name, parameter in new.named_parameters():
        if (origin := places[name]) is not None:
            parameter.requires_grad_(source[origin].requires_grad)
    for name, buffer in new.named_buffers():
        if name not in state:  # computed by the constructor, which knows each layer's place
            buffer.data = fitted(name, buffer)
