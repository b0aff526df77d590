"""Questions about paragraphs, as rows: a long paragraph becomes several windows that overlap.

The tokenizer's own overflow makes the windows. Every character of a paragraph is in one of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stackbert.errors import UserError
from stackbert.finetuning.examples import SquadExample
from stackbert.finetuning.work import Array, Row

if TYPE_CHECKING:
    from stackbert.finetuning.heads import Opened

_TOGETHER = 200
_LEAST_ROOM = 8
"""Tokens of a paragraph that a window must have beside the question."""


@dataclass(frozen=True)
class Window:
    """A row: a question with a piece of its paragraph."""

    example: int
    """Place of the question among the split's."""
    row: Row
    """Without labels."""
    offsets: Array
    """(tokens, 2): where each token of the paragraph begins and ends in it, in characters; -1 for
    tokens that are not of the paragraph."""
    first: int
    """Position of the classification token, which stands for "no answer"."""

    def span_of(self, begin: int, end: int) -> tuple[int, int] | None:
        """Positions of the first and the last token of the characters `begin` to `end`.

        None unless all of them lie in this window.
        """
        starts, ends = self.offsets[:, 0], self.offsets[:, 1]
        inside = np.flatnonzero(starts >= 0)
        if not len(inside) or starts[inside[0]] > begin or ends[inside[-1]] < end:
            return None
        reached = inside[(ends[inside] > begin) & (starts[inside] < end)]
        return (int(reached[0]), int(reached[-1])) if len(reached) else None


@dataclass(frozen=True)
class Windows:
    """The windows of a split, those of a question one after the other."""

    windows: tuple[Window, ...]
    cut_questions: int
    """Questions that had to be shortened."""


def make_windows(
    examples: Sequence[SquadExample], opened: "Opened", *, max_length: int, stride: int
) -> Windows:
    """Lay paragraphs out in windows.

    A question keeps at most half of a window: a longer one loses its end, and is counted. Where
    questions leave little room, windows overlap by half of it at most, so that they move on.

    Args:
        examples: the questions.
        opened: the model with its tokenizer.
        max_length: tokens of a window, question and special tokens included.
        stride: tokens that a window shares with the one before.

    Raises:
        UserError: the length leaves no room for a paragraph.
    """
    tokenizer = opened.tokenizer
    longest = opened.longest(max_length)
    special = int(tokenizer.num_special_tokens_to_add(pair=True))
    most = (longest - special) // 2
    if most < _LEAST_ROOM:
        raise UserError(
            f"Rows of {longest} tokens leave no room for a paragraph beside a question. Set a "
            "longer max_length, or take a model with more positions."
        )
    questions, lengths, cut = _questions(examples, tokenizer, most)
    windows: list[Window] = []
    for start in range(0, len(examples), _TOGETHER):
        places = range(start, min(start + _TOGETHER, len(examples)))
        # One stride for a call: the shortest room of these questions decides.
        room = longest - special - max(lengths[place] for place in places)
        encoded = tokenizer(
            [questions[place] for place in places],
            [examples[place].context for place in places],
            truncation="only_second",
            max_length=longest,
            stride=min(stride, room // 2),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_token_type_ids=opened.takes_types,
            return_attention_mask=False,
            padding=False,
            verbose=False,
        )
        for at, sample in enumerate(encoded["overflow_to_sample_mapping"]):
            windows.append(_window(encoded, at, start + int(sample), tokenizer.cls_token_id))
    return Windows(tuple(windows), cut)


def labelled(windows: Windows, examples: Sequence[SquadExample]) -> list[Row]:
    """Rows with the positions of the answer, for training.

    A window that does not hold the whole answer points at its classification token, as for a
    question without an answer.

    Args:
        windows: of `examples`.
        examples: with at least one answer each, or impossible; the first answer counts.
    """
    rows = []
    for window in windows.windows:
        example = examples[window.example]
        span = None
        if example.answers:
            begin = example.starts[0]
            span = window.span_of(begin, begin + len(example.answers[0]))
        start, end = span or (window.first, window.first)
        rows.append({**window.row, "start_positions": start, "end_positions": end})
    return rows


def _questions(
    examples: Sequence[SquadExample],
    tokenizer: Any,  # noqa: ANN401
    most: int,
) -> tuple[list[str], list[int], int]:
    """Questions of at most `most` tokens, their numbers of tokens, and how many were cut."""
    # Some of the original's questions begin with blanks, which would take part in nothing.
    texts = [example.question.lstrip() for example in examples]
    lengths, cut = [], 0
    for start in range(0, len(texts), _TOGETHER):
        encoded = tokenizer(
            texts[start : start + _TOGETHER],
            add_special_tokens=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        for at, offsets in enumerate(encoded["offset_mapping"]):
            if len(offsets) > most:
                texts[start + at] = texts[start + at][: offsets[most - 1][1]]
                cut += 1
            lengths.append(min(len(offsets), most))
    return texts, lengths, cut


def _window(encoded: Any, at: int, example: int, classification: int | None) -> Window:  # noqa: ANN401
    ids = np.array(encoded["input_ids"][at], dtype=np.int32)
    row: Row = {"input_ids": ids}
    if "token_type_ids" in encoded:
        row["token_type_ids"] = np.array(encoded["token_type_ids"][at], dtype=np.int32)
    offsets = np.array(encoded["offset_mapping"][at], dtype=np.int32).reshape(-1, 2)
    of_context = np.array([part == 1 for part in encoded.sequence_ids(at)])
    offsets[~of_context] = -1
    found = [] if classification is None else np.flatnonzero(ids == classification).tolist()
    return Window(example, row, offsets, found[0] if found else 0)
