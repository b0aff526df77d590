"""A Hugging Face folder, looked at before transformers opens it.

transformers obeys more of a config.json than a stranger should be able to say: which file holds the
weights (it may be a pickle), whose code computes the attention (it is fetched), how large the model
is (it is made, whatever that takes). Here such a folder is refused.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig, PreTrainedModel

from stackbert.errors import UserError
from stackbert.files import is_plain_name
from stackbert.stored import parse_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_ATTENTION = ("attn_implementation", "_attn_implementation", "experts_implementation")
_IN_TRANSFORMERS = (None, "eager", "sdpa", "flex_attention", "grouped_mm", "batched_mm")
_MOST_BUFFERS = 1 << 30
"""Values that a model keeps beside its parameters; the largest of today's keep some millions."""


@dataclass(frozen=True)
class Contents:
    """What the headers of weight files say.

    Attributes:
        files: the files.
        dtypes: of the tensors, in safetensors' words ("F32").
        tensors: how many there are.
        values: of all of them.
    """

    files: tuple[Path, ...]
    dtypes: frozenset[str]
    tensors: int
    values: int


def read_config(source: Path) -> dict[str, Any]:
    """A folder's config.json, if it asks for nothing but a model of transformers.

    Raises:
        UserError: there is none, it is damaged, or it asks for more.
    """
    path = source / "config.json"
    if not path.is_file():
        raise UserError(f"{source} has no config.json, so it is not a Hugging Face checkpoint.")
    try:
        fields = parse_json(path.read_bytes())
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise UserError(f"{path} holds no JSON object.")
    _refuse_requests(fields, path)
    if (source / "adapter_config.json").exists():
        raise UserError(
            f"{source} holds an adapter (adapter_config.json). Merge it into its model and save "
            "that first."
        )
    return fields


def _refuse_requests(fields: dict[str, Any], path: Path) -> None:
    parts: list[Any] = [fields]
    while parts:
        part = parts.pop()
        parts += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        if not isinstance(part, dict):
            continue
        if part.get("auto_map") is not None:
            raise UserError(
                f"{path} asks for code of its own (auto_map). StackBERT never runs code from a "
                "checkpoint; only the architectures of transformers can be opened."
            )
        if part.get("quantization_config") is not None:
            raise UserError(f"{path} says that the weights are quantised; plain ones are needed.")
        for name in ("transformers_weights", "use_pretrained_backbone"):
            if part.get(name):
                raise UserError(
                    f"{path} asks for weights from elsewhere ({name}). Remove the field: the "
                    f"weights are those of {SINGLE} or {INDEX}."
                )
        for name in _ATTENTION:
            if part.get(name) not in _IN_TRANSFORMERS:
                raise UserError(
                    f"{path} asks for code of others ({name}: {part[name]}), which may be fetched. "
                    "Remove the field; transformers then takes its own."
                )


def weight_files(source: Path) -> tuple[Path, ...]:
    """The safetensors files with a folder's weights.

    Raises:
        UserError: there are none, or their index is damaged or names files elsewhere.
    """
    if (source / SINGLE).is_file():
        return (source / SINGLE,)
    index = source / INDEX
    if index.is_file():
        return tuple(source / name for name in _indexed(index))
    pickled = sorted(path.name for path in source.glob("*.bin"))
    if pickled:
        raise UserError(
            f"{source} holds its weights only as {', '.join(pickled)}: pickle, which can run code "
            "when it is read. Save the model again with transformers (safetensors) first."
        )
    raise UserError(f"{source} has no weights: neither {SINGLE} nor {INDEX}.")


def _indexed(index: Path) -> list[str]:
    try:
        content = parse_json(index.read_bytes())
        names: set[Any] = set(content["weight_map"].values())
        if not (names and isinstance(content["metadata"], dict)):
            raise ValueError("it names no file or has no metadata")
        for name in names:
            if not (isinstance(name, str) and is_plain_name(name)):
                raise ValueError(f"{name!r} is no file of this folder")
            if not name.endswith(".safetensors"):
                raise ValueError(f"{name!r} is not in safetensors format")
    except (ValueError, KeyError, AttributeError, TypeError, OSError) as error:
        raise UserError(f"{index} is damaged: {reason(error)}.") from error
    missing = sorted(name for name in names if not (index.parent / name).is_file())
    if missing:
        raise UserError(f"{index.parent} lacks the weight files {', '.join(missing)} of its index.")
    return sorted(names)


def contents(files: tuple[Path, ...]) -> Contents:
    """What the files' headers say; no weights are read.

    Raises:
        UserError: a file is damaged.
    """
    dtypes: set[str] = set()
    tensors = values = 0
    for path in files:
        try:
            with safe_open(str(path), framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (a safetensors file is not iterable)
                    tensor = file.get_slice(name)
                    dtypes.add(tensor.get_dtype())
                    tensors += 1
                    values += torch.Size(tensor.get_shape()).numel()
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{path} is damaged ({error}). Download or save the checkpoint again."
            ) from error
    return Contents(files, frozenset(dtypes), tensors, values)


def load_config(model_class: type[PreTrainedModel], source: Path) -> PretrainedConfig:
    """The config of a folder whose config.json `read_config` has let through.

    Raises:
        UserError: the class refuses it.
    """
    config_class: Any = model_class.config_class
    try:
        config: PretrainedConfig = config_class.from_pretrained(str(source), local_files_only=True)
    except Exception as error:
        # Config classes check their fields each in its own way; the user needs the reason.
        raise _no_fit(source, model_class, reason(error)) from error
    return config


def check_size(
    model_class: type[PreTrainedModel], config: PretrainedConfig, source: Path, found: Contents
) -> None:
    """See that a config describes a model of about the size that is stored.

    transformers makes the model first and looks at the file then; a config that is damaged could
    have it take all of the machine's memory, or make layers for hours.

    Raises:
        UserError: it describes a larger one, or none.
    """
    for name, value in config.to_dict().items():
        if "layer" in name and isinstance(value, int) and value > found.tensors:
            raise _no_fit(
                source, model_class, f"{name} is {value}, with {found.tensors:,} tensors stored"
            )
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = model_class(copy.deepcopy(config))
    except Exception as error:
        # Model classes, likewise; this one has no memory yet.
        raise _no_fit(source, model_class, reason(error)) from error
    wanted = sum(parameter.numel() for parameter in model.parameters())
    beside = sum(buffer.numel() for buffer in model.buffers())
    # A model may lack a head in the file, or a half of its weights that is tied to the other.
    if wanted > 4 * found.values + (1 << 20) or beside > _MOST_BUFFERS:
        raise _no_fit(
            source, model_class, f"it describes {wanted:,} values, with {found.values:,} stored"
        )


def _no_fit(source: Path, model_class: type[PreTrainedModel], why: str) -> UserError:
    return UserError(f"{source / 'config.json'} does not fit {model_class.__name__}: {why}.")


def reason(error: Exception) -> str:
    """What an error of a library says; with its class where that alone says nothing."""
    text = str(error).strip().rstrip(".")
    plain = isinstance(error, ValueError | OSError | RuntimeError) and " " in text
    return text if plain else f"{type(error).__name__}: {text}"
