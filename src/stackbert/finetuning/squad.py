"""SQuAD v1.1 and v2.0: windows over long paragraphs, answers read out of them, official scores."""

import json
import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from stackbert.errors import UserError
from stackbert.files import reading
from stackbert.finetuning.models import Encoded, Opened
from stackbert.finetuning.tasks import Settings, Task, TaskData

Array = npt.NDArray[Any]
_TOGETHER = 200
"""Questions that are tokenised at once; the offsets of all would not fit into memory."""
_LEAST_ROOM = 8
"""Tokens of a paragraph that a window must have room for."""
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def load_squad(task: Task, folder: Path) -> TaskData:
    """The official files in a folder: train-v1.1.json, dev-v1.1.json, or -v2.0."""
    splits = {}
    for split in ("train", "dev", "test"):
        path = folder / f"{split}-{task.title.split()[1]}.json"
        if path.is_file():
            splits[split] = _read(path, task, split)
        elif split != "test":
            raise UserError(f"{folder} has no {path.name}, which {task.title} takes.")
    return TaskData(task, splits)


def _read(path: Path, task: Task, split: str) -> pd.DataFrame:
    rows: dict[str, dict[str, Any]] = {}
    with reading(path, "SQuAD's layout is data, paragraphs, context and qas, id and question."):
        articles = json.loads(path.read_bytes())["data"]
        for paragraph in (paragraph for article in articles for paragraph in article["paragraphs"]):
            for question in paragraph["qas"]:
                where = f"{path}, question {question['id']}"
                answers = question.get("answers", []) if split != "test" else []
                for answer in answers:
                    begin = answer["answer_start"]
                    if paragraph["context"][begin : begin + len(answer["text"])] != answer["text"]:
                        raise UserError(f"{where}: the answer does not stand at {begin}.")
                if not answers and task.name == "squad" and split != "test":
                    raise UserError(f"{where} has no answer. Of v2.0 the task is squad-v2.")
                rows[question["id"]] = {
                    "key": question["id"],
                    "text": question["question"].lstrip(),
                    "context": paragraph["context"],
                    "answers": [answer["text"] for answer in answers],
                    "start": answers[0]["answer_start"] if answers else 0,
                }
    if not rows:
        raise UserError(f"{path} has no questions.")
    return pd.DataFrame(rows.values())


class Window(NamedTuple):
    """A row: a question with a piece of its paragraph."""

    question: int
    """Its place in the split."""
    offsets_S2: Array
    """Where each token of the paragraph begins and ends in it, in characters; else -1."""
    first: int
    """Position of the classification token, which stands for "no answer"."""

    def span_of(self, begin: int, end: int) -> tuple[int, int]:
        """First and last token of these characters; `first` if not all of them are here."""
        starts, ends = self.offsets_S2.T
        inside = np.flatnonzero(starts >= 0)
        reached = inside[(ends[inside] > begin) & (starts[inside] < end)]
        if not len(reached) or starts[inside[0]] > begin or ends[inside[-1]] < end:
            return self.first, self.first
        return int(reached[0]), int(reached[-1])


def encode(data: TaskData, split: str, opened: Opened, settings: Settings) -> Encoded:
    """Lay paragraphs out in windows that overlap; a question keeps at most half of a window."""
    frame, tokenizer = data.splits[split], opened.tokenizer
    longest = min(settings.max_length, opened.positions)
    special = int(tokenizer.num_special_tokens_to_add(pair=True))
    most = (longest - special) // 2
    if most < _LEAST_ROOM:
        raise UserError(f"Rows of {longest} tokens leave no room for a paragraph and a question.")
    names = ["input_ids", *(["token_type_ids"] if opened.takes_types else [])]
    rows: list[dict[str, Any]] = []
    windows, cut = [], 0
    common: Any = {"max_length": longest, "verbose": False, "return_offsets_mapping": True}
    for start in range(0, len(frame), _TOGETHER):
        some = frame.iloc[start : start + _TOGETHER]
        asked = list(some["text"])
        plain = tokenizer(asked, add_special_tokens=False, **common)
        lengths = [min(most, len(ids)) for ids in plain["input_ids"]]
        for place, offsets in enumerate(plain["offset_mapping"]):
            if len(offsets) > most:
                asked[place] = asked[place][: offsets[most - 1][1]]
                cut += 1
        encoded = tokenizer(
            asked,
            list(some["context"]),
            truncation="only_second",
            # At most half of the room for the paragraph, so that windows move on.
            stride=min(settings.stride, (longest - special - max(lengths)) // 2),
            return_overflowing_tokens=True,
            return_token_type_ids=opened.takes_types,
            return_attention_mask=False,
            **common,
        )
        for at, place in enumerate(encoded["overflow_to_sample_mapping"]):
            row: dict[str, Any] = {n: np.array(encoded[n][at], dtype=np.int32) for n in names}
            offsets_S2 = np.array(encoded["offset_mapping"][at], dtype=np.int32).reshape(-1, 2)
            offsets_S2[[part != 1 for part in encoded.sequence_ids(at)]] = -1
            first = np.flatnonzero(row["input_ids"] == tokenizer.cls_token_id)
            window = Window(start + place, offsets_S2, int(first[0]) if len(first) else 0)
            if split == "train":
                begin, answers = int(some["start"].iloc[place]), some["answers"].iloc[place]
                first_token, last_token = window.span_of(begin, begin + len((*answers, "")[0]))
                row |= {"start_positions": first_token, "end_positions": last_token}
            rows.append(row)
            windows.append(window)
    note = f"{data.task.title}: {cut:,} questions of {split} are too long and lose their end."
    return Encoded(rows, note if cut else "", windows)


def judge(
    data: TaskData, split: str, encoded: Encoded, outputs: Sequence[Array], settings: Settings
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Scores (none of a test split), and a prediction a question.

    The best span over a question's windows wins. In v2.0 there is no answer where the
    classification token's logits are above it in every window (Devlin et al. 2019, section 4.3).
    """
    frame = data.splits[split]
    spans: list[dict[str, float]] = [{"": -math.inf} for _ in range(len(frame))]
    none = np.full(len(frame), np.inf)
    for window, start_S, end_S in zip(encoded.windows, *outputs, strict=True):
        question = window.question
        for text, value in _spans(frame["context"][question], window, start_S, end_S, settings):
            spans[question][text] = max(value, spans[question].get(text, -math.inf))
        at_first = float(start_S[window.first]) + float(end_S[window.first])
        none[question] = min(none[question], at_first)
    best = [max(found, key=lambda text: found[text]) for found in spans]
    # How far "no answer" is above the best span; without any span, by more than can be.
    highest = [found[text] for found, text in zip(spans, best, strict=True)]
    surplus = np.minimum(none - np.array(highest), float(np.finfo(np.float32).max))
    is_v2 = data.task.name == "squad-v2"
    said = ["" if is_v2 and over > 0 else text for text, over in zip(best, surplus, strict=True)]
    rows = [
        {"key": key, "prediction": text, "no_answer": float(over)}
        for key, text, over in zip(frame["key"], said, surplus, strict=True)
    ]
    if split.startswith("test"):
        return {}, rows
    return squad_scores(list(frame["answers"]), said), rows


def guess(data: TaskData, split: str) -> dict[str, float]:
    """What saying that there is never an answer scores."""
    answers = list(data.splits[split]["answers"])
    return squad_scores(answers, [""] * len(answers))


def _spans(
    context: str, window: Window, start_S: Array, end_S: Array, settings: Settings
) -> list[tuple[str, float]]:
    inside = np.flatnonzero(window.offsets_S2[:, 0] >= 0)
    begins, ends = (
        inside[np.argsort(-logits_S[inside], kind="stable")[: settings.candidates]]
        for logits_S in (start_S, end_S)
    )
    lengths = ends[None] - begins[:, None]
    found = []
    for b, e in zip(*np.nonzero((lengths >= 0) & (lengths < settings.max_answer)), strict=True):
        text = context[window.offsets_S2[begins[b], 0] : window.offsets_S2[ends[e], 1]]
        if text.strip():
            found.append((text, float(start_S[begins[b]]) + float(end_S[ends[e]])))
    return sorted(found, key=lambda each: -each[1])[: settings.candidates]


def normalised(answer: str) -> str:
    """An answer as it is compared: lower case, without ASCII punctuation, articles, extra space."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_NO_PUNCTUATION)).split())


def f1(answer: str, truth: str) -> float:
    """Harmonic mean of precision and recall over the words; without words on a side 1 or 0."""
    given, wanted = normalised(answer).split(), normalised(truth).split()
    if not given or not wanted:
        return float(given == wanted)
    same = sum((Counter(given) & Counter(wanted)).values())
    return 2.0 * same / (len(given) + len(wanted))


def _score(truths: Sequence[str], answer: str, is_v2: bool) -> tuple[float, float]:
    """Exact match and F1 of a question (Rajpurkar et al. 2016; Rajpurkar, Jia and Liang 2018)."""
    if is_v2:
        # v2.0 passes over answers that normalise to nothing, and then wants the empty answer.
        truths = [truth for truth in truths if normalised(truth)] or [""]
    exact = max(float(normalised(answer) == normalised(truth)) for truth in truths)
    # v1.1 gives an answer without words no F1, whatever the truth.
    has_words = is_v2 or normalised(answer)
    return exact, max(f1(answer, truth) for truth in truths) if has_words else 0.0


def squad_scores(truths: Sequence[Sequence[str]], answers: Sequence[str]) -> dict[str, float]:
    """The official scores, as fractions; of several truths the closest counts.

    Where some questions have no answer, the scores of both kinds of question come as well.
    """
    is_v2 = not all(truths)
    scores = np.array([_score(t, a, is_v2) for t, a in zip(truths, answers, strict=True)])
    exact, overlap = scores.mean(axis=0)
    found = {"exact_match": exact, "f1": overlap}
    has_answer = np.array([bool(truth) for truth in truths])
    for name, chosen in (("HasAns", has_answer), ("NoAns", ~has_answer)):
        if is_v2 and chosen.any():
            found[f"{name}_exact"], found[f"{name}_f1"] = scores[chosen].mean(axis=0)
    return {name: float(value) for name, value in found.items()}
