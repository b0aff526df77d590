"""What growth has to know of a transformers model: where its layers are and what names them.

Special about this module: it reads the model and its config rather than keeping a table of
architectures, and says no in a sentence where reading is not enough. Only two things are lists
kept by hand: the names of output projections and the pre-norm types.
"""

import copy
import inspect
import re
from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from stackbert.errors import UserError
from stackbert.growth.operators import DepthMap

# (projection that ends attention, projection that ends the feed-forward part), within a layer.
_OUTPUT_LAYOUTS = (
    ("attention.output.dense", "output.dense"),  # bert, roberta, prelayernorm, megatron, electra
    ("attn.Wo", "mlp.Wo"),  # modernbert
    ("attn.c_proj", "mlp.c_proj"),  # gpt2
    ("attn.attention.out_proj", "mlp.c_proj"),  # gpt-neo
    ("self_attn.o_proj", "mlp.down_proj"),  # llama, mistral, qwen, gemma, eurobert
    ("attention.dense", "mlp.dense_4h_to_h"),  # gpt-neox
    ("self_attn.out_proj", "fc2"),  # opt
    ("attention.out_lin", "ffn.lin2"),  # distilbert
)

# Types whose every residual branch ends in an output projection that is added to the stream
# unchanged, so that zero projections make the layer pass its input on exactly.
_PRE_NORM_TYPES = frozenset(
    {
        "roberta-prelayernorm",
        "megatron-bert",
        "modernbert",
        "modernbert-decoder",
        "eurobert",
        "gpt2",
        "gpt_neo",
        "gpt_neox",
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma",
        "gemma2",
        "gemma3_text",
        "smollm3",
    }
)

# Per-layer lists that a class does not derive from the depth by itself (see `_per_layer_keys`).
_PER_LAYER_NAME = re.compile(r"layer|block")
_LAYER_NUMBERS_NAME = re.compile(r"(layers?|blocks?)$|(layer|block|attn|mlp|moe).*_(id|ind)\w*$")


def is_pre_norm(config: PretrainedConfig) -> bool:
    """Whether layers of this type normalise before each branch and leave the stream itself alone.

    Args:
        config: a model's config; its `model_type` decides.

    Returns:
        True for the types known to be pre-norm; False for post-norm and for unknown types, of
        which nothing is claimed.
    """
    if config.model_type == "opt":
        return bool(getattr(config, "do_layer_norm_before", True))
    return config.model_type in _PRE_NORM_TYPES


def depth_key(config: PretrainedConfig) -> str:
    """The config's own name for its number of layers: `num_hidden_layers`, `n_layer`, …

    Raises:
        UserError: the config has no single number of layers (encoder-decoder, composite models).
    """
    if config.is_encoder_decoder:
        raise UserError(
            f"'{config.model_type}' is an encoder-decoder model with two stacks of layers; "
            "growth works on models with one."
        )
    key: str = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    if not isinstance(getattr(config, key, None), int):
        raise UserError(
            f"The config of '{config.model_type}' gives no number of layers (num_hidden_layers); "
            "growth works on models with one stack of layers, not on composite ones."
        )
    return key


def takes_pooler_switch(model_class: type[PreTrainedModel]) -> bool:
    """Whether the class can be built without its pooler (BertModel inside BertForMaskedLM is)."""
    return "add_pooling_layer" in inspect.signature(model_class.__init__).parameters


def find_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Find a model's stack of layers, with or without a head on it.

    Args:
        model: any transformers model with one stack.

    Returns:
        The stack's dotted name (`bert.encoder.layer`, `model.layers`, `transformer.h`, …) and the
        `ModuleList` itself, as long as the config's depth.

    Raises:
        UserError: the layers share their weights (ALBERT), there are two stacks, or no or more
            than one list of modules is as long as the config's depth.
    """
    config = model.config
    depth = getattr(config, depth_key(config))
    kind = f"{type(model).__name__} ('{config.model_type}')"
    if hasattr(config, "num_hidden_groups"):
        raise UserError(
            f"{kind} shares one layer's weights among all its depth, so there is nothing to stack. "
            "Choose a model with separate layers, such as bert."
        )
    if getattr(config, "is_heterogeneous", False):
        raise UserError(
            f"{kind} gives single layers a config of their own (per_layer_config); growth does not "
            "know how such a config goes on."
        )
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == depth
        and all(any(True for _ in layer.parameters()) for layer in module)
    ]
    # A list inside a layer (experts, heads) may happen to be as long as the model is deep.
    outermost = [
        (name, module)
        for name, module in found
        if not any(name.startswith(f"{other}.") for other, _ in found)
    ]
    if len(outermost) != 1:
        names = ", ".join(name for name, _ in outermost) or "none"
        raise UserError(
            f"Growth looks for the one list of {depth} layers in {kind}; candidates: {names}. "
            "This architecture cannot be grown."
        )
    return outermost[0]


def output_projections(layer: nn.Module, model_type: str) -> tuple[str, str]:
    """Names, within a layer, of the modules whose outputs are added to the residual stream.

    Args:
        layer: one element of the stack.
        model_type: for the sentence of the error.

    Returns:
        Dotted names of attention's and of the feed-forward part's output projection.

    Raises:
        UserError: the layer has a layout not known here, or a third branch (cross-attention).
    """
    modules = dict(layer.named_modules())
    known = [
        names
        for names in _OUTPUT_LAYOUTS
        if all(hasattr(modules.get(name), "weight") for name in names)
    ]
    if len(known) != 1 or any("cross" in name for name in modules):
        raise UserError(
            f"The layers of '{model_type}' have no output projections known by name, which the "
            "identity operators set to zero. Use stack, interleave or random."
        )
    return known[0]


def grown_config(config: PretrainedConfig, depth_map: DepthMap) -> PretrainedConfig:
    """Copy a config and let its depth and per-layer lists follow a depth map.

    Args:
        config: the source model's config; left as it is.
        depth_map: one origin for each layer of the new model.

    Returns:
        A deep copy with the new depth. Each per-layer list (ModernBERT's `layer_types`) takes for
        a copied layer the source layer's entry, and for a fresh one what the class's default
        pattern has at that place.

    Raises:
        UserError: a list names layers by number, a fresh layer's entry is open, or the config
            class does not accept the result.
    """
    key = depth_key(config)
    depth = getattr(config, key)
    lists = _per_layer_keys(config, len(depth_map))
    _refuse_layer_numbers(config, set(lists))
    grown = copy.deepcopy(config)
    setattr(grown, key, len(depth_map))
    for name, default in lists.items():
        old = getattr(config, name)
        if default is None and len(set(map(repr, old))) == 1:
            default = [old[0]] * len(depth_map)
        entries = []
        for place, origin in enumerate(depth_map):
            if origin.source is None and default is None:
                raise UserError(
                    f"The config's per-layer list '{name}' has no entry for the fresh layer "
                    f"{place}. Use an operator that copies layers (stack, interleave)."
                )
            if origin.source is not None:
                entries.append(copy.deepcopy(old[origin.source]))
            elif default is not None:
                entries.append(copy.deepcopy(default[place]))
        setattr(grown, name, type(old)(entries))
    _check_config(grown, key, lists, depth)
    return grown


def _per_layer_keys(config: PretrainedConfig, target: int) -> dict[str, list[Any] | None]:
    """Per-layer lists of a config, each with the class's default for `target` layers or None.

    A list's length alone proves nothing (`architectures` has length 1, three end-of-text ids may
    meet three layers). Proof is that the class, asked for another depth, makes the list follow;
    lists that a class only passes through go by their name.
    """
    depth = getattr(config, depth_key(config))
    candidates = {
        name
        for name, value in vars(config).items()
        if isinstance(value, list | tuple) and len(value) == depth and not name.startswith("_")
    }
    defaults = _default_lists(config, candidates, target)
    # A second depth, so that a default which happens to be `target` long is not taken for proof.
    control = _default_lists(config, candidates, target + 1)
    result: dict[str, list[Any] | None] = {}
    for name in sorted(candidates):
        derived = len(defaults.get(name, ())) == target and len(control.get(name, ())) == target + 1
        if derived:
            result[name] = defaults[name]
        elif _PER_LAYER_NAME.search(name) and not _are_numbers(getattr(config, name)):
            result[name] = None
    return result


def _default_lists(
    config: PretrainedConfig, names: Iterable[str], depth: int
) -> dict[str, list[Any]]:
    """What the config class fills in for `names` when they are left open at `depth` layers."""
    fields = {name: value for name, value in config.to_dict().items() if name not in set(names)}
    fields[depth_key(config)] = depth
    try:
        fresh = type(config).from_dict(fields)
    except Exception:
        # Any class may reject the open fields in its own way; then it has no default to offer.
        return {}
    values = {name: getattr(fresh, name, None) for name in names}
    return {name: list(value) for name, value in values.items() if isinstance(value, list | tuple)}


def _are_numbers(values: Iterable[Any]) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) for value in values)


def _refuse_layer_numbers(config: PretrainedConfig, per_layer: set[str]) -> None:
    for name, value in vars(config).items():
        if (
            isinstance(value, list | tuple)
            and value
            and name not in per_layer
            and not name.startswith("_")
            and _LAYER_NUMBERS_NAME.search(name)
            and _are_numbers(value)
        ):
            raise UserError(
                f"The config's '{name}' names layers by number ({list(value)}), and after growth "
                "these numbers would mean other layers. This config cannot be grown."
            )


def _check_config(
    config: PretrainedConfig, key: str, lists: Iterable[str], source_depth: int
) -> None:
    """Make sure that the config survives being written and read, as it will be on disk."""
    try:
        read = type(config).from_dict(config.to_dict())
        same = all(getattr(read, name) == getattr(config, name) for name in (key, *lists))
    except Exception as error:
        # Config classes raise whatever they like; the user needs the reason in one sentence.
        raise UserError(
            f"The config of '{config.model_type}' cannot go from {source_depth} layers to "
            f"{getattr(config, key)}: {error}"
        ) from error
    if not same:
        raise UserError(
            f"The config of '{config.model_type}' does not keep its depth of "
            f"{getattr(config, key)} and its per-layer lists when written and read again."
        )
