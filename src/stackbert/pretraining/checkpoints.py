"""Checkpoints: Hugging Face folders step-00000500 with optimizer.safetensors ("parameter|tensor")
and state.json (counters, a checksum of every file). A thread writes them, from copies of the
tensors, while training continues.
"""

import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from safetensors.torch import load_file, save_file
from torch import Tensor

from stackbert.errors import UserError
from stackbert.files import Record, new_folder, reading, sha256, writing
from stackbert.model_files import save_model
from stackbert.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STATE = "state.json"
OPTIMIZER = "optimizer.safetensors"


@dataclass
class Window:
    """Sums since the ledger's last line."""

    started: NonNegativeFloat = 0.0
    """Seconds of training at that line."""
    steps: NonNegativeInt = 0
    """Without those that were skipped."""
    tokens: NonNegativeInt = 0
    """Like the FLOPs, without those of steps that compiled, which do not count as training."""
    flops: NonNegativeInt = 0
    masked_lm: float = 0.0
    next_sentence: float = 0.0


@dataclass
class Counters:
    """What a run counts from step to step; a resumed run continues with them."""

    step: NonNegativeInt = 0
    """Updates done; the next one has this number."""
    tokens: NonNegativeInt = 0
    """Positions trained on, special tokens included."""
    flops: NonNegativeInt = 0
    last_loss: float | None = None
    """Validation loss at this very step, if it was evaluated: the "before" of a growth."""
    skipped: NonNegativeInt = 0
    """Steps left out because loss or gradient was not finite."""
    window: Window = field(default_factory=Window)

    def count(self, tokens: int, flops: int, *, timed: bool) -> None:
        """Add a step; one that compiled is not `timed`."""
        self.step += 1
        self.tokens += tokens
        self.flops += flops
        self.last_loss = None
        if timed:
            self.window.tokens += tokens
            self.window.flops += flops


class CheckpointState(Record):
    """The content of state.json; everything else follows from the recipe."""

    what: ClassVar[str] = "a checkpoint"
    counters: Counters
    depth: PositiveInt
    """Layers of the saved model: before a growth that is due at this step, the smaller number."""
    seconds: dict[str, NonNegativeFloat]
    """By kind of work."""
    ledger_bytes: NonNegativeInt
    """Length of the ledger when this was saved."""
    sha256: dict[str, str] = Field(default_factory=dict)
    """Checksum of every other file."""

    @classmethod
    def at_start(cls, depth: int) -> Self:
        """Of a run that has not begun."""
        return cls(counters=Counters(), depth=depth, seconds={}, ledger_bytes=0)


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after `step` updates; names sort as steps do."""
    return f"step-{step:08d}"


def snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in host memory; names that share a tensor share its copy."""
    copies: dict[tuple[int, torch.Size, tuple[int, ...]], Tensor] = {}
    result = {}
    for name, tensor in tensors.items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if key not in copies:
            copies[key] = tensor.detach().to("cpu", copy=True)
        result[name] = copies[key]
    return result


class Checkpoints:
    """The checkpoints of one run directory. The run's lock keeps other processes away.

    The last few are kept, as the recipe says, and those at the end of a stage. The folder
    `tokenizer` is copied into each.
    """

    def __init__(self, folder: Path, recipe: Recipe, tokenizer: Path) -> None:
        self.folder = folder
        self._recipe = recipe
        self._tokenizer = tokenizer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._running: Future[None] | None = None

    def paths(self) -> list[Path]:
        """All checkpoints, oldest first; a damaged one is among them until it is found out."""
        return sorted(path for path in self.folder.glob("step-????????") if path.is_dir())

    def newest(self, say: Callable[[str], None]) -> CheckpointState | None:
        """The state of the newest checkpoint that is whole; None if there is no checkpoint.

        Removes what a killed process left half-written. A damaged checkpoint is renamed to
        `….damaged`, so that the run can save at its step again; `say` is told.

        Raises:
            UserError: there are checkpoints, and every one is damaged.
        """
        for partial in self.folder.glob("step-*.partial"):
            shutil.rmtree(partial)
        problems: dict[Path, str] = {}
        for path in reversed(self.paths()):
            try:
                state = read_checkpoint(path)
            except UserError as error:
                problems[path] = str(error)
                continue
            # Only now that there is a good one: without any, the next call must not start anew.
            for damaged, problem in problems.items():
                say(f"a damaged checkpoint was passed over: {problem}")
                aside = damaged.with_name(damaged.name + ".damaged")
                shutil.rmtree(aside, ignore_errors=True)
                damaged.rename(aside)
            return state
        if problems:
            raise UserError(
                f"Every checkpoint in {self.folder} is damaged: {' '.join(problems.values())} "
                "Start a new run in another folder."
            )
        return None

    def load(self, step: int) -> dict[str, Tensor]:
        """A checkpoint's weights by parameter, its optimizer's tensors by "parameter|tensor"."""
        folder = self.folder / checkpoint_name(step)
        with reading(folder):
            return load_file(folder / "model.safetensors") | load_file(folder / OPTIMIZER)

    def save(
        self,
        state: CheckpointState,
        model: "PreTrainedModel",
        weights: dict[str, Tensor],
        optimizer_state: dict[str, Tensor],
    ) -> None:
        """Write one checkpoint from snapshots of the tensors, and remove old ones after it.

        Checksums are added to the state; of the model the config is saved.
        """
        place = self.folder / checkpoint_name(state.counters.step)
        longest = self._recipe.longest_sequence
        with writing(f"saving {place}"), new_folder(place) as folder:
            save_model(
                model, folder, tokenizer=self._tokenizer, sequence_length=longest, weights=weights
            )
            save_file(optimizer_state, folder / OPTIMIZER)
            (folder / OPTIMIZER).chmod((folder / "config.json").stat().st_mode)
            files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
            sums = {path.name: sha256(path) for path in files}
            state.model_copy(update={"sha256": sums}).write(folder / STATE)
        for path in self.paths()[: -self._recipe.checkpoint.keep]:
            if int(path.name.removeprefix("step-")) not in self._recipe.boundaries:
                # Renamed first: a kill in the middle must not leave half a checkpoint.
                shutil.rmtree(path.rename(path.with_name(path.name + ".partial")))

    def save_on_thread(self, *arguments: Any) -> None:  # noqa: ANN401 (those of `save`)
        """`save` while the caller goes on; its error comes out at the next call of a method."""
        self._running = self._thread.submit(self.save, *arguments)

    def poll(self) -> None:
        """Raise what the writing thread raised, if it has ended; does not wait."""
        if self._running is not None and self._running.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the checkpoint that is being written, and raise what that raised."""
        if self._running is not None:
            running, self._running = self._running, None
            running.result()

    def close(self) -> None:
        """Wait, and end the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()


def read_checkpoint(folder: Path) -> CheckpointState:
    """The state of a checkpoint; UserError if a file is missing or not as its checksum says."""
    state = CheckpointState.read(folder / STATE)
    if checkpoint_name(state.counters.step) != folder.name:
        raise UserError(f"{folder} holds the state after step {state.counters.step}.")
    for name, expected in state.sha256.items():
        with reading(folder / name):
            if sha256(folder / name) != expected:
                raise UserError(f"{folder / name} differs from its checksum.")
    return state
