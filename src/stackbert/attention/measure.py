"""Measure where a model's heads look, and keep what was found in a folder.

`attention.json` holds the tables, `attention.npz` the maps to be drawn and heads' divergences.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stackbert.attention.growth import ObservedGrowth, find_runs, observe_growths
from stackbert.attention.likeness import (
    SENTENCES,
    Contrast,
    divergences,
    match,
    shallow_and_deep,
    top_and_bottom,
)
from stackbert.attention.maps import encode, longest_sentence
from stackbert.attention.measures import F64
from stackbert.attention.sample import sample_sentences
from stackbert.attention.subject import (
    EXAMPLE_TOKENS,
    Observed,
    Sample,
    check_same_tokenizer,
    observe,
    open_subject,
    untrained,
)
from stackbert.errors import UserError
from stackbert.files import Record, reading, sha256, writing
from stackbert.progress import Progress
from stackbert.tables import Frame
from stackbert.units import counted

ATTENTION = "attention.json"
ARRAYS = "attention.npz"
EXAMPLES = 8
"""Sentences whose maps are kept."""


class AttentionResult(Record):
    """What `measure_attention` found.

    Layers and heads count from 1, and layer 1 is at the bottom. A model is called "measured",
    "untrained" (one of the same config, as initialised) or "compared" (the second model).
    """

    what: ClassVar[str] = "a measurement of attention"
    version: ClassVar[int] = 4
    text: str
    """File name, or "given" for a list of sentences."""
    seed: int
    max_length: int
    models: Frame
    """A row a model: name, type, shape, how much it read, the `MEASURES` of a uniform head."""
    heads: Frame
    """A row for each head of each model: class and `MEASURES`."""
    likeness: Frame
    """A row for each layer of the measured model and each layer of every model."""
    top_bottom: Contrast | None
    """The measured model's two halves; None for a single layer."""
    shallow_deep: Contrast | None
    """The measured and the second model."""
    growths: Frame
    """A row a moment: means over the heads of the new layers, or all of the shallow model."""
    growth_heads: Frame
    """A row for each head at each of these moments."""
    examples: tuple[tuple[str, ...], ...]
    """Tokens of the sentences whose maps are kept."""
    arrays_sha256: str = ""
    """Of `attention.npz`."""
    arrays: dict[str, npt.NDArray[Any]] = Field(default_factory=dict, exclude=True, repr=False)
    """`maps_N` (L, H, S, S): the measured model on example N; `growth_G_MOMENT`: the model of that
    moment on the shortest example; `likeness_MODEL` (L, H, L2, H2): between single heads."""

    def about(self, model: str = "measured") -> "pd.Series[Any]":
        """The row of a model."""
        return self.models.set_index("model").loc[model]

    def heads_of(self, model: str = "measured") -> pd.DataFrame:
        """The heads of a model."""
        return self.heads[self.heads["model"] == model]

    @property
    def shortest(self) -> int:
        """The example on which growths are drawn."""
        return min(range(len(self.examples)), key=lambda number: len(self.examples[number]))

    def save(self, folder: str | Path) -> None:
        """Write both files into a folder, which is made if need be.

        Raises:
            UserError: the folder cannot be written.
        """
        folder = Path(folder)
        with writing(f"writing {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(folder / ARRAYS, **self.arrays)  # type: ignore[arg-type]
            digest = sha256(folder / ARRAYS)
            self.model_copy(update={"arrays_sha256": digest}).write(folder / ATTENTION)


def read_attention(folder: str | Path) -> AttentionResult:
    """Read what `AttentionResult.save` wrote.

    Raises:
        UserError: a file is missing, damaged, of another version or of another measurement.
    """
    folder = Path(folder)
    result = AttentionResult.read(folder / ATTENTION)
    path, hint = folder / ARRAYS, "Run stackbert attention again."
    with reading(path, hint):
        if sha256(path) != result.arrays_sha256:
            raise UserError(f"{path} does not belong to {ATTENTION}, or is damaged. {hint}")
        with np.load(path, allow_pickle=False) as file:
            return result.model_copy(update={"arrays": dict(file)})


def measure_attention(
    model: str | Path | PreTrainedModel,
    *,
    text: str | Path | Sequence[str],
    out: str | Path | None = None,
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
    sentences: int = 256,
    max_length: int = 128,
    seed: int = 0,
    compare: str | Path | PreTrainedModel | None = None,
    beside: Sequence[str | Path] = (),
    progress: Progress | None = None,
) -> AttentionResult:
    """Measure where each head of an encoder looks, and how alike its layers are.

    The paper (Gong et al. 2019, section 3) stacks because it saw, on one sentence, that most heads
    look at their neighbours or at [CLS], that top layers look like bottom layers, and a shallow
    model like a deep one. This measures all three; `statements` puts them in words.

    Args:
        model: a Hugging Face folder, a run directory (its final model, and what each growth did to
            the maps), or a transformers encoder, which is left as it was.
        text: a file, folder or pattern, of which a random sample of sentences of at least 12
            tokens is taken; or a list of sentences, which are all taken.
        out: a folder for the result, which `read_attention` reads.
        tokenizer: the model's; by default the one in its folder.
        sentences: to sample from a text; fewer if it has fewer.
        max_length: tokens at which a sentence is cut, special ones included; fewer if the model
            allows only fewer.
        seed: of the sample, of the rows that likeness compares and of the untrained model.
        compare: a second model with the same tokenizer, shallower or deeper.
        beside: run directories with the same tokenizer, if `model` is one. Their growths are
            measured, too: other operators, as in the paper's Fig. 4.
        progress: hears what is being measured.

    Raises:
        UserError: a model cannot be opened or returns no attention probabilities, the text has no
            long sentences, the tokenizers differ, or a run is not finished or never grew.
    """
    say = (progress or Progress()).say
    if not 0 <= seed < 2**63:
        raise UserError(f"The seed {seed} is not between 0 and 2**63 - 1.")
    if out is not None:  # said before the long work
        with writing(f"making {out}"):
            Path(out).mkdir(parents=True, exist_ok=True)
    runs = find_runs(model, beside)
    encoder, known, name = open_subject(model, tokenizer)
    second = None
    if compare is not None:
        second = open_subject(compare, None if isinstance(compare, str | Path) else known)
    max_length = longest_sentence(encoder, known, max_length)
    # One run's model after the other is loaded, only to see how long its sentences may be.
    for other in itertools.chain([second], map(open_subject, list(runs.values())[1:])):
        if other:
            check_same_tokenizer(known, other.tokenizer)
            max_length = longest_sentence(other.model, known, max_length)
    if isinstance(text, str | Path):
        chosen = sample_sentences(text, known, sentences, seed=seed)
    else:
        chosen = list(text)
    if not chosen:
        raise UserError("The list of sentences is empty; give at least one.")
    sample = Sample(chosen, known, max_length, seed)
    examples = _choose_examples(sample)

    say(f"measuring {name} on {counted(len(chosen), 'sentence')}")
    seen = {"measured": observe(encoder, name, sample, examples)}
    say("measuring an untrained model of the same config")
    few = replace(sample, sentences=chosen[:SENTENCES])
    seen["untrained"] = observe(untrained(encoder, seed), "untrained", few)
    if second:
        say(f"measuring {second.name}")
        seen["compared"] = observe(second.model, second.name, sample)
    shortest = min(seen["measured"].examples, key=lambda maps: len(maps.tokens))
    growths: list[ObservedGrowth] = []
    for run, folder in runs.items():
        say(f"measuring the growths of {run}")
        growths += observe_growths(folder, run, sample, examples[shortest.index])
    result = _result(sample, seen, growths, text)
    if out is not None:
        result.save(out)
    return result


def _choose_examples(sample: Sample) -> list[str]:
    """The first sentences that are short enough to be drawn; then longer ones if these are few."""
    longest = min(sample.max_length, EXAMPLE_TOKENS)
    ids = encode(sample.tokenizer, sample.sentences, longest + 1)
    order = sorted(range(len(ids)), key=lambda number: len(ids[number]) > longest)
    return [sample.sentences[number] for number in order[:EXAMPLES]]


def _result(
    sample: Sample,
    seen: dict[str, Observed],
    growths: list[ObservedGrowth],
    text: str | Path | Sequence[str],
) -> AttentionResult:
    measured, rows = seen["measured"], {model: each.rows for model, each in seen.items()}
    alike = {model: divergences(rows["measured"], rows[model]) for model in seen}
    shallow_deep = None
    if "compared" in seen:
        measured_is_deeper = measured.about["depth"] > seen["compared"].about["depth"]
        deeper = rows["measured" if measured_is_deeper else "compared"]
        to_untrained = divergences(deeper, rows["untrained"])
        shallow_deep = shallow_and_deep(alike["compared"], to_untrained, sample.seed)
    maps = {f"maps_{number}": each for number, each in enumerate(measured.examples)}
    for number, (_, _, kept) in enumerate(growths):
        maps |= {f"growth_{number}_{moment}": each for moment, each in kept.items()}
    # Half precision is enough to draw them.
    arrays = {name: each.maps_LHSS.astype(np.float16) for name, each in maps.items()}
    return AttentionResult(
        text=Path(text).name if isinstance(text, str | Path) else "given",
        seed=sample.seed,
        max_length=sample.max_length,
        models=pd.DataFrame({"model": model, **each.about} for model, each in seen.items()),
        heads=_stacked("model", {model: each.heads for model, each in seen.items()}),
        likeness=_stacked("model", {model: _layers(each) for model, each in alike.items()}),
        top_bottom=top_and_bottom(alike["measured"], alike["untrained"], sample.seed),
        shallow_deep=shallow_deep,
        growths=_stacked("growth", dict(enumerate(moments for moments, _, _ in growths))),
        growth_heads=_stacked("growth", dict(enumerate(heads for _, heads, _ in growths))),
        examples=tuple(each.tokens for each in measured.examples),
        arrays=arrays | {f"likeness_{model}": each for model, each in alike.items()},
    )


def _layers(heads: F64) -> pd.DataFrame:
    divergence = match(heads)
    layer, other = np.indices(divergence.shape).reshape(2, -1) + 1
    return pd.DataFrame({"layer": layer, "other_layer": other, "divergence": divergence.ravel()})


def _stacked(name: str, tables: Mapping[Any, pd.DataFrame]) -> pd.DataFrame:
    """Tables below each other, each marked by its key in the column `name`."""
    if not tables:
        return pd.DataFrame()
    return pd.concat(tables, names=[name]).reset_index(name).reset_index(drop=True)
