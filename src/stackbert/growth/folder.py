"""Grow the model in one Hugging Face folder into another folder."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedModel

from stackbert.errors import UserError
from stackbert.files import new_folder, reading, writing
from stackbert.growth.grow import depth_key, grow
from stackbert.growth.operators import Operator, get_operator
from stackbert.growth.rebalance import rebalance as rebalance_weights
from stackbert.model_files import open_model, save_model, stored_class

# Weights in any format, code, and how the source's training stood.
_NOT_COPIED = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".ot", ".onnx", ".gguf"),
    *(".npz", ".pkl", ".index.json", ".py", "state.json"),
)

_CARD = """---
library_name: transformers
tags: [stackbert, progressive-stacking]
---

# {name}

A `{model_class}` of {depth} layers, made by StackBERT from one of {source_depth} layers
(`{source}`) by {operator}. It has not been trained since: train a grown model before you use it.
What is known of the source (its text, licence, results) is in the source's own card.
"""


@dataclass(frozen=True)
class FolderGrowth:
    """What `grow_folder` did."""

    model_class: str
    operator: str
    source_depth: int
    depth: int
    parameters: int
    """Of the grown model, tied ones counted once."""


def grow_folder(
    source: str | Path,
    destination: str | Path,
    depth: int | None = None,
    operator: str | Operator = "stack",
    seed: int = 0,
    *,
    rebalance: bool = False,
) -> FolderGrowth:
    """Grow the model of one Hugging Face folder into a new folder that `from_pretrained` opens.

    The weights keep the dtype they are stored in; the tokenizer and other small files are copied;
    the model card says that the model is grown and untrained.

    Args:
        source: a folder with `config.json` and safetensors weights, in one file or in shards.
        destination: a folder that does not exist; it appears whole or not at all.
        depth: layers of the new model, more than the source has; None only rebalances it.
        operator: an `Operator` or the name of one; "stack" is the paper's (Gong et al. 2019).
        seed: of fresh layers and noise, for operators that have any.
        rebalance: first bring the weights back to their initial scale, the function unchanged
            (`growth.rebalance`), so that fresh layers and usual learning rates fit them.

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
    if depth is None and not rebalance:
        raise UserError("Say how many layers the new model is to have (--depth).")
    if depth is not None:
        # Before a gigabyte is read: an unreachable depth is the likeliest mistake.
        operator.depth_map(source_depth, depth)
    with writing(f"growing {source} into {destination}"), new_folder(destination) as partial:
        grown = _open_whole(source, named)
        if rebalance:
            rebalance_weights(grown)
        if depth is not None:
            grown = grow(grown, depth, operator, seed=seed)
        _copy_small_files(source, partial)
        save_model(grown, partial, tokenizer=None, sequence_length=0)
        parameters = sum(parameter.numel() for parameter in grown.parameters())
        name = "rebalancing alone" if depth is None else operator.name
        layers = depth or source_depth
        result = FolderGrowth(type(grown).__name__, name, source_depth, layers, parameters)
        card = _CARD.format(name=destination.name, source=source.resolve().name, **asdict(result))
        (partial / "README.md").write_text(card, encoding="utf-8")
    return result


def _open_whole(source: Path, named: type[PreTrainedModel]) -> PreTrainedModel:
    """The folder's model in the class that has a place for each of its tensors.

    bert-base-uncased names BertForMaskedLM and holds both pre-training heads; an encoder cut out
    of a masked LM has no pooler, which its class has by default.
    """
    family = named.__name__.split("For")[0].removesuffix("Model")
    both = getattr(transformers, f"{family}ForPreTraining", named)
    failures = []
    without_pooler: dict[str, Any] = {"add_pooling_layer": False}
    for relative, options in ((named, {}), (named, without_pooler), (both, {})):
        try:  # older versions of transformers stored the position ids, too
            return open_model(source, relative, dtype=None, may_ignore=r".*position_ids", **options)
        except UserError as error:
            failures.append(error)
    raise failures[0]


def _copy_small_files(source: Path, destination: Path) -> None:
    """The tokenizer, other small files, and the folders of sentence-transformers (1_Pooling, …)."""
    top = [
        path
        for path in source.iterdir()
        if not path.name.startswith(".") and not path.name.endswith(_NOT_COPIED)
    ]
    for path in (*top, *source.glob("[0-9]_*/**/*")):
        if path.is_file():
            copied = destination / path.relative_to(source)
            copied.parent.mkdir(exist_ok=True, parents=True)
            shutil.copyfile(path, copied)
