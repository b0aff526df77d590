"""Classes and numbers: texts to rows of token ids, and the head's outputs to scores."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import pearsonr, spearmanr

from stackbert.finetuning.models import Encoded, Opened
from stackbert.finetuning.tasks import TASKS, Settings, TaskData

Array = npt.NDArray[Any]
_TOGETHER = 1000  # texts tokenised at once: enough for speed, few enough for memory


def score(metrics: Sequence[str], labels: Array, said: Array) -> dict[str, float]:
    """Each metric as a fraction. "f1" is of class 1; where nothing varies, correlations are 0."""
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef  # of the extra

    varies = len(np.unique(labels)) > 1 and len(np.unique(said)) > 1
    scorers: dict[str, Callable[[], float]] = {
        "accuracy": lambda: accuracy_score(labels, said),
        "f1": lambda: f1_score(labels == 1, said == 1, zero_division=0.0),
        "f1_macro": lambda: f1_score(labels, said, average="macro", zero_division=0.0),
        "matthews": lambda: matthews_corrcoef(labels, said) if varies else 0.0,
        "pearson": lambda: pearsonr(labels, said).statistic if varies else 0.0,
        "spearman": lambda: spearmanr(labels, said).statistic if varies else 0.0,
    }
    # A spread that is lost in rounding gives NaN.
    return {name: float(np.nan_to_num(scorers[name]())) for name in metrics}


def guess(data: TaskData, split: str) -> dict[str, float]:
    """What always giving the split's commonest label scores."""
    labels = data.splits[split]["label"].to_numpy()
    values, counts = np.unique(labels, return_counts=True)
    return score(data.task.metrics, labels, np.full_like(labels, values[counts.argmax()]))


def _scale(data: TaskData) -> tuple[float, float]:
    """Mean and deviation of one's own numbers; the learning rates are meant for 0 and 1.

    STS-B goes from 0 to 5 and is left as it is, so that its runs are like everyone's.
    """
    if data.task.kind != "number" or data.task.name in TASKS:
        return 0.0, 1.0
    labels = data.splits["train"]["label"]
    return float(labels.mean()), float(labels.std(ddof=0)) or 1.0


def encode(data: TaskData, split: str, opened: Opened, settings: Settings) -> Encoded:
    """Rows of token ids; those of the training split with labels."""
    frame = data.splits[split]
    longest = min(settings.max_length, opened.tokenizer.model_max_length)
    columns = [frame[name].tolist() for name in ("text", "text_pair") if name in frame]
    rows: list[dict[str, Any]] = []
    cut = 0
    for start in range(0, len(frame), _TOGETHER):
        encoded = opened.tokenizer(
            *(column[start : start + _TOGETHER] for column in columns),
            truncation=True,
            max_length=longest,
            return_attention_mask=False,
            verbose=False,
        )
        cut += sum(bool(each.overflowing) for each in encoded.encodings)
        # As arrays, since lists of Python numbers take ten times the memory.
        rows += (
            {name: np.array(ids, dtype=np.int32) for name, ids in zip(encoded, each, strict=True)}
            for each in zip(*encoded.values(), strict=True)
        )
        if settings.pooling == "mean":
            for row, each in zip(rows[start:], encoded.encodings, strict=True):
                row["spans"] = np.array([_span(each.sequence_ids, n) for n in range(len(columns))])
    if split == "train":
        mean, deviation = _scale(data)
        for row, label in zip(rows, frame["label"], strict=True):
            # The loss goes by the type: squared error of floats, cross-entropy of integers.
            row["labels"] = int(label) if data.task.labels else (label - mean) / deviation
    limit = "max_length" if longest == settings.max_length else "the rows of pre-training"
    of = f"{cut:,} of {len(rows):,} rows of {split} are cut at {longest} tokens ({limit})"
    return Encoded(rows, f"{data.task.title}: {of}." if cut else "")


def _span(parts: Sequence[int | None], text: int) -> tuple[int, int]:
    """Where a text's tokens begin and end; of one without any, the classification token."""
    begin = parts.index(text) if text in parts else 0
    return begin, begin + max(1, parts.count(text))


def judge(
    data: TaskData, split: str, encoded: Encoded, outputs: Sequence[Array]
) -> tuple[dict[str, float], pd.DataFrame]:
    """Scores (none of a test split), and a prediction a row."""
    task, frame = data.task, data.splits[split]
    mean, deviation = _scale(data)
    (output,) = outputs
    said = output.argmax(axis=1) if task.labels else output[:, 0].astype(float) * deviation + mean
    scores = score(task.metrics, frame["label"].to_numpy(), said) if "label" in frame else {}
    rows = frame[["key"]].assign(prediction=said).join(frame.filter(["label"]))
    if task.labels:
        names = rows.columns.drop("key")
        rows[names] = rows[names].map(lambda number: task.labels[number])
    return scores, rows
