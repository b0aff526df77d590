"""Grow the model in one Hugging Face folder into another folder."""

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedModel

from stackbert.errors import UserError
from stackbert.files import new_folder, reading, writing
from stackbert.growth.grow import depth_key, grow
from stackbert.growth.operators import Operator, get_operator
from stackbert.model_files import open_model, save_model, stored_class

# Weights in any format, and code.
_NOT_COPIED = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".ot", ".onnx", ".gguf"),
    *(".npz", ".pkl", ".index.json", ".py"),
)
# Written anew, or about the source and not about the grown model.
_OWN = {"config.json", "generation_config.json", "README.md", "state.json", "trainer_state.json"}
_LARGEST_COPIED = 256 * 2**20  # tokenizers of large vocabularies take tens of megabytes

_CARD = """---
library_name: transformers
tags: [stackbert, progressive-stacking]
---

# {name}

A `{model_class}` of {depth} layers, grown by StackBERT from one of {source_depth} layers
(`{source}`) with the operator `{operator}`. It has not been trained since: train it before you use
it. What is known of the source (its text, licence, results) is in the source's own card.
"""


@dataclass(frozen=True)
class FolderGrowth:
    """What `grow_folder` did."""

    model_class: str
    operator: str
    source_depth: int
    depth: int
    parameters: int  # of the grown model, tied ones counted once
    copied_files: tuple[str, ...]  # the tokenizer and other small files, relative to the folder


def grow_folder(
    source: str | Path,
    destination: str | Path,
    depth: int,
    operator: str | Operator = "stack",
    seed: int = 0,
) -> FolderGrowth:
    """Grow the model of one Hugging Face folder into a new folder that `from_pretrained` opens.

    Args:
        source: a folder with `config.json` and safetensors weights, in one file or in shards.
        destination: a folder that does not exist; it appears whole or not at all.
        depth: layers of the new model, more than the source has.
        operator: an `Operator` or the name of one; "stack" is the paper's (Gong et al. 2019).
        seed: of fresh layers and noise, for operators that have any.

    Returns:
        What was done. The weights keep the dtype they are stored in; the tokenizer and other small
        files are copied; the model card says that the model is grown and untrained.

    Raises:
        UserError: the source is not such a folder, is damaged, has other tensors than its
            architecture, needs code of its own, or cannot be grown to `depth` by this operator;
            the destination exists. Nothing is left behind then.
        RunError: the disk is full.
    """
    source, destination = Path(source), Path(destination)
    if isinstance(operator, str):
        operator = get_operator(operator)
    named = stored_class(source)
    with reading(source / "config.json"):
        config = AutoConfig.from_pretrained(source, local_files_only=True)
    source_depth: int = getattr(config, depth_key(config))
    # Before a gigabyte is read: an unreachable depth is the likeliest mistake.
    operator.depth_map(source_depth, depth)
    files = _files_to_copy(source)
    with writing(f"growing {source} into {destination}"), new_folder(destination) as partial:
        grown = grow(_open_whole(source, named), depth, operator, seed=seed)
        for name in files:
            (partial / name).parent.mkdir(exist_ok=True, parents=True)
            shutil.copyfile(source / name, partial / name)
        save_model(grown, partial, tokenizer=None, sequence_length=0)
        result = FolderGrowth(
            model_class=type(grown).__name__,
            operator=operator.name,
            source_depth=source_depth,
            depth=depth,
            parameters=sum(parameter.numel() for parameter in grown.parameters()),
            copied_files=files,
        )
        card = _CARD.format(
            name=destination.name, **vars(result) | {"source": source.resolve().name}
        )
        (partial / "README.md").write_text(card, encoding="utf-8")
    return result


def _open_whole(source: Path, named: type[PreTrainedModel]) -> PreTrainedModel:
    """The folder's model in the class that has a place for each of its tensors.

    bert-base-uncased names BertForMaskedLM and holds both pre-training heads; an encoder cut out
    of a masked LM has no pooler, which its class has by default.
    """
    computed = r".*position_ids"  # stored by older versions of transformers
    try:
        return open_model(source, named, dtype=None, may_ignore=computed)
    except UserError:
        family = named.__name__.split("For")[0].removesuffix("Model")
        both = getattr(transformers, f"{family}ForPreTraining", named)
        relatives: tuple[tuple[Any, dict[str, Any]], ...] = (
            (named, {"add_pooling_layer": False}),
            (both, {}),
        )
        for relative, options in relatives:
            with contextlib.suppress(UserError):
                return open_model(source, relative, dtype=None, may_ignore=computed, **options)
        raise


def _files_to_copy(source: Path) -> tuple[str, ...]:
    """The tokenizer, other small files, and the folders of sentence-transformers (1_Pooling, …).

    Raises:
        UserError: one of them is a link that leads out of the folder.
    """
    top = [
        path
        for path in source.iterdir()
        if path.is_file()
        and not path.name.startswith(".")
        and path.name not in _OWN
        and not path.name.endswith(_NOT_COPIED)
        and path.stat().st_size <= _LARGEST_COPIED
    ]
    below = [path for path in source.glob("[0-9]_*/**/*") if path.is_file()]
    # The Hugging Face cache keeps files in a folder `blobs` next to those of the snapshots.
    homes = (source.resolve(), source.resolve().parent.parent / "blobs")
    for path in (*top, *below):
        if not any(path.resolve().is_relative_to(home) for home in homes):
            raise UserError(
                f"{path} is a symbolic link to {path.resolve()}, outside the checkpoint. Put the "
                "file itself there, or remove the link."
            )
    return tuple(sorted(str(path.relative_to(source)) for path in (*top, *below)))
