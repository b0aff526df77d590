"""From starts and ends in windows to answers: the best spans, and how likely there is none."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stackbert.finetuning.examples import SquadExample
from stackbert.finetuning.squad_windows import Window, Windows
from stackbert.finetuning.work import Array


@dataclass(frozen=True)
class Candidate:
    """A possible answer."""

    text: str
    """As it stands in the paragraph."""
    score: float
    """Sum of the start's and the end's logit."""


@dataclass(frozen=True)
class Answer:
    """What a model says to one question."""

    key: str
    candidates: tuple[Candidate, ...]
    """Best first, each text once; never the empty one. None if no span was possible."""
    no_answer: float
    """How much "no answer" is above the best candidate, as a sum of logits; the higher, the
    likelier there is none."""

    @property
    def text(self) -> str:
        """The best candidate's, whether or not there may be no answer."""
        return self.candidates[0].text if self.candidates else ""


def read_answers(
    examples: Sequence[SquadExample],
    windows: Windows,
    starts: Sequence[Array],
    ends: Sequence[Array],
    *,
    max_answer: int,
    number: int,
) -> list[Answer]:
    """The answers to all questions.

    A span begins and ends in the paragraph of one window and has at most `max_answer` tokens; the
    best over all of a question's windows wins. "No answer" is what the classification token gets in
    the window that rules an answer out the least (Devlin et al. 2019, section 4.3, and their code).

    Args:
        examples: the questions.
        windows: of the questions.
        starts: logits of each window, (tokens or more,); what lies behind its tokens is padding.
        ends: the same of ends.
        max_answer: tokens.
        number: starts and ends tried in each window, and candidates kept.
    """
    found: list[list[Candidate]] = [[] for _ in examples]
    nothing = [np.inf] * len(examples)
    for window, start, end in zip(windows.windows, starts, ends, strict=True):
        found[window.example] += _spans(
            examples[window.example].context, window, start, end, max_answer, number
        )
        none = float(start[window.first]) + float(end[window.first])
        nothing[window.example] = min(nothing[window.example], none)
    return [
        _answer(example.key, some, none, number)
        for example, some, none in zip(examples, found, nothing, strict=True)
    ]


def _answer(key: str, found: list[Candidate], none: float, number: int) -> Answer:
    best: dict[str, Candidate] = {}
    for candidate in sorted(found, key=lambda each: -each.score):
        best.setdefault(candidate.text, candidate)
    kept = tuple(best.values())[:number]
    # Without any span there is nothing that "no answer" could be below.
    return Answer(key, kept, none - kept[0].score if kept else float(np.finfo(np.float32).max))


def _spans(
    context: str, window: Window, start: Array, end: Array, max_answer: int, number: int
) -> list[Candidate]:
    inside = np.flatnonzero(window.offsets[:, 0] >= 0)
    begins = _best(start, inside, number)
    finishes = _best(end, inside, number)
    lengths = finishes[None] - begins[:, None]
    first, last = np.nonzero((lengths >= 0) & (lengths < max_answer))
    candidates = []
    for begin, finish in zip(begins[first], finishes[last], strict=True):
        text = context[window.offsets[begin, 0] : window.offsets[finish, 1]]
        if text.strip():
            candidates.append(Candidate(text, float(start[begin]) + float(end[finish])))
    candidates.sort(key=lambda each: -each.score)
    return candidates[:number]


def _best(logits: Array, inside: Array, number: int) -> Array:
    """Positions of the highest logits among `inside`; of equal ones the first."""
    order = np.argsort(-logits[inside], kind="stable")
    positions: Array = inside[order[:number]]
    return positions
