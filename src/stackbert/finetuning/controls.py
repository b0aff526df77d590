"""What knows the words of a text but not their order: scores that an encoder has to beat."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import hstack

from stackbert.finetuning import sentences, squad
from stackbert.finetuning.tasks import TaskData

GUESSING = "guessing"
_WORD = r"\w+|[^\w\s]"
Scores = dict[str, dict[str, dict[str, float]]]  # by control, dev split and metric


def control_scores(data: TaskData) -> Scores:
    """Scores of controls without an encoder, fitted on the training rows.

    "guessing": always the commonest answer of the split. Of SQuAD only this. "bag of words":
    logistic regression (of numbers ridge regression) on the TF-IDF of the words, of a pair on those
    of both texts. "word overlap", of pairs: the same on the shares of words that the texts have in
    common, of the first, of the second and of both.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # of the extra
    from sklearn.linear_model import LogisticRegression, Ridge

    dev = {split: frame for split, frame in data.splits.items() if split.startswith("dev")}
    guess = squad.guess if data.task.kind == "span" else sentences.guess
    found: Scores = {GUESSING: {split: guess(data, split) for split in dev}}
    if data.task.kind == "span":
        return found
    train = data.splits["train"]
    columns = [name for name in ("text", "text_pair") if name in train]
    words = TfidfVectorizer(token_pattern=_WORD).fit(pd.concat([train[n] for n in columns]))
    features: dict[str, Callable[[pd.DataFrame], Any]] = {
        "bag of words": lambda frame: hstack([words.transform(frame[n]) for n in columns]).tocsr()
    }
    if len(columns) == 2:
        features["word overlap"] = _overlap
    for name, of in features.items():
        fitted = LogisticRegression(max_iter=1000) if data.task.labels else Ridge()
        fitted.fit(of(train), train["label"])
        found[name] = {
            split: sentences.score(
                data.task.metrics, frame["label"].to_numpy(), fitted.predict(of(frame))
            )
            for split, frame in dev.items()
        }
    return found


def _overlap(frame: pd.DataFrame) -> "np.ndarray[Any, Any]":
    rows = []
    for pair in zip(frame["text"], frame["text_pair"], strict=True):
        first, second = (set(re.findall(_WORD, text.lower())) for text in pair)
        common = len(first & second)
        rows.append((common / len(first), common / len(second), common / len(first | second)))
    return np.array(rows)
