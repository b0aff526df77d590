"""What throughput.py compares: models, contenders, and the clock that all are timed with."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["trainer", "stackbert"]


@dataclass(frozen=True)
class Shape:
    """A BERT and its batch. Heads are 64 wide, the feed-forward part is four times the hidden."""

    depth: int
    hidden: int
    sequence: int
    tokens: int
    """Of a step, over all rows."""

    @property
    def rows(self) -> int:
        """Rows of a step."""
        return max(1, self.tokens // self.sequence)

    @property
    def heads(self) -> int:
        """Attention heads."""
        return max(1, self.hidden // 64)


@dataclass(frozen=True)
class Contender:
    """What trains, and how it is set up."""

    letter: str
    """As the reports call it."""
    kind: Kind
    title: str
    dropout: float = 0.1
    bf16: bool = False
    """For `trainer`; `stackbert` chooses as its runs do."""
    compile: bool | Literal["auto"] = False
    """torch.compile; "auto", of `stackbert` alone, settles it as a long run does."""


@dataclass(frozen=True)
class Job:
    """Everything that a process needs to know."""

    contender: Contender
    shapes: tuple[Shape, ...]
    """Measured one after the other."""
    vocab_size: int | None
    """None takes the corpus'."""
    corpus: str | None
    warmup: int
    """Steps before the clock starts."""
    steps: int
    block: int
    """Steps between two readings of the clock."""
    compile_backend: str = "inductor"
    """Of torch_compile in transformers' Trainer."""

    @classmethod
    def read(cls, path: Path) -> "Job":
        """From a file that held `asdict(job)` as JSON."""
        raw = json.loads(path.read_text(encoding="utf-8"))
        shapes = tuple(Shape(**shape) for shape in raw["shapes"])
        return cls(**{**raw, "contender": Contender(**raw["contender"]), "shapes": shapes})


class Clock:
    """Seconds a step, by blocks of steps, after a warm-up.

    A device works on while Python goes on, so the clock is read after waiting for it, and to leave
    a GPU's queue as full as it is in a run, only once a block.
    """

    def __init__(self, job: Job, synchronise: Callable[[], None]) -> None:
        self.seconds: list[float] = []
        """A step's, one entry a block."""
        self.first_step: float | None = None
        """From `start` to the first step's end, compilation included."""
        self._job = job
        self._synchronise = synchronise
        self._done = 0
        self._at = 0.0

    def start(self) -> None:
        """Call before the first step."""
        self._synchronise()
        self._at = time.perf_counter()

    def tick(self) -> None:
        """Call at the end of every step."""
        self._done += 1
        timed = self._done - self._job.warmup
        if not (self._done == 1 or timed == 0 or (timed > 0 and timed % self._job.block == 0)):
            return
        self._synchronise()
        now = time.perf_counter()
        if self._done == 1:
            self.first_step = now - self._at
        if timed > 0:
            self.seconds.append((now - self._at) / self._job.block)
        self._at = now
