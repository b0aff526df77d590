"""The sentences whose maps are shown, and their maps.

A result holds no maps, only what was measured on them; those of a few sentences are made anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stackbert.attention.moments import MOMENTS, GrowthMaps
from stackbert.attention.result import AttentionResult, GrowthAttention, SentenceMaps

COUNT = 8
"""Sentences shown."""
LONGEST = 32
"""Tokens of a sentence that is shown: with more, their labels could not be read."""
_SMALL = 20
"""Tokens at most of the one that is drawn several times beside itself."""


@dataclass(frozen=True)
class Examples:
    """Maps of some sentences, for drawing."""

    sentences: tuple[SentenceMaps, ...]
    """Of the model measured."""
    growths: tuple[GrowthMaps, ...] = ()
    """Of the small one of them, at each growth of `AttentionResult.growths`, in their order; or
    none, and no growth is drawn."""

    @property
    def small(self) -> SentenceMaps:
        """The one for heat maps beside each other."""
        return self.sentences[small_sentence([len(each.tokens) for each in self.sentences])]


def choose_sentences(
    sentences: Sequence[str],
    tokenizer: Any,  # noqa: ANN401 (any transformers tokenizer)
    count: int = COUNT,
    longest: int = LONGEST,
) -> list[str]:
    """The first `count` sentences that have at most `longest` tokens.

    If there are fewer, the first of the longer ones follow; they are cut when they are drawn.
    """
    from stackbert.attention.maps import encode_sentences

    lengths = [len(ids) for ids in encode_sentences(tokenizer, sentences, longest + 1)]
    order = sorted(range(len(sentences)), key=lambda place: lengths[place] > longest)
    return [sentences[place] for place in order[:count]]


def small_sentence(lengths: Sequence[int]) -> int:
    """Place of the first sentence that is short enough to be drawn small, or of the shortest."""
    for place, length in enumerate(lengths):
        if length <= _SMALL:
            return place
    return min(range(len(lengths)), key=lambda place: lengths[place])


def collect_examples(
    model: str | Path,
    text: str | Path,
    result: AttentionResult,
    sentences: int,
    beside: Sequence[str | Path] = (),
) -> Examples:
    """The maps of a few of the sentences that a result was measured on.

    Args:
        model: the folder that was measured; of a run directory the maps at its growths are made,
            too.
        text: the text that was measured on.
        result: what was found; says seed and length.
        sentences: as many as were asked for in measuring, so that the sample is the same.
        beside: the runs that were measured beside `model`.

    Raises:
        UserError: as `measure_attention`.
    """
    from stackbert.attention.loading import open_subject
    from stackbert.attention.maps import attention_maps
    from stackbert.attention.runs import open_runs
    from stackbert.attention.sentences import sample_sentences

    subject = open_subject(model)
    tokenizer = subject.tokenizer
    length = min(LONGEST, result.max_length)
    sample = sample_sentences(text, tokenizer, sentences, seed=result.seed)
    chosen = choose_sentences(sample, tokenizer, longest=length)
    maps = sorted(
        attention_maps(subject.model, tokenizer, chosen, max_length=length),
        key=lambda each: each.index,
    )
    del subject
    small = chosen[maps[small_sentence([len(each.tokens) for each in maps])].index]
    runs = open_runs(model, beside)
    growths = (
        growth_maps(runs[growth.run], growth, small, tokenizer, max_length=length)
        for growth in result.growths
    )
    return Examples(tuple(maps), tuple(growths))


def growth_maps(
    run: str | Path,
    growth: GrowthAttention,
    sentence: str,
    tokenizer: Any,  # noqa: ANN401
    *,
    max_length: int = LONGEST,
) -> GrowthMaps:
    """The maps of one sentence at the moments of a run's growth.

    Args:
        run: the run directory.
        growth: what was measured of the growth.
        sentence: to look at.
        tokenizer: the run's.
        max_length: tokens of it at most.

    Raises:
        UserError: a checkpoint of the run is missing or damaged.
    """
    from stackbert.attention.growth import FINAL, moment_models
    from stackbert.attention.maps import attention_maps

    models = moment_models(Path(run), growth.step)
    models.setdefault("next", models[FINAL])  # the last stage ends with the final model
    moments = {
        moment: next(attention_maps(models[moment], tokenizer, [sentence], max_length=max_length))
        for moment in MOMENTS
    }
    return GrowthMaps(growth.label, moments, growth.moment("grown").origins, growth.weights)
