"""Grow the model in one Hugging Face checkpoint folder into another folder."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from stackbert.errors import UserError
from stackbert.files import explaining_os_errors, folder_made_whole, is_plain_name
from stackbert.growth.checkpoint import inspect_checkpoint, load_checkpoint, quiet_transformers
from stackbert.growth.layers import depth_key
from stackbert.growth.model import grow_with_origins
from stackbert.growth.operators import Operator, get_operator
from stackbert.stored import parse_json

# Not copied along: weights in any format, code, and what describes the source's training.
_NOT_COPIED = (
    ".safetensors",
    ".safetensors.index.json",
    ".bin",
    ".bin.index.json",
    ".pt",
    ".pth",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".ot",
    ".onnx",
    ".gguf",
    ".npz",
    ".pkl",
    ".py",
)
_OWN_FILES = {"config.json", "generation_config.json", "state.json", "trainer_state.json"}
_SMALL = 256 * 2**20  # tokenizers of large vocabularies take tens of megabytes


@dataclass(frozen=True)
class FolderGrowth:
    """What `grow_folder` did.

    Attributes:
        source: the folder that was read.
        destination: the folder that was made.
        model_class: the transformers class of both models.
        operator: the operator's name.
        source_depth: layers before.
        depth: layers after.
        parameters: parameters of the grown model, tied ones counted once.
        copied_files: other files that were copied along (tokenizer, …), relative to the folder.
    """

    source: Path
    destination: Path
    model_class: str
    operator: str
    source_depth: int
    depth: int
    parameters: int
    copied_files: tuple[str, ...]


def grow_folder(
    source: str | Path,
    destination: str | Path,
    depth: int,
    operator: str | Operator = "stack",
    seed: int = 0,
) -> FolderGrowth:
    """Grow the model of one checkpoint folder into a new folder that `from_pretrained` opens.

    Args:
        source: a folder with `config.json` and safetensors weights, in one file or in shards.
        destination: a folder that does not exist; it appears whole or not at all.
        depth: layers of the new model, more than the source has.
        operator: an `Operator` or the name of one; "stack" is the paper's (Gong et al. 2019).
        seed: of fresh layers and noise, for operators that have any.

    Returns:
        A short account. The weights keep the dtype they are stored in; the tokenizer and other
        small files are copied along.

    Raises:
        UserError: the source is no such folder, is damaged, has other tensors than its
            architecture, needs code of its own, or cannot be grown to `depth` by this operator;
            the destination exists. Nothing is left behind then.
        RunError: the disk is full.
    """
    source, destination = Path(source), Path(destination)
    if isinstance(operator, str):
        operator = get_operator(operator)
    checkpoint = inspect_checkpoint(source)
    source_depth: int = getattr(checkpoint.config, depth_key(checkpoint.config))
    # Before a gigabyte is read: an unreachable depth is the likeliest mistake.
    operator.depth_map(source_depth, depth)
    with (
        explaining_os_errors(f"growing {source} into {destination}"),
        folder_made_whole(destination) as partial,
    ):
        model = load_checkpoint(checkpoint)
        grown = grow_with_origins(model, depth, operator, seed=seed).model
        del model
        copied = _copy_along(source, partial)
        with quiet_transformers():
            grown.save_pretrained(partial)
        for path in partial.glob("*.safetensors"):
            # safetensors makes them readable by their owner alone; the group reads the rest.
            path.chmod((partial / "config.json").stat().st_mode)
    return FolderGrowth(
        source=source,
        destination=destination,
        model_class=type(grown).__name__,
        operator=operator.name,
        source_depth=source_depth,
        depth=depth,
        parameters=sum(parameter.numel() for parameter in grown.parameters()),
        copied_files=copied,
    )


def _copy_along(source: Path, target: Path) -> tuple[str, ...]:
    """Copy the tokenizer and other small files, and the folders sentence-transformers needs."""
    paths = [path for path in sorted(source.iterdir()) if path.is_file() and _goes_along(path)]
    for folder in _sentence_transformer_folders(source):
        paths += [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in paths:
        _check_link(path, source)
    copied = []
    for path in paths:
        name = path.relative_to(source)
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / name)
        copied.append(str(name))
    return tuple(copied)


def _check_link(path: Path, source: Path) -> None:
    """Refuse a link that would bring a file from elsewhere into the copy.

    The Hugging Face cache keeps files in a folder `blobs` beside those of the snapshots.

    Raises:
        UserError: it is one.
    """
    places = (source.resolve(), source.resolve().parent.parent / "blobs")
    if not any(path.resolve().is_relative_to(place) for place in places):
        raise UserError(
            f"{path} is a symbolic link to {path.resolve()}, outside the checkpoint. Put the file "
            "itself there, or remove the link."
        )


def _goes_along(path: Path) -> bool:
    return not (
        path.name.startswith(".")
        or path.name in _OWN_FILES
        or path.name.endswith(_NOT_COPIED)
        or path.stat().st_size > _SMALL
    )


def _sentence_transformer_folders(source: Path) -> list[Path]:
    """Folders listed in modules.json: the pooling beside the model, not the model itself."""
    try:
        modules = parse_json((source / "modules.json").read_bytes())
        names = [str(module["path"]) for module in modules]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [source / name for name in names if is_plain_name(name) and (source / name).is_dir()]
