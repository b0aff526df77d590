"""Sentence tasks: examples to rows of token ids, and the head's outputs back to predictions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from stackbert.finetuning.examples import Example, Split
from stackbert.finetuning.fingerprints import content_of
from stackbert.finetuning.metrics import majority, score
from stackbert.finetuning.settings import FinetuneSettings
from stackbert.finetuning.tasks import GLUE, Task
from stackbert.finetuning.work import TRAIN, Array, Head, Judged, Row, Scores

if TYPE_CHECKING:
    from stackbert.finetuning.heads import Opened

_TOGETHER = 1000
"""Examples that are tokenised at once: enough for speed, few enough for memory."""


@dataclass(frozen=True)
class SentenceWork:
    """A classification or regression task with its data."""

    task: Task
    data: Mapping[str, Split]
    """At least "train"."""

    @property
    def name(self) -> str:
        """The task's."""
        return self.task.name

    @property
    def title(self) -> str:
        """The task's."""
        return self.task.title

    @property
    def metrics(self) -> tuple[str, ...]:
        """The task's."""
        return self.task.metrics

    @property
    def head(self) -> Head:
        """Classes or a number."""
        if self.task.kind == "regression":
            return Head("number")
        return Head("classes", self.task.labels)

    @property
    def sizes(self) -> Mapping[str, int]:
        """Examples of each split."""
        return {name: len(split.examples) for name, split in self.data.items()}

    @cached_property
    def fingerprints(self) -> Mapping[str, str]:
        """Of each split."""
        return {name: content_of(split.examples) for name, split in self.data.items()}

    @cached_property
    def guess(self) -> Mapping[str, Scores]:
        """What the commonest class of a split, or its mean, scores there."""
        return {
            name: majority(self.metrics, known)
            for name, split in self.data.items()
            if name != TRAIN and (known := _labels(split.examples)) is not None
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """What the readers say."""
        return tuple(note for split in self.data.values() for note in split.notes)

    def encode(
        self, opened: "Opened", settings: FinetuneSettings, splits: Sequence[str]
    ) -> "EncodedSentences":
        """Rows for a model."""
        longest = opened.longest(settings.max_length)
        rows, cut = {}, {}
        for name in (TRAIN, *splits):
            rows[name], cut[name] = _rows(self.data[name].examples, opened, longest)
        scale = _Scale.of(self.task, self.data[TRAIN].examples)
        labels = _labels(self.data[TRAIN].examples) or []
        for row, label in zip(rows[TRAIN], labels, strict=True):
            # The loss goes by the type: squared error of numbers, cross-entropy of classes.
            is_number = self.task.kind == "regression"
            row["labels"] = scale.down(float(label)) if is_number else int(label)
        train = rows.pop(TRAIN)
        return EncodedSentences(self, train, rows, self._cut_note(cut, longest), scale)

    def _cut_note(self, cut: Mapping[str, int], longest: int) -> tuple[str, ...]:
        shown = [f"{count:,} of {self.sizes[n]:,} in {n}" for n, count in cut.items() if count]
        if not shown:
            return ()
        return (f"{self.title}: rows of more than {longest} tokens were cut: {', '.join(shown)}.",)


@dataclass(frozen=True)
class EncodedSentences:
    """A sentence task's rows."""

    work: SentenceWork
    train: Sequence[Row]
    splits: Mapping[str, Sequence[Row]]
    notes: tuple[str, ...]
    scale: "_Scale"

    def judge(self, split: str, outputs: Sequence[Array]) -> Judged:
        """The likeliest class of each row, or the number, and what they score."""
        (found,) = outputs
        task, examples = self.work.task, self.work.data[split].examples
        predicted: list[int | float]
        if task.kind == "regression":
            predicted = self.scale.up(found.reshape(len(examples)))
        else:
            predicted = found.argmax(axis=1).tolist()
        labels = _labels(examples)
        rows = [
            {"key": example.key, "prediction": _shown(task, value)}
            for example, value in zip(examples, predicted, strict=True)
        ]
        if labels is None:
            return Judged({}, rows)
        for row, label in zip(rows, labels, strict=True):
            row["label"] = _shown(task, label)
        return Judged(score(self.work.metrics, labels, predicted), rows)


@dataclass(frozen=True)
class _Scale:
    """Numbers to predict, brought to mean 0 and deviation 1, in which learning rates are set.

    GLUE's STS-B goes from 0 to 5 and is left as it is, so that its runs are like everyone's.
    """

    mean: float = 0.0
    deviation: float = 1.0

    @classmethod
    def of(cls, task: Task, train: Sequence[Example]) -> "_Scale":
        if task.kind != "regression" or task.name in GLUE:
            return cls()
        labels = np.array(_labels(train), dtype=np.float64)
        return cls(float(labels.mean()), float(labels.std()) or 1.0)

    def down(self, label: float) -> float:
        return (label - self.mean) / self.deviation

    def up(self, outputs: Array) -> list[float]:
        found: list[float] = (outputs.astype(np.float64) * self.deviation + self.mean).tolist()
        return found


def _shown(task: Task, value: int | float) -> str | float:
    """A class by its name, a number as it is."""
    return float(value) if task.kind == "regression" else task.labels[int(value)]


def _labels(examples: Sequence[Example]) -> list[int | float] | None:
    """All labels; None where they are unknown."""
    labels = [example.label for example in examples if example.label is not None]
    return labels if labels and len(labels) == len(examples) else None


def _rows(examples: Sequence[Example], opened: "Opened", longest: int) -> tuple[list[Row], int]:
    """Rows without labels, and how many of them were cut."""
    rows: list[Row] = []
    cut = 0
    names = ["input_ids", *(["token_type_ids"] if opened.takes_types else [])]
    for start in range(0, len(examples), _TOGETHER):
        some = examples[start : start + _TOGETHER]
        texts = [example.first for example in some]
        seconds = [example.second for example in some if example.second is not None]
        encoded = opened.tokenizer(
            texts,
            *([seconds] if seconds else []),
            truncation=True,
            max_length=longest,
            padding=False,
            return_token_type_ids=opened.takes_types,
            return_attention_mask=False,
            verbose=False,
        )
        cut += sum(bool(encoding.overflowing) for encoding in encoded.encodings)
        for place in range(len(some)):
            # Arrays, as lists of Python numbers take ten times the memory.
            rows.append({n: np.array(encoded[n][place], dtype=np.int32) for n in names})
    return rows, cut


def collate(rows: Sequence[Row], padding: int) -> dict[str, Any]:
    """A batch: rows padded on the right to the longest of them, with a mask of what is no padding.

    Args:
        rows: at least one.
        padding: the tokenizer's id.

    Returns:
        "input_ids", "attention_mask" and whatever else the rows hold, as tensors. Rows' own arrays
        are (batch, tokens), labels (batch,).
    """
    import torch

    longest = max(len(row["input_ids"]) for row in rows)
    batch: dict[str, Any] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if isinstance(values[0], np.ndarray):
            fill = padding if name == "input_ids" else 0
            padded = np.full((len(rows), longest), fill, dtype=np.int64)
            for place, value in enumerate(values):
                padded[place, : len(value)] = value
            batch[name] = torch.from_numpy(padded)
        else:
            kind = torch.float32 if isinstance(values[0], float) else torch.int64
            batch[name] = torch.tensor(values, dtype=kind)
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    batch["attention_mask"] = (torch.arange(longest)[None] < lengths[:, None]).long()
    return batch
