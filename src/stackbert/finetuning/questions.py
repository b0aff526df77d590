"""SQuAD as a task of the study: windows to train on, answers read out of them, official scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from stackbert.finetuning.examples import SquadSplit
from stackbert.finetuning.fingerprints import content_of
from stackbert.finetuning.settings import SQUAD_V2, FinetuneSettings
from stackbert.finetuning.squad_answers import Answer, read_answers
from stackbert.finetuning.squad_metrics import squad_scores, with_threshold
from stackbert.finetuning.squad_windows import Windows, labelled, make_windows
from stackbert.finetuning.work import TRAIN, Array, Head, Judged, Row, Scores

if TYPE_CHECKING:
    from stackbert.finetuning.heads import Opened

THRESHOLD = 0.0
"""Of v2.0: "no answer" is said where it is above the best answer by more than this. Scores at the
threshold that is best on the very split they are of stand beside, as "best_f1" and "best_exact"."""


@dataclass(frozen=True)
class QuestionWork:
    """SQuAD v1.1 or v2.0 with its data."""

    name: str
    """"squad" or "squad-v2"."""
    data: Mapping[str, SquadSplit]
    """At least "train"."""

    @property
    def title(self) -> str:
        """With its version."""
        return "SQuAD v2.0" if self.name == SQUAD_V2 else "SQuAD v1.1"

    @property
    def metrics(self) -> tuple[str, ...]:
        """F1 is the one that people quote first."""
        return ("f1", "exact_match")

    @property
    def head(self) -> Head:
        """A start and an end."""
        return Head("span")

    @property
    def sizes(self) -> Mapping[str, int]:
        """Questions of each split."""
        return {name: len(split.examples) for name, split in self.data.items()}

    @cached_property
    def fingerprints(self) -> Mapping[str, str]:
        """Of each split."""
        return {name: content_of(split.examples) for name, split in self.data.items()}

    @cached_property
    def guess(self) -> Mapping[str, Scores]:
        """What saying that there is never an answer scores."""
        return {
            name: squad_scores(split, {example.key: "" for example in split.examples})
            for name, split in self.data.items()
            if name != TRAIN and _is_labelled(split)
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """None."""
        return ()

    def encode(
        self, opened: "Opened", settings: FinetuneSettings, splits: Sequence[str]
    ) -> "EncodedQuestions":
        """Windows for a model."""
        windows = {
            name: make_windows(
                self.data[name].examples,
                opened,
                max_length=settings.max_length,
                stride=settings.stride,
            )
            for name in (TRAIN, *splits)
        }
        notes = [
            f"{self.title}: {made.cut_questions:,} of {self.sizes[name]:,} questions of {name} are "
            "longer than half a row and lost their end."
            for name, made in windows.items()
            if made.cut_questions
        ]
        train = labelled(windows.pop(TRAIN), self.data[TRAIN].examples)
        return EncodedQuestions(self, train, windows, tuple(notes), settings)


@dataclass(frozen=True)
class EncodedQuestions:
    """The windows of SQuAD's splits."""

    work: QuestionWork
    train: Sequence[Row]
    windows: Mapping[str, Windows]
    notes: tuple[str, ...]
    settings: FinetuneSettings

    @property
    def splits(self) -> Mapping[str, Sequence[Row]]:
        """The windows' rows."""
        return {name: [w.row for w in made.windows] for name, made in self.windows.items()}

    def judge(self, split: str, outputs: Sequence[Array]) -> Judged:
        """Answers and their scores."""
        starts, ends = outputs
        data = self.work.data[split]
        answers = read_answers(
            data.examples,
            self.windows[split],
            list(starts),
            list(ends),
            max_answer=self.settings.max_answer,
            number=self.settings.candidates,
        )
        best = {answer.key: answer.text for answer in answers}
        none = {answer.key: answer.no_answer for answer in answers}
        is_v2 = self.work.name == SQUAD_V2
        said = with_threshold(best, none, THRESHOLD) if is_v2 else best
        rows = [self._prediction(answer, said[answer.key], is_v2) for answer in answers]
        if not _is_labelled(data):
            return Judged({}, rows)
        scores = squad_scores(data, said)
        if is_v2 and data.has_impossible:
            found = squad_scores(data, best, none)
            scores |= {name: value for name, value in found.items() if name.startswith("best_")}
        return Judged(scores, rows)

    def _prediction(self, answer: Answer, said: str, is_v2: bool) -> dict[str, object]:
        row: dict[str, object] = {
            "key": answer.key,
            "prediction": said,
            "candidates": [[each.text, round(each.score, 4)] for each in answer.candidates[:3]],
        }
        return {**row, "no_answer": round(answer.no_answer, 4)} if is_v2 else row


def _is_labelled(split: SquadSplit) -> bool:
    return all(example.answers or example.impossible for example in split.examples)
