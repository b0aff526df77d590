"""One pass of a model over the sentences: its measures, and the rows that likeness needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stackbert.attention.likeness import SENTENCES, RowSample
from stackbert.attention.maps import BATCH_TOKENS, attention_maps
from stackbert.attention.measures import MeasureSums
from stackbert.attention.result import Measures
from stackbert.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Material:
    """What every model of an analysis looks at, so that all are measured on the same."""

    sentences: Sequence[str]
    tokenizer: Any
    max_length: int
    seed: int
    batch_tokens: int = BATCH_TOKENS
    sampled: int = SENTENCES
    """Sentences from the first on of which rows are kept."""


@dataclass(frozen=True)
class Observed:
    """A model's measures and rows."""

    measures: Measures
    rows: RowSample


def observe(
    model: "PreTrainedModel", name: str, material: Material, *, only_sampled: bool = False
) -> Observed:
    """Run a model over the sentences.

    Args:
        model: left as it was.
        name: of the model, for the result.
        material: the sentences.
        only_sampled: leave out the sentences of which no rows are kept.

    Raises:
        UserError: as `attention_maps`, or no sentence has a token.
    """
    sums = MeasureSums()
    rows = RowSample(name, material.seed, material.sampled)
    sentences = material.sentences[: material.sampled] if only_sampled else material.sentences
    for sentence in attention_maps(
        model,
        material.tokenizer,
        sentences,
        batch_tokens=material.batch_tokens,
        max_length=material.max_length,
    ):
        sums.add(sentence)
        rows.add(sentence)
    if not rows.rows:
        raise UserError("None of the sentences has a token, so there is nothing to measure.")
    return Observed(sums.measures(), rows)
