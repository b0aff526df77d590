"""Checkpoints: Hugging Face folders with the optimiser's tensors and a small JSON of counters.

step-00000500/config.json, model.safetensors, tokenizer…   what from_pretrained opens
step-00000500/optimizer.safetensors                        tensors named "parameter|tensor"
step-00000500/state.json                                   counters, and a checksum a file
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from stackbert.errors import UserError, shown
from stackbert.files import (
    folder_made_whole,
    is_plain_name,
    remove,
    sha256_of,
    write_json_atomically,
)
from stackbert.pretraining.counters import LogWindow
from stackbert.stored import parse_json, stored

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from stackbert.pretraining.optimizers import NamedState

STATE = "state.json"
OPTIMIZER = "optimizer.safetensors"
FORMAT = 1


@dataclass(frozen=True)
class RunState:
    """The counters of a run after `step` updates; everything else follows from the recipe."""

    step: int
    """Updates done; the next one has this number."""
    depth: int
    """Layers of the saved model: before a growth that is due at this step, the smaller number."""
    tokens: int
    """Positions trained on so far, special tokens included."""
    flops: int
    """Of training, by `training_flops`."""
    seconds: dict[str, float]
    """By kind of work."""
    ledger_bytes: int
    """Length of the ledger when this was saved."""
    last_loss: float | None
    """Validation loss at this step, if it was evaluated: the "before" of a growth."""
    corpus: str
    """Fingerprint of the corpus."""
    window: dict[str, Any]
    """Sums since the ledger's last line, so that a resumed run writes the same next one."""
    skipped: int = 0
    """Steps left out because they were not finite."""


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after `step` updates; names sort as steps do."""
    return f"step-{step:08d}"


def save_checkpoint(
    folder: Path,
    model: "PreTrainedModel",
    optimizer_state: "NamedState",
    state: RunState,
    tokenizer_folder: Path,
    sequence_length: int,
    *,
    weights: "dict[str, Tensor] | None" = None,
) -> None:
    """Write one checkpoint: beside its place, synced, then renamed.

    Args:
        folder: where it will be; must not exist.
        model: saved by its own `save_pretrained`, as safetensors.
        optimizer_state: tensors by parameter name.
        state: the counters.
        tokenizer_folder: as in `save_model`.
        sequence_length: as in `save_model`.
        weights: as in `save_model`.

    Raises:
        UserError: the folder exists.
        OSError: the disk is full, the folder is read-only, ….
    """
    from safetensors.torch import save_file

    with folder_made_whole(folder) as partial, disk_errors_as_os_errors():
        save_model(model, partial, tokenizer_folder, sequence_length, weights=weights)
        flat = {
            f"{name}|{key}": tensor.detach().cpu().contiguous()
            for name, tensors in optimizer_state.items()
            for key, tensor in tensors.items()
        }
        save_file(flat, partial / OPTIMIZER)
        _let_others_read(partial)
        write_state(partial, state)


def write_state(folder: Path, state: RunState) -> None:
    """Write a checkpoint's state.json: counters, a checksum of every other file, and its own."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name != STATE)
    sums = {path.name: sha256_of(path) for path in files}
    body = {"format": FORMAT, **asdict(state), "sha256": sums}
    write_json_atomically(folder / STATE, body | {"own_sha256": _digest(body)})


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def save_model(
    model: "PreTrainedModel",
    folder: Path,
    tokenizer_folder: Path,
    sequence_length: int,
    *,
    weights: "dict[str, Tensor] | None" = None,
) -> None:
    """Write what `from_pretrained` needs into an existing folder: weights, config, tokenizer.

    Args:
        model: saved by its own `save_pretrained`, as safetensors.
        folder: where to.
        tokenizer_folder: copied file by file, so that the folder is complete on its own.
        sequence_length: the longest row that the model was trained on, in tokens.
        weights: to save instead of the model's present ones, by the names of its `state_dict`.
    """
    with quiet_transformers():
        model.save_pretrained(folder, state_dict=weights)
    _let_others_read(folder)
    for path in sorted(tokenizer_folder.iterdir()):
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    # So that transformers' tokenizer cuts a text that is too long for the model's positions.
    config = folder / "tokenizer_config.json"
    fields = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    write_json_atomically(config, fields | {"model_max_length": sequence_length})


def _let_others_read(folder: Path) -> None:
    # safetensors makes its files readable by their owner alone.
    for path in folder.glob("*.safetensors"):
        path.chmod((folder / "config.json").stat().st_mode)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Within this block transformers shows no bar, which would tear ours apart, and no report."""
    from transformers.utils import logging

    parts: Any = logging
    shown, verbosity = parts.is_progress_bar_enabled(), parts.get_verbosity()
    parts.disable_progress_bar()
    parts.set_verbosity_error()
    try:
        yield
    finally:
        parts.set_verbosity(verbosity)
        if shown:
            parts.enable_progress_bar()


@contextlib.contextmanager
def disk_errors_as_os_errors() -> Iterator[None]:
    """Within this block safetensors' own error for a failed write becomes an `OSError`."""
    try:
        yield
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        if not found:
            raise
        number = int(found.group(1))
        raise OSError(number, os.strerror(number)) from error


class DamagedCheckpointError(Exception):
    """A checkpoint that cannot be used; the message names the file and what is wrong with it."""

    def __init__(self, message: str) -> None:
        super().__init__(shown(message))


def read_state(folder: Path) -> RunState:
    """Read a checkpoint's counters after comparing every file with its checksum.

    Raises:
        DamagedCheckpointError: a file is missing, extra bytes or bits differ, the JSON is damaged.
    """
    path = folder / STATE
    try:
        raw: dict[str, Any] = parse_json(path.read_bytes())
        own: str = raw.pop("own_sha256")
        if own != _digest(raw):
            raise DamagedCheckpointError(f"{path} differs from its checksum")
        if raw.pop("format") != FORMAT:
            raise DamagedCheckpointError(f"{path} is of another version of StackBERT")
        sums: dict[str, str] = raw.pop("sha256")
        state = _checked(stored(RunState, raw, partial=True))
        for name, expected in sums.items():
            if not is_plain_name(name):
                raise ValueError(f"it names {name!r}, which is no file of its folder")
            if sha256_of(folder / name) != expected:
                raise DamagedCheckpointError(f"{folder / name} differs from its checksum")
    except OSError as error:
        raise DamagedCheckpointError(f"{error.filename} cannot be read") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(f"{path} is damaged ({error})") from error
    return state


def _checked(state: RunState) -> RunState:
    counts = (state.step, state.depth, state.tokens, state.flops, state.ledger_bytes, state.skipped)
    if min(counts) < 0 or state.depth == 0 or min(state.seconds.values(), default=0.0) < 0.0:
        raise ValueError("a count or a time in it is below zero")
    stored(LogWindow, state.window, partial=True)
    return state


def load_model(folder: Path, model_class: type["PreTrainedModel"]) -> "PreTrainedModel":
    """The model of a checkpoint, in fp32, in training mode; every tensor must be there.

    Raises:
        DamagedCheckpointError: a tensor is missing, unknown, or of another shape; or the config
            describes another model, or asks for more than one of transformers.
    """
    import torch

    from stackbert.growth.source import (
        check_size,
        contents,
        load_config,
        read_config,
        reason,
        weight_files,
    )

    try:
        read_config(folder)
        config = load_config(model_class, folder)
        check_size(model_class, config, folder, contents(weight_files(folder)))
        with quiet_transformers():
            loaded: Any = model_class.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # reported, and refused below by name
                output_loading_info=True,
            )
    except UserError as error:
        raise DamagedCheckpointError(str(error).rstrip(".")) from error
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise DamagedCheckpointError(f"{folder} cannot be opened ({reason(error)})") from error
    trained: PreTrainedModel = loaded[0]
    report: dict[str, Any] = loaded[1]
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            raise DamagedCheckpointError(f"{folder} has {kind}: {sorted(report[kind])}")
    # Loaded tensors may look into a mapped file at any offset; aligned copies round as a fresh
    # model's do.
    for parameter in trained.parameters():
        parameter.data = parameter.data.clone()
    trained.train()
    return trained


def load_optimizer_state(folder: Path) -> "NamedState":
    """The optimiser's tensors of a checkpoint, by parameter name.

    Raises:
        DamagedCheckpointError: the file does not hold tensors.
    """
    from safetensors.torch import load_file

    path = folder / OPTIMIZER
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DamagedCheckpointError(f"{path} cannot be opened ({error})") from error
    state: NamedState = {}
    for flat, tensor in tensors.items():
        name, _, key = flat.rpartition("|")
        state.setdefault(name, {})[key] = tensor
    return state


class CheckpointStore:
    """The checkpoints of one run directory. The run's lock keeps other processes away."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __iter__(self) -> Any:  # noqa: ANN401 (iterator of paths)
        return iter(self.paths())

    def paths(self) -> list[Path]:
        """Whole checkpoints, oldest first (damaged ones included until they are found out)."""
        return sorted(p for p in self.folder.glob("step-????????") if p.is_dir())

    def tidy(self) -> None:
        """Remove what a killed process left half-written."""
        for path in [*self.folder.glob("*.partial"), *self.folder.glob(".*.lock")]:
            remove(path)

    def newest(self) -> tuple[tuple[Path, RunState] | None, list[str]]:
        """The newest checkpoint that is whole, and what was wrong with those passed over.

        A damaged one is renamed to `….damaged`, so that the run can save at its step again.

        Raises:
            UserError: there are checkpoints, and every one is damaged.
        """
        problems: list[str] = []
        damaged: list[Path] = []
        for path in reversed(self.paths()):
            try:
                state = read_state(path)
                if checkpoint_name(state.step) != path.name:
                    raise DamagedCheckpointError(f"{path} holds the state after step {state.step}")
            except DamagedCheckpointError as error:
                problems.append(str(error))
                damaged.append(path)
                continue
            # Only now that there is a good one: without any, the next call must not start anew.
            for bad in damaged:
                aside = bad.with_name(bad.name + ".damaged")
                if aside.exists():
                    remove(aside)
                bad.rename(aside)
            return (path, state), problems
        if problems:
            raise UserError(
                f"Every checkpoint in {self.folder} is damaged: {'; '.join(problems)}. Start a "
                "new run in another folder."
            )
        return None, problems

    def prune(self, keep: int, always: set[int]) -> None:
        """Remove all but the newest `keep` and those after `always` numbers of steps."""
        paths = self.paths()
        for path in paths[:-keep]:
            if int(path.name.removeprefix("step-")) not in always:
                # Renamed first: a kill in the middle must not leave half a checkpoint.
                doomed = path.with_name(path.name + ".partial")
                path.rename(doomed)
                remove(doomed)

    def last(self) -> Path | None:
        """The newest checkpoint by name, for messages."""
        with contextlib.suppress(OSError):
            paths = self.paths()
            return paths[-1] if paths else None
        return None
