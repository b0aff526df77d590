"""SQuAD v1.1 and v2.0: windows over long paragraphs, answers read out of them, official scores."""

import itertools
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
_TOGETHER = 200  # questions tokenised at once; the offsets of all would not fit into memory
_LEAST_ROOM = 8  # tokens of a paragraph that a window must have room for
# As in BERT's released code: tokens that windows share at most, of an answer at most, and the
# likeliest starts and ends that are tried in each window.
_STRIDE, _LONGEST_ANSWER, _CANDIDATES = 128, 30, 20
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def load_squad(task: Task, folder: Path) -> TaskData:
    """The official files in a folder: train-v1.1.json, dev-v1.1.json, or -v2.0."""
    version = task.title.split()[1]
    paths = {split: folder / f"{split}-{version}.json" for split in ("train", "dev", "test")}
    if not paths["test"].is_file():
        del paths["test"]
    return TaskData(task, {split: _read(path, task, split) for split, path in paths.items()})


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

    question: int  # its place in the split
    offsets_S2: Array  # where each token of the paragraph begins and ends in it; of others -1

    def span_of(self, begin: int, end: int) -> tuple[int, int]:
        """First and last token of these characters; (0, 0) if not all of them are here."""
        starts, ends = self.offsets_S2.T
        inside = np.flatnonzero(starts >= 0)
        reached = inside[(ends[inside] > begin) & (starts[inside] < end)]
        if not len(reached) or starts[inside[0]] > begin or ends[inside[-1]] < end:
            return 0, 0  # the classification token, which stands for "no answer"
        return int(reached[0]), int(reached[-1])


def encode(data: TaskData, split: str, opened: Opened, settings: Settings) -> Encoded:
    """Lay paragraphs out in windows that overlap; a question keeps at most half of a window."""
    frame, tokenizer = data.splits[split], opened.tokenizer
    longest = min(settings.max_length, tokenizer.model_max_length)
    room = longest - int(tokenizer.num_special_tokens_to_add(pair=True))
    most = room // 2
    if most < _LEAST_ROOM:
        raise UserError(f"Rows of {longest} tokens leave no room for a paragraph and a question.")
    rows: list[dict[str, Any]] = []
    windows, cut, common = [], 0, {"return_offsets_mapping": True, "return_attention_mask": False}
    for start in range(0, len(frame), _TOGETHER):
        some = frame.iloc[start : start + _TOGETHER]
        short = {"add_special_tokens": False, "truncation": True, "max_length": most}
        plain = tokenizer(list(some["text"]), **short, **common)
        cut += sum(bool(each.overflowing) for each in plain.encodings)
        ends = [offsets[-1][1] if offsets else 0 for offsets in plain["offset_mapping"]]
        encoded = tokenizer(
            [text[:end] for text, end in zip(some["text"], ends, strict=True)],
            list(some["context"]),
            truncation="only_second",
            max_length=longest,
            # At most half of the room for the paragraph, so that windows move on.
            stride=min(_STRIDE, (room - max(map(len, plain["input_ids"]))) // 2),
            return_overflowing_tokens=True,
            **common,
        )
        names = [name for name in tokenizer.model_input_names if name in encoded]
        for at, place in enumerate(encoded["overflow_to_sample_mapping"]):
            row: dict[str, Any] = {n: np.array(encoded[n][at], dtype=np.int32) for n in names}
            offsets_S2 = np.array(encoded["offset_mapping"][at], dtype=np.int32).reshape(-1, 2)
            offsets_S2[[part != 1 for part in encoded.sequence_ids(at)]] = -1
            window = Window(start + place, offsets_S2)
            if split == "train":
                begin, answers = int(some["start"].iloc[place]), some["answers"].iloc[place]
                first, last = window.span_of(begin, begin + len((*answers, "")[0]))
                row |= {"start_positions": first, "end_positions": last}
            rows.append(row)
            windows.append(window)
    note = f"{data.task.title}: {cut:,} questions of {split} are too long and lose their end."
    return Encoded(rows, note if cut else "", windows)


def judge(
    data: TaskData, split: str, encoded: Encoded, outputs: Sequence[Array]
) -> tuple[dict[str, float], pd.DataFrame]:
    """Scores (none of a test split), and a prediction a question.

    The best span over a question's windows wins. In v2.0 there is no answer where the
    classification token's logits are above it in every window (Devlin et al. 2019, section 4.3).
    """
    frame = data.splits[split]
    best = [(-math.inf, "")] * len(frame)
    none = np.full(len(frame), np.inf)
    for window, start_S, end_S in zip(encoded.windows, *outputs, strict=True):
        question = window.question
        found = _best_span(frame["context"][question], window, start_S, end_S)
        best[question] = max(best[question], found, key=lambda each: each[0])
        none[question] = min(none[question], float(start_S[0]) + float(end_S[0]))
    # How far "no answer" is above the best span; without any span, by more than can be.
    surplus = np.minimum(none - [value for value, _ in best], float(np.finfo(np.float32).max))
    lacks = (surplus > 0) & (data.task.name == "squad-v2")
    said = ["" if no else text for (_, text), no in zip(best, lacks, strict=True)]
    rows = frame[["key"]].assign(prediction=said, no_answer=surplus)
    return {} if split == "test" else squad_scores(list(frame["answers"]), said), rows


def guess(data: TaskData, split: str) -> dict[str, float]:
    """What saying that there is never an answer scores."""
    answers = list(data.splits[split]["answers"])
    return squad_scores(answers, [""] * len(answers))


def _best_span(context: str, window: Window, start_S: Array, end_S: Array) -> tuple[float, str]:
    inside = np.flatnonzero(window.offsets_S2[:, 0] >= 0)
    begins, ends = (
        inside[np.argsort(-logits_S[inside], kind="stable")[:_CANDIDATES]]
        for logits_S in (start_S, end_S)
    )
    found = [(-math.inf, "")]
    for begin, end in itertools.product(begins, ends):
        text = context[window.offsets_S2[begin, 0] : window.offsets_S2[end, 1]]
        if 0 <= end - begin < _LONGEST_ANSWER and text.strip():
            found.append((float(start_S[begin]) + float(end_S[end]), text))
    return max(found, key=lambda each: each[0])


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
    if is_v2:
        # v2.0 passes over answers that normalise to nothing, and then wants the empty answer.
        truths = [truth for truth in truths if normalised(truth)] or [""]
    exact = max(float(normalised(answer) == normalised(truth)) for truth in truths)
    # v1.1 gives an answer without words no F1, whatever the truth.
    has_words = is_v2 or normalised(answer)
    return exact, max(f1(answer, truth) for truth in truths) if has_words else 0.0


def squad_scores(truths: Sequence[Sequence[str]], answers: Sequence[str]) -> dict[str, float]:
    """The official scores, as fractions (Rajpurkar et al. 2016; Rajpurkar, Jia and Liang 2018).

    Of several truths the closest counts. Where some questions have no answer, the scores of both
    kinds of question come as well.
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
