"""Read a Hugging Face checkpoint folder with every tensor accounted for.

Special about this module: it trusts nothing. Weights are read from safetensors only (never
unpickled), code from the folder is never run, the network is never asked, and a tensor that is
missing, left over or of another shape stops the work by its name.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import PretrainedConfig, PreTrainedModel

from stackbert.errors import UserError
from stackbert.growth.layers import takes_pooler_switch
from stackbert.growth.source import (
    Contents,
    check_size,
    contents,
    load_config,
    read_config,
    reason,
    weight_files,
)

_FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}


@dataclass(frozen=True)
class Checkpoint:
    """A folder whose config, class and weight files have been looked at, but not yet loaded.

    Attributes:
        folder: the folder.
        model_class: the transformers class that its config names.
        config: its config.
        dtype: the dtype its weights are stored in.
    """

    folder: Path
    model_class: type[PreTrainedModel]
    config: PretrainedConfig
    dtype: torch.dtype


def inspect_checkpoint(folder: Path) -> Checkpoint:
    """Look at a checkpoint folder, reading no weights.

    Args:
        folder: a folder with `config.json` and safetensors weights, in one file or in shards.

    Returns:
        What `load_checkpoint` needs.

    Raises:
        UserError: it is no such folder, is damaged, or needs code that transformers lacks.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a folder. Give the path of a checkpoint folder; names on the "
            "Hugging Face Hub are not looked up (download the model first)."
        )
    model_class = _model_class(read_config(folder), folder)
    found = contents(weight_files(folder))
    dtype = _stored_dtype(found)
    config = load_config(model_class, folder)
    check_size(model_class, config, folder, found)
    return Checkpoint(folder, model_class, config, dtype)


def _model_class(fields: dict[str, Any], source: Path) -> type[PreTrainedModel]:
    path = source / "config.json"
    architectures = fields.get("architectures")
    if not (isinstance(architectures, list) and architectures):
        raise UserError(
            f"{path} names no architecture. Add the model's class, for example "
            '"architectures": ["BertForMaskedLM"].'
        )
    name = architectures[0]
    found = getattr(transformers, name, None) if isinstance(name, str) else None
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise UserError(
            f"{path} names the architecture '{name}', which transformers "
            f"{transformers.__version__} does not have."
        )
    return found


def _stored_dtype(found: Contents) -> torch.dtype:
    """The dtype of the weights on disk, which may not be what the config says.

    Mixed ones are loaded in the narrowest dtype that holds them all without loss.
    """
    dtype: torch.dtype | None = None
    for name in sorted(found.dtypes & _FLOATS.keys()):
        dtype = _FLOATS[name] if dtype is None else torch.promote_types(dtype, _FLOATS[name])
    if dtype is None:
        raise UserError(
            f"{found.files[0]} holds no tensors of {', '.join(sorted(_FLOATS))}; growth needs "
            "plain weights."
        )
    return dtype


def load_checkpoint(checkpoint: Checkpoint) -> PreTrainedModel:
    """Load a checkpoint's model, in evaluation mode and in the dtype its weights are stored in.

    A checkpoint may hold both pre-training heads while its config names one (bert-base-uncased:
    BertForMaskedLM, with the pooler and the next-sentence head in the file). Then the class with
    both takes the place of the named one, and nothing is lost. An encoder cut out of a masked LM
    has no pooler, though its config's class has one by default; then it stays without.

    Args:
        checkpoint: what `inspect_checkpoint` returned.

    Returns:
        The model, every one of its tensors from the folder and every one of the folder's in it
        (older files' position_ids, which models now compute, aside).

    Raises:
        UserError: tensors are missing, left over or of another shape (each is named), or
            transformers cannot load the folder.
    """
    named = checkpoint.model_class
    model, problem = _try_load(checkpoint, named)
    if problem is None:
        return model
    for other, options in _relatives(named):
        model, other_problem = _try_load(checkpoint, other, **options)
        if other_problem is None:
            return model
    raise UserError(
        f"The weights in {checkpoint.folder} do not fit {named.__name__}, which its config.json "
        f"names: {problem}. Correct 'architectures' there, or the weights."
    )


def _relatives(named: type[PreTrainedModel]) -> list[tuple[type[PreTrainedModel], dict[str, Any]]]:
    """Other ways to build it, one of which may have a place for every tensor."""
    relatives: list[tuple[type[PreTrainedModel], dict[str, Any]]] = []
    if takes_pooler_switch(named):
        relatives.append((named, {"add_pooling_layer": False}))
    family = named.__name__.split("For")[0].removesuffix("Model")
    both = getattr(transformers, f"{family}ForPreTraining", None)
    if both is not None and both is not named:
        relatives.append((both, {}))
    return relatives


def _try_load(
    checkpoint: Checkpoint,
    model_class: type[PreTrainedModel],
    **options: Any,  # noqa: ANN401 (arguments of the model's constructor)
) -> tuple[PreTrainedModel, str | None]:
    loader: Any = model_class
    source = checkpoint.folder
    try:
        with quiet_transformers():
            model, info = loader.from_pretrained(
                str(source),
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=checkpoint.dtype,
                output_loading_info=True,
                # Mismatches are reported below by name instead of by a traceback.
                ignore_mismatched_sizes=True,
                **options,
            )
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise UserError(
            f"transformers cannot load {source} as {model_class.__name__}: {reason(error)}."
        ) from error
    missing = sorted(info["missing_keys"])
    unexpected = sorted(k for k in info["unexpected_keys"] if not k.endswith("position_ids"))
    mismatched = sorted(str(entry[0]) for entry in info["mismatched_keys"])
    parts = [
        f"{what} {_some(names)}"
        for what, names in (
            ("missing are", missing),
            ("without a place are", unexpected),
            ("of another shape are", mismatched),
        )
        if names
    ]
    errors = info.get("error_msgs") or []
    parts += [str(message) for message in errors]
    return model, "; ".join(parts) or None


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence reports and bars: what they would say of a fault becomes an error of ours."""
    logging: Any = transformers.logging
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
