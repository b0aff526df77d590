"""What the study knows of a task, whatever its kind: a head, rows to train on, outputs to judge.

Sentence tasks (`encoding`) and questions (`questions`) each fill these in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from stackbert.finetuning.settings import FinetuneSettings

if TYPE_CHECKING:
    from stackbert.finetuning.heads import Opened

Array = npt.NDArray[Any]
Row = dict[str, Any]
"""What the model is fed: "input_ids" and, where the model has them, "token_type_ids", both
(tokens,); in training rows also the labels, by the names of the model's arguments."""
Scores = dict[str, float]
"""By metric, 0 to 1 (correlations from -1)."""

TRAIN = "train"


@dataclass(frozen=True)
class Head:
    """What is put on top of the encoder."""

    kind: Literal["classes", "number", "span"]
    labels: tuple[str, ...] = ()
    """Names of the classes."""

    @property
    def outputs(self) -> int:
        """Numbers that the head gives for a row (of a span: for a token)."""
        return {"classes": len(self.labels), "number": 1, "span": 2}[self.kind]


@dataclass(frozen=True)
class Judged:
    """A split's outputs, read."""

    scores: Scores
    """Empty where the split has no labels."""
    predictions: list[dict[str, Any]]
    """A JSON object a row: "key", "prediction", and "label" where it is known."""


class Encoded(Protocol):
    """A task's rows as a tokenizer and a length make them."""

    @property
    def train(self) -> Sequence[Row]:
        """Rows with labels."""
        ...

    @property
    def splits(self) -> Mapping[str, Sequence[Row]]:
        """What is predicted, by the split's name, in the order of the data; without labels."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on what was cut."""
        ...

    def judge(self, split: str, outputs: Sequence[Array]) -> Judged:
        """Predictions and scores of a split.

        Args:
            split: its name.
            outputs: of the head, a row a row of `splits[split]`: one array for classes (rows,
                classes) and numbers (rows, 1); two, starts and ends, for spans (rows, tokens).
        """
        ...


class Work(Protocol):
    """A task with its data."""

    @property
    def name(self) -> str:
        """Lower-case, as the command line takes it."""
        ...

    @property
    def title(self) -> str:
        """As tables show it."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """The first is the headline."""
        ...

    @property
    def head(self) -> Head:
        """What its models end in."""
        ...

    @property
    def sizes(self) -> Mapping[str, int]:
        """Rows of each split, "train" included."""
        ...

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """SHA-256 of each split's content, whatever file it came from."""
        ...

    @property
    def guess(self) -> Mapping[str, Scores]:
        """For each labelled split, what always guessing the same scores."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on the data that the user should see."""
        ...

    def encode(
        self, opened: "Opened", settings: FinetuneSettings, splits: Sequence[str]
    ) -> Encoded:
        """Rows for a model.

        Args:
            opened: the model with its tokenizer.
            settings: for their lengths.
            splits: to predict, beside what is trained on.
        """
        ...


def place_back(values: Array, order: Sequence[int]) -> Array:
    """Undo a reordering: `values[i]` belongs to row `order[i]`."""
    back = np.empty_like(values)
    back[np.asarray(order, dtype=np.int64)] = values
    return back
