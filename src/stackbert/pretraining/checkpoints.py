"""Checkpoints: Hugging Face folders step-00000500 with optimizer.safetensors ("parameter|tensor")
and state.json. A thread writes them, from copies of the tensors, while training continues.
"""

import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

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
    """Sums since the ledger's last line, which was after `started` seconds of training.

    Steps that were skipped are left out, tokens and FLOPs of steps that compiled, too.
    """

    started: NonNegativeFloat = 0.0
    steps: NonNegativeInt = 0
    tokens: NonNegativeInt = 0
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
    window: Window = field(default_factory=Window)


class CheckpointState(Record):
    """The content of state.json."""

    what: ClassVar[str] = "a checkpoint"
    counters: Counters = Field(default_factory=Counters)
    depth: PositiveInt  # of the saved model, before a growth that is due at this step
    seconds: dict[str, NonNegativeFloat] = Field(default_factory=dict)  # by kind of work
    ledger_bytes: NonNegativeInt = 0
    sha256: dict[str, str] = Field(default_factory=dict)  # of every other file


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after `step` updates; names sort as steps do."""
    return f"step-{step:08d}"


class Checkpoints:
    """The checkpoints of one run directory. The run's lock keeps other processes away.

    The last few are kept, as the recipe says, and its `kept_steps`. `tokenizer`, the files of the
    corpus's, goes into each.
    """

    def __init__(self, folder: Path, recipe: Recipe, tokenizer: Mapping[str, bytes]) -> None:
        self.folder = folder
        self._recipe = recipe
        self._tokenizer = tokenizer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._running: Future[None] | None = None

    def paths(self) -> list[Path]:
        """All checkpoints, oldest first; a damaged one is among them until it is found out."""
        return sorted(path for path in self.folder.glob("step-????????") if path.is_dir())

    def newest(self, say: Callable[[str], None]) -> CheckpointState | None:
        """The state of the newest checkpoint that is whole; None if there is none at all.

        Removes what a killed process left half-written. A damaged checkpoint is renamed to
        `….damaged`, so that the run can save at its step again; `say` is told.

        Raises:
            UserError: every checkpoint is damaged.
        """
        self.folder.mkdir(exist_ok=True)
        for partial in self.folder.glob("step-*.partial"):
            shutil.rmtree(partial)
        problems: dict[Path, str] = {}
        state = None
        for path in reversed(self.paths()):
            try:
                state = read_checkpoint(path)
                break
            except UserError as error:
                problems[path] = str(error)
        if problems and state is None:  # all stay, or the next call would start anew
            raise UserError(
                f"Every checkpoint in {self.folder} is damaged: {' '.join(problems.values())} "
                "Start a new run in another folder."
            )
        for damaged, problem in problems.items():
            say(f"a damaged checkpoint was passed over: {problem}")
            aside = damaged.with_name(damaged.name + ".damaged")
            shutil.rmtree(aside, ignore_errors=True)
            damaged.rename(aside)
        return state

    def load(self, step: int) -> dict[str, Tensor]:
        """A checkpoint's weights by parameter, its optimizer's tensors by "parameter|tensor"."""
        folder = self.folder / checkpoint_name(step)
        with reading(folder):
            return load_file(folder / "model.safetensors") | load_file(folder / OPTIMIZER)

    def save(self, *parts: Any) -> None:  # noqa: ANN401 (those of `_write`)
        """Write a checkpoint on the thread, from copies of the tensors; errors come with `wait`."""
        self._running = self._thread.submit(self._write, *parts)

    def _write(
        self,
        state: CheckpointState,
        model: "PreTrainedModel",
        weights: dict[str, Tensor],
        optimizer_state: dict[str, Tensor],
    ) -> None:
        place = self.folder / checkpoint_name(state.counters.step)
        # Without its parents: a run's folder that was removed must not come back.
        with writing(f"saving {place}"), new_folder(place, parents=False) as folder:
            length, tokenizer = self._recipe.longest_sequence, self._tokenizer
            save_model(model, folder, tokenizer=tokenizer, weights=weights, sequence_length=length)
            save_file(optimizer_state, folder / OPTIMIZER)
            (folder / OPTIMIZER).chmod((folder / "config.json").stat().st_mode)
            files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
            sums = {path.name: sha256(path) for path in files}
            state.model_copy(update={"sha256": sums}).write(folder / STATE)
        for path in self.paths()[: -self._recipe.checkpoint.keep]:
            if int(path.name.removeprefix("step-")) not in self._recipe.kept_steps:
                # Renamed first: a kill in the middle must not leave half a checkpoint.
                shutil.rmtree(path.rename(path.with_name(path.name + ".partial")))

    def wait(self, *, if_done: bool = False) -> None:
        """Wait for the checkpoint being written, unless only `if_done`; raise its error."""
        if self._running is not None and (self._running.done() or not if_done):
            running, self._running = self._running, None
            running.result()

    def close(self) -> None:
        """Wait, and end the thread."""
        with self._thread:
            self.wait()


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
