"""Grow the model in one Hugging Face folder into another folder."""

import shutil
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel

from stackbert.errors import UserError
from stackbert.files import new_folder, writing
from stackbert.growth.grow import grow
from stackbert.growth.operators import Operator, get_operator
from stackbert.growth.rebalance import rebalance as rebalance_weights
from stackbert.model_files import open_model, save_model, stored_class

# Not weights in whatever format, nor code, nor how the source's training stood.
_COPIED = (".json", ".txt", ".model", ".jinja", ".md", "LICENSE", "NOTICE")
_NOT_COPIED = ("index.json", "state.json")

_CARD = """# {}

A `{}` of {} layers, made by StackBERT from `{}` by {}. It has not been trained since: train a grown
model before you use it. What is known of the source (its text, licence, results) is in the source's
own card.
"""


def grow_folder(
    source: str | Path,
    destination: str | Path,
    depth: int | None = None,
    operator: str | Operator = "stack",
    seed: int = 0,
    *,
    rebalance: bool = False,
) -> PreTrainedModel:
    """Grow the model of one Hugging Face folder into a new folder that `from_pretrained` opens.

    The weights keep the dtype they are stored in; tokenizer and other small files are copied.

    Args:
        source: a folder with `config.json` and safetensors weights, in one file or in shards.
        destination: a folder that does not exist; it appears whole or not at all.
        depth: layers of the new model, more than the source has; None only rebalances it.
        operator, seed: as `grow` takes them.
        rebalance: first bring the weights back to their initial scale, the function unchanged
            (`growth.rebalance`), so that fresh layers and usual learning rates fit them.

    Raises:
        UserError: the source cannot be opened or grown to `depth`, or the destination exists.
        RunError: the disk is full.
    """
    source, destination = Path(source), Path(destination)
    if depth is None and not rebalance:
        raise UserError("Say how many layers the new model is to have (--depth).")
    with writing(f"growing {source} into {destination}"), new_folder(destination) as partial:
        model, how = _open_whole(source), "rebalancing"
        if rebalance:
            rebalance_weights(model)
        if depth is not None:
            model, how = grow(model, depth, operator, seed=seed), get_operator(operator).name
        for path in source.iterdir():
            if path.is_dir() and path.name[0].isdigit():  # sentence-transformers: 1_Pooling, …
                shutil.copytree(path, partial / path.name, copy_function=shutil.copyfile)
            elif path.name.endswith(_COPIED) and not path.name.endswith(_NOT_COPIED):
                shutil.copyfile(path, partial / path.name)
        save_model(model, partial)
        layers = model.config.num_hidden_layers
        about = type(model).__name__, layers, source.resolve().name, how
        card = _CARD.format(destination.name, *about)
        (partial / "README.md").write_text(card, encoding="utf-8")
    return model


def _open_whole(source: Path) -> PreTrainedModel:
    """The folder's model in the class that has a place for each of its tensors.

    bert-base-uncased names BertForMaskedLM and holds both pre-training heads; an encoder cut out
    of a masked LM has no pooler, which its class has by default.
    """
    named = stored_class(source)
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
