"""Measuring where a model's heads look: the door of this package."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stackbert.attention.likeness import SENTENCES, likeness, shallow_and_deep, top_and_bottom
from stackbert.attention.loading import Subject, check_same_tokenizer, open_subject
from stackbert.attention.maps import BATCH_TOKENS, longest_sentence
from stackbert.attention.observe import Material, Observed, observe
from stackbert.attention.result import (
    AttentionResult,
    Comparison,
    GrowthAttention,
    ModelInfo,
    Untrained,
)
from stackbert.attention.sentences import sample_sentences
from stackbert.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def measure_attention(
    model: "str | Path | PreTrainedModel",
    *,
    text: str | Path | Sequence[str],
    tokenizer: Any = None,  # noqa: ANN401 (a transformers tokenizer or a folder)
    sentences: int = 256,
    max_length: int = 128,
    seed: int = 0,
    compare: "str | Path | PreTrainedModel | None" = None,
    beside: Sequence[str | Path] = (),
    batch_tokens: int = BATCH_TOKENS,
    say: Callable[[str], None] = lambda _: None,
) -> AttentionResult:
    """Measure where each head of an encoder looks, and how alike its layers are.

    The paper (Gong et al. 2019, section 3) stacks because it saw, on one sentence, that most heads
    look at their neighbours or at [CLS], that top layers look like bottom layers and a shallow
    model like a deep one. This puts numbers to the three; `statements` says them.

    Args:
        model: a Hugging Face checkpoint folder, a run directory (its final model is measured, and
            what each growth did to the maps), or a transformers encoder, which is left as it was.
        text: a file, folder or pattern (as `build_corpus` takes them), of which a random sample of
            sentences of at least 12 tokens is taken; or a list of sentences, all taken as they are.
        tokenizer: the model's; by default the one in its folder.
        sentences: to sample from a text; fewer if it has fewer.
        max_length: tokens of a sentence, special ones included; longer ones are cut, also at what
            the model allows.
        seed: of the sample, of the rows kept for likeness and of the untrained model.
        compare: a second model of the same tokenizer, shallower or deeper, to hold beside it.
        beside: further run directories of the same tokenizer, if `model` is one: what their
            growths did to the maps, on the same sentences, as other growth operators do it.
        batch_tokens: tokens of a forward pass; memory grows with it.
        say: told what is being done.

    Returns:
        Measures by layer and head, likeness of the layers, the same of an untrained model of the
        same config, of the second model and of each growth of the runs.

    Raises:
        UserError: the model cannot be opened or gives no attention weights, the text has no long
            sentences, the models have different tokenizers, or there are runs beside something
            that is no run or never grew.
    """
    from stackbert.attention.growth import observe_growths
    from stackbert.attention.runs import common_length, open_runs

    runs = open_runs(model, beside)
    subject = open_subject(model, tokenizer)
    other = _open_other(subject, compare)
    max_length = common_length(list(runs.values())[1:], subject.tokenizer, max_length)
    material = _material(
        [subject, *([other] if other else [])], text, sentences, max_length, seed, batch_tokens
    )
    many = f"{len(material.sentences):,} sentences"
    info, blueprint = subject.info, subject.blueprint
    say(f"{many} through {info.name} ({info.depth} layers)")
    observed = observe(subject.model, info.name, material)
    # Of a model that was loaded here nothing is held on to while the next is in memory.
    del subject
    say("an untrained model of the same config")
    fresh = observe(blueprint.untrained(seed), "untrained", material, only_sampled=True)
    own = likeness(observed.rows, observed.rows)
    to_fresh = likeness(observed.rows, fresh.rows)
    fresh_own = likeness(fresh.rows, fresh.rows)
    result = AttentionResult(
        model=info,
        text="given" if _is_list(text) else Path(str(text)).name,
        seed=seed,
        max_length=material.max_length,
        measures=observed.measures,
        likeness=own,
        contrast=top_and_bottom(own, to_fresh, fresh_own, seed=seed),
        untrained=Untrained(fresh.measures, to_fresh),
    )
    if other is not None:
        say(f"{many} through {other.info.name} ({other.info.depth} layers)")
        result = replace(result, other=_compare(info, observed, other, fresh, material))
        del other
    growths: list[GrowthAttention] = []
    for name, folder in runs.items():
        say("the run's growths" if len(runs) == 1 else f"the growths of {name} ({folder})")
        growths += observe_growths(folder, material, name=name)
    return replace(result, growths=tuple(growths))


def _is_list(text: str | Path | Sequence[str]) -> bool:
    return not isinstance(text, str | Path)


def _open_other(subject: Subject, compare: "str | Path | PreTrainedModel | None") -> Subject | None:
    if compare is None:
        return None
    given = isinstance(compare, str | Path)
    other = open_subject(compare, None if given else subject.tokenizer)
    check_same_tokenizer(subject.tokenizer, other.tokenizer)
    return other


def _material(
    subjects: list[Subject],
    text: str | Path | Sequence[str],
    count: int,
    max_length: int,
    seed: int,
    batch_tokens: int,
) -> Material:
    tokenizer = subjects[0].tokenizer
    if isinstance(text, str | Path):
        chosen = sample_sentences(text, tokenizer, count, seed=seed)
    else:
        chosen = list(text)
    if not chosen:
        raise UserError("The list of sentences is empty; give at least one.")
    longest = min(longest_sentence(each.model, each.tokenizer, max_length) for each in subjects)
    return Material(chosen, tokenizer, longest, seed, batch_tokens, SENTENCES)


def _compare(
    info: ModelInfo, observed: Observed, other: Subject, fresh: Observed, material: Material
) -> Comparison:
    seen = observe(other.model, other.info.name, material)
    between = likeness(observed.rows, seen.rows)
    deeper = observed if info.depth > other.info.depth else seen
    return Comparison(
        model=other.info,
        measures=seen.measures,
        likeness=between,
        contrast=shallow_and_deep(between, likeness(deeper.rows, fresh.rows), seed=material.seed),
    )
