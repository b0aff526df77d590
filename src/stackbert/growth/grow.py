"""Carry a depth map out on a transformers model: every tensor lands by its name, bit for bit."""

import contextlib
import copy
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.modeling_utils import local_torch_dtype

from stackbert.errors import UserError
from stackbert.files import reason
from stackbert.growth.operators import NOISE_SIGMA, DepthMap, Operator, Origin, get_operator
from stackbert.model_files import seeded

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
# Of post-norm layers, the norms after those projections.
_NORMS_AFTER = (
    ("attention.output.LayerNorm", "output.LayerNorm"),  # bert, roberta, electra, deberta
    ("sa_layer_norm", "output_layer_norm"),  # distilbert
)
_COPY_INSTEAD = "Use an operator that copies layers as they are (stack, interleave)."


@dataclass(frozen=True)
class Growth:
    """A grown model and where its parts come from."""

    model: PreTrainedModel
    depth_map: DepthMap
    origins: Mapping[str, str | None]
    """Of each parameter of the model, by name: the source's parameter that it copies bit for bit;
    None for a fresh or changed one."""


OneOrMore = TypeVar("OneOrMore", bound=Optimizer | Sequence[Optimizer])
OptimizerState = Literal["reset", "copy", "split"]


@overload
def grow(
    model: PreTrainedModel, depth: int, operator: str | Operator = "stack", *, seed: int = 0
) -> PreTrainedModel: ...


@overload
def grow(
    model: PreTrainedModel,
    depth: int,
    operator: str | Operator = "stack",
    *,
    seed: int = 0,
    optimizer: OneOrMore,
    optimizer_state: OptimizerState = "copy",
) -> tuple[PreTrainedModel, OneOrMore]: ...


def grow(
    model: PreTrainedModel,
    depth: int,
    operator: str | Operator = "stack",
    *,
    seed: int = 0,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    optimizer_state: OptimizerState = "copy",
) -> PreTrainedModel | tuple[PreTrainedModel, Optimizer | Sequence[Optimizer]]:
    """Make a deeper model out of a trained one.

    Args:
        model: any transformers model with one list of layers; left as it is.
        depth: layers of the new model.
        operator: an `Operator` or the name of one. The default is the paper's (Gong et al. 2019,
            section 3), which repeats the trained layers: new[j] = old[j mod L].
        seed: of fresh layers and noise, which are a pure function of (seed, config, depths), the
            same on every device. The global random state is not touched.
        optimizer: one of torch, or several, over the model's parameters; changed to hold the new
            model's, so that schedulers and wrappers stay valid. The old model has none any more.
        optimizer_state: of that optimizer, as `grow_optimizer_state` takes it.

    Returns:
        A model of the same class, device, dtype, attention implementation and training mode.
        Whatever is copied equals its source bit for bit; two parameters share storage only where
        they do in `model` (tied embeddings). It is in memory once. With `optimizer`, both.

    Raises:
        UserError: the operator cannot reach `depth`, or the architecture cannot be grown.
    """
    growth = grow_with_origins(model, depth, operator, seed=seed)
    if optimizer is None:
        return growth.model
    for each in [optimizer] if isinstance(optimizer, Optimizer) else optimizer:
        move_optimizer(each, model, growth, optimizer_state)
    return growth.model, optimizer


def grow_with_origins(
    model: PreTrainedModel, depth: int, operator: str | Operator = "stack", *, seed: int = 0
) -> Growth:
    """Do as `grow`, and tell where each parameter comes from."""
    stack, layers = find_layers(model)
    depth_map = get_operator(operator).depth_map(len(layers), depth)
    for name, parameter in model.named_parameters():
        if parameter.is_meta or not parameter.is_floating_point():
            raise UserError(
                f"'{name}' is {parameter.dtype} on the device '{parameter.device}'. Growth needs "
                "plain floating-point weights in memory, without quantisation or off-loading."
            )
    new = _build(model, grown_config(model.config, depth_map))
    find_layers(new)  # refuses a class whose layers do not follow its config

    # Copying a whole mapping keeps two names on one tensor exactly where the old model has that.
    # Config and constructor do not tell: transformers loads a checkpoint that holds different
    # tensors for a tied pair untied.
    old = model.state_dict(keep_vars=True)
    state = copy.deepcopy({n: t for n, t in old.items() if not n.startswith(f"{stack}.")})
    origins: dict[str, str | None] = {name: name for name in state}
    top = layers[-1].state_dict(keep_vars=True)
    first = next(iter(top.values()))
    with torch.no_grad(), seeded(seed):
        for place, origin in enumerate(depth_map):
            here, layer = f"{stack}.{place}.", new.get_submodule(f"{stack}.{place}")
            kept, fresh = _make_layer(layer, origin, layers, new._init_weights)
            origins |= {here + name: f"{stack}.{origin.source}.{name}" for name in kept}
            origins |= {here + name: None for name in fresh}
            state |= {here + name: tensor for name, tensor in copy.deepcopy(kept).items()}
            for name, tensor in fresh.items():
                state[here + name] = tensor.to(first.device, top.get(name, first).dtype)
            if origin.outputs == "zeroed" and place > 0:
                _pass_on(f"{stack}.{place - 1}.", here, layer, state, origins)
    try:
        # What has no place is sent there all the same: strict loading names it.
        new.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise UserError(
            f"The tensors of this {type(model).__name__} do not fit a deeper one: {reason(error)}."
        ) from error
    origins = {name: origins[name] for name, _ in new.named_parameters()}
    for name, source in origins.items():
        if source is not None:
            new.get_parameter(name).requires_grad_(old[source].requires_grad)
    buffers = dict(model.named_buffers())
    for name, buffer in new.named_buffers():
        if name not in state:  # computed by the constructor
            buffer.data = buffer.to(first.device, buffers.get(name, buffer).dtype)
    new.train(model.training)
    if getattr(model, "generation_config", None) is not None:
        new.generation_config = copy.deepcopy(model.generation_config)
    return Growth(new, depth_map, origins)


def grow_optimizer_state(
    state: Mapping[str, Mapping[str, Tensor]],
    growth: Growth,
    policy: OptimizerState,
) -> dict[str, dict[str, Tensor]]:
    """Map an optimizer's state onto the grown model's parameters, by name.

    Args:
        state: for each parameter name of the source model the tensors that the optimizer keeps.
        growth: what `grow_with_origins` returned.
        policy: "reset" starts every moment anew (Gong et al. 2019, section 3); "copy" gives each
            parameter tensors equal to those of the one it copies (Shen et al., Staged Training,
            ICML 2022); "split" gives them to the lowest of its copies alone (arXiv 2609.19107).
            What is fresh or changed starts anew.
    """
    if policy == "reset":
        return {}
    grown, taken = {}, set()
    for name, origin in growth.origins.items():
        if origin is None or origin not in state or (policy == "split" and origin in taken):
            continue
        grown[name] = copy.deepcopy(dict(state[origin]))
        taken.add(origin)
    return grown


def move_optimizer(
    optimizer: Optimizer,
    model: PreTrainedModel,
    growth: Growth,
    policy: OptimizerState = "copy",
) -> None:
    """Let an optimizer of torch over `model` hold the grown model's parameters, state by name.

    A copied parameter joins its source's group, any other one that of the top layer's by its name.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups, groups_by_size = dict[str, Any](), dict[int, Any]()
    for group in optimizer.param_groups:
        own = [parameter for parameter in group["params"] if parameter in names]
        groups |= {names[parameter]: group for parameter in own}
        groups_by_size |= {parameter.ndim: group for parameter in own}
        group["params"] = [each for each in group["params"] if each not in names]
        group.pop("param_names", None)
    held = {p: optimizer.state.pop(p) for p in names if p in optimizer.state}
    state = grow_optimizer_state({names[p]: each for p, each in held.items()}, growth, policy)
    stack, layers = find_layers(model)
    for name, parameter in growth.model.named_parameters():
        place = re.sub(rf"^{re.escape(stack)}\.\d+\.", f"{stack}.{len(layers) - 1}.", name)
        source = growth.origins[name] or place
        joined = groups.get(source)
        if source not in names.values():  # ModernBERT's first layer, alone, lacks a norm
            joined = groups_by_size.get(parameter.ndim)
        if joined is not None:
            joined["params"].append(parameter)
        if name in state:
            optimizer.state[parameter] = state[name]


def find_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Find a model's list of layers and its dotted name (`bert.encoder.layer`, `model.layers`, …).

    Raises:
        UserError: it is not a transformers model, or does not have exactly one list of layers
            (ALBERT, encoder-decoder and composite models do not).
    """
    if not isinstance(model, PreTrainedModel):
        raise UserError(
            f"Growth takes a transformers model, not a {type(model).__name__}. Pass the model "
            "itself, without the wrapper of torch.compile or DistributedDataParallel."
        )
    depth = getattr(model.config, "num_hidden_layers", None)  # whatever this type calls it
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == depth
        and next(module.parameters(), None) is not None
        # Inside a layer, experts or heads may happen to be as many as the layers.
        and not any(part.isdigit() for part in name.split("."))
    ]
    if model.config.is_encoder_decoder or len(found) != 1:
        names = ", ".join(name for name, _ in found)
        raise UserError(
            f"Growth needs exactly one list of layers, each with weights of its own; it finds "
            f"{names or 'none'} of {depth} layers in this {type(model).__name__}."
        )
    return found[0]


def grown_config(config: PretrainedConfig, depth_map: DepthMap) -> PretrainedConfig:
    """Depth and per-layer lists (`layer_types`) follow the depth map.

    A copied layer keeps its source's entry; a fresh one takes the class's default at its place.
    """
    depth, target = config.num_hidden_layers, len(depth_map)
    grown = copy.deepcopy(config)
    grown.num_hidden_layers = target
    lists, defaults = _lists(grown), {}
    # A list's length alone proves nothing: three end-of-text ids may meet three layers. Proof is
    # that the class, asked for another depth, makes the list follow.
    fields = {k: v for k, v in grown.to_dict().items() if len(lists.get(k, ())) != depth}
    with contextlib.suppress(Exception):  # of a class that has no defaults for the open fields
        defaults = _lists(type(config).from_dict(fields))
    for name, old in lists.items():
        default = defaults.get(name, ())
        if len(old) == depth and len(default) == target:
            entries = [
                default[place] if origin.source is None else old[origin.source]
                for place, origin in enumerate(depth_map)
            ]
            setattr(grown, name, type(old)(entries))
        elif re.search("layer|block", name):
            raise UserError(
                f"The config's '{name}' speaks of single layers ({list(old)}), and nothing says "
                "what it would be after growth. Such a model cannot be grown."
            )
    return grown


def _lists(config: PretrainedConfig) -> dict[str, Any]:
    fields = {name: value for name, value in vars(config).items() if not name.startswith("_")}
    return {n: value for n, value in fields.items() if isinstance(value, list | tuple) and value}


def _build(model: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    """The target without any initialisation: memory that costs nothing until it is written to."""
    # The meta device would leave non-persistent buffers (rotary frequencies) without values.
    plain: Any = local_torch_dtype(torch.float32)
    takes_switch = "add_pooling_layer" in inspect.signature(type(model).__init__).parameters
    without_pooler = takes_switch and getattr(model, "pooler", None) is None
    options = {"add_pooling_layer": False} if without_pooler else {}
    try:
        with plain, no_init_weights(), torch.device("cpu"), torch.random.fork_rng(devices=[]):
            return type(model)(config, **options)
    except Exception as error:  # constructors raise whatever they like
        what = f"A deeper {type(model).__name__} cannot be built"
        raise UserError(f"{what}: {reason(error)}.") from error


def _make_layer(
    layer: nn.Module, origin: Origin, layers: nn.ModuleList, initialise: Callable[[nn.Module], Any]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Initialise what is fresh in a new layer; tensors that it copies, and fresh ones, by name."""
    changed = () if origin.outputs == "kept" else output_projections(layer)
    # ModernBERT's first layer has no norm before attention (the embeddings end in one), so a higher
    # layer that is copied there loses its own.
    absent = [name for name, module in layer.named_modules() if isinstance(module, nn.Identity)]
    lost = {*changed, *absent}
    old = {} if origin.source is None else layers[origin.source].state_dict(keep_vars=True)
    kept = {n: t for n, t in old.items() if n.rpartition(".")[0] not in lost}
    fresh = {n: t for n, t in layer.state_dict(keep_vars=True).items() if n not in kept}
    parameters = {n: t for n, t in fresh.items() if isinstance(t, nn.Parameter)}
    for parameter in parameters.values():
        parameter.fill_(torch.nan)  # shows below whether the initialisation reaches it
    if origin.source is None:
        layer.apply(initialise)
    else:
        for name in sorted({name.rpartition(".")[0] for name in parameters}):
            initialise(layer.get_submodule(name))
    for name in changed:
        for kind, parameter in layer.get_submodule(name).named_parameters():
            parameter.zero_()
            if origin.outputs == "noised" and kind == "weight":
                parameter.normal_(0.0, NOISE_SIGMA)
    for name, parameter in parameters.items():
        if parameter.sum().isnan():  # nine times as fast as isnan().any()
            raise UserError(f"{type(layer).__name__} does not initialise '{name}'. {_COPY_INSTEAD}")
    return kept, fresh


def _pass_on(
    below: str,
    here: str,
    layer: nn.Module,
    state: dict[str, Tensor],
    origins: dict[str, str | None],
) -> None:
    """Let a silent post-norm layer end in the norm of the layer below, and make those before plain.

    Then it changes nothing: what is normalised stays the same when it is normalised once more.
    """
    parts = {name for name, _ in layer.named_modules()}
    for middle, end in (norms for norms in _NORMS_AFTER if parts.issuperset(norms)):
        for kind, plain in (("weight", 1.0), ("bias", 0.0)):
            moved, source = f"{here}{end}.{kind}", f"{below}{end}.{kind}"
            state[moved], origins[moved] = state[source], origins[source]
            for name in (source, f"{here}{middle}.{kind}"):
                values = torch.full_like(state[moved], plain)
                state[name] = nn.Parameter(values, state[moved].requires_grad)
                origins[name] = None


def output_projections(layer: nn.Module) -> tuple[str, str]:
    """Names, within a layer, of the two projections onto the residual stream."""
    modules = dict(layer.named_modules())
    known = [pair for pair in _OUTPUT_PROJECTIONS if modules.keys() >= set(pair)]
    # A layer with cross-attention has a third projection.
    if len(known) != 1 or any("cross" in name for name in modules):
        raise UserError(
            f"{type(layer).__name__} has no output projections known by name. {_COPY_INSTEAD}"
        )
    return known[0]
