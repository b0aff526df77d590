"""What a data set is once it is read: examples with text, in splits with a name."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """One row of a classification or regression data set.

    Attributes:
        key: the index or id column where there is one, else the row's number, from 0. Predictions
            go by it.
        first: the sentence, or the first of a pair; never blank.
        second: the other sentence of a pair; None of a single sentence.
        label: a class's number (its place in `Task.labels`), a number to predict, or None where
            the label is unknown, as in every test split.
    """

    key: str
    first: str
    second: str | None
    label: int | float | None


@dataclass(frozen=True)
class Split:
    """The rows of one file.

    Attributes:
        name: "train", "dev", "test", "dev_mismatched" or "test_mismatched".
        source: the file or data set it was read from, as messages show it.
        examples: in the file's order.
        notes: sentences the user should see (rows left out, a split cut from another).
    """

    name: str
    source: str
    examples: tuple[Example, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SquadExample:
    """One question about one paragraph.

    Attributes:
        key: the question's id.
        title: the article's title; "" where the file has none.
        context: the paragraph, as it stands in the file.
        question: the question, as it stands in the file.
        answers: every answer given, each found in `context`; empty where none is known.
        starts: where each answer starts in `context`, in characters.
        impossible: whether the paragraph holds no answer (v2.0).
    """

    key: str
    title: str
    context: str
    question: str
    answers: tuple[str, ...]
    starts: tuple[int, ...]
    impossible: bool


@dataclass(frozen=True)
class SquadSplit:
    """The questions of one file.

    Attributes:
        name: "train", "dev" or "test".
        source: the file, as messages show it.
        examples: in the file's order.
    """

    name: str
    source: str
    examples: tuple[SquadExample, ...]

    @property
    def has_impossible(self) -> bool:
        """Whether any question has no answer: what tells v2.0 from v1.1."""
        return any(example.impossible for example in self.examples)
