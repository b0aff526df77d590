"""Measure where a model's heads look, and keep what was found in a folder.

`attention.json` holds the tables, `attention.npz` the maps to be drawn and heads' divergences.
"""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stackbert.attention.growth import find_growths, observe_growth
from stackbert.attention.likeness import SENTENCES, Contrast, contrast, divergences
from stackbert.attention.measures import observe
from stackbert.corpus.sentences import split_sentences
from stackbert.corpus.text import open_files
from stackbert.errors import UserError
from stackbert.files import Record, reading, refuse_foreign, writing
from stackbert.model_files import open_encoder, open_tokenizer, random_twin
from stackbert.pretraining.record import final_model, is_run, model_name
from stackbert.progress import Progress
from stackbert.tables import Frame, Tables
from stackbert.units import counted

ATTENTION = "attention.json"
ARRAYS = "attention.npz"
MIN_TOKENS = 12  # with special ones; in shorter sentences every token is near every other


class AttentionResult(Record, Tables):
    """What `measure_attention` found.

    Layers and heads count from 1, and layer 1 is at the bottom. A model is called "measured",
    "untrained" (one of the same config, as initialised) or "compared" (the second model).
    """

    what: ClassVar[str] = "a measurement of attention"
    version: ClassVar[int] = 5
    text: str  # file name, or "given" for a list of sentences
    seed: int
    max_length: int
    models: Frame  # name, type, shape, how much it read, the `MEASURES` of a uniform head
    heads: Frame  # of each model: class and `MEASURES`
    top_bottom: Contrast | None  # of the measured model; None for a single layer
    shallow_deep: Contrast | None  # of the measured and the second model
    growth_heads: Frame  # of each model of each growth, with how a head compares with its source
    examples: tuple[tuple[str, ...], ...]  # tokens of the sentences that are drawn, shortest first
    arrays: dict[str, npt.NDArray[Any]] = Field(default_factory=dict, exclude=True, repr=False)
    """`maps_N` (L, H, S, S) of the measured model on example N; `growth_G_MOMENT` on the shortest
    example; `likeness_MODEL` (L, H, L2, H2), the divergences of the measured model's heads."""

    def about(self, model: str = "measured") -> "pd.Series[Any]":
        """The row of a model."""
        return self.models.set_index("model").loc[model]

    def heads_of(self, model: str = "measured") -> pd.DataFrame:
        """The heads of a model."""
        return self.heads[self.heads["model"] == model]

    def tables(self) -> dict[str, pd.DataFrame]:
        """The measures of each head."""
        return {"heads": self.heads_of()}

    def save(self, folder: str | Path) -> None:
        """Write both files into a folder, which is made if need be."""
        folder = Path(folder)
        with writing(f"writing {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            # The record comes last, so that it never lies beside another measurement's maps.
            (folder / ATTENTION).unlink(missing_ok=True)
            np.savez_compressed(folder / ARRAYS, **self.arrays)  # type: ignore[arg-type]
            self.write(folder / ATTENTION)


def read_attention(folder: str | Path) -> AttentionResult:
    """Read what `AttentionResult.save` wrote; UserError if a file is missing or damaged."""
    result = AttentionResult.read(Path(folder) / ATTENTION)
    path = Path(folder) / ARRAYS
    with reading(path, "Run stackbert attention again."), np.load(path) as file:
        return result.model_copy(update={"arrays": dict(file)})


def open_subject(
    model: str | Path | PreTrainedModel,
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    """Open a Hugging Face folder or a run's final model, or take a model; give its name, too."""
    if isinstance(model, str | Path):
        folder = final_model(Path(model))
        name, tokenizer = model_name(folder), folder if tokenizer is None else tokenizer
        model = open_encoder(folder)
    else:
        name = Path(model.config.name_or_path or type(model).__name__).name
    if tokenizer is None:
        raise UserError("A model passed as an object needs tokenizer=, an object or a folder.")
    if isinstance(tokenizer, str | Path):
        tokenizer = open_tokenizer(Path(tokenizer))
    return model, tokenizer, name


def sample_sentences(
    text: str | Path, tokenizer: PreTrainedTokenizerBase, count: int, *, seed: int = 0
) -> list[str]:
    """At most `count` of a text's sentences of at least `MIN_TOKENS` tokens, in random order.

    Those with the smallest hashes of seed and words are taken: a sentence that occurs twice counts
    once, and one pass in bounded memory is enough.
    """
    salt = seed.to_bytes(8, "little", signed=True)
    found: dict[bytes, str] = {}
    highest = b""  # of the hashes that may still be among the smallest; empty if any may
    for document in (text for file in open_files(text)[0] for text in file.documents()):
        for words in map(str.split, split_sentences(document.strip())):
            sentence = " ".join(words)
            digest = hashlib.blake2b(sentence.encode(), digest_size=8, key=salt).digest()[::-1]
            if digest in found or (highest and digest > highest):
                continue
            # Tokenising takes most of the time, so it comes last.
            ids = tokenizer(sentence, truncation=False, verbose=False)["input_ids"]
            if len(ids) >= MIN_TOKENS:
                found[digest] = sentence
            if len(found) >= 2 * count:
                found = dict(sorted(found.items())[:count])
                highest = max(found)
    if not found:
        raise UserError(f"{text} has no sentence of at least {MIN_TOKENS} tokens. Give more text.")
    return [sentence for _, sentence in sorted(found.items())[:count]]


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

    The paper (Gong et al. 2019, section 3) saw on one sentence that most heads look at their
    neighbours or at [CLS], top layers like bottom layers, and shallow models like deep ones. This
    measures all three; `statements` puts them in words.

    Args:
        model: a Hugging Face folder, a run directory (its final model and its growths), or a
            transformers encoder, which is left as it was.
        text: a file, folder or pattern, of which a random sample of sentences of at least 12
            tokens is taken; or a list of sentences, which are all taken.
        out: a folder for the result, which `read_attention` reads.
        tokenizer: the model's; by default the one in its folder.
        sentences: to sample from a text; fewer if it has fewer.
        max_length: tokens at which a sentence is cut; fewer if the models allow only fewer.
        seed: of all that is drawn at random; at least 0.
        compare: a second model with the same tokenizer, shallower or deeper.
        beside: more runs, whose growths are measured, too: the paper's Fig. 4.

    Raises:
        UserError: a model cannot be opened or gives no attention probabilities, the text has no
            long sentences, the tokenizers differ, or a run is not finished.
    """
    say = (progress or Progress()).say
    if out is not None:  # said before the long work
        refuse_foreign(Path(out), AttentionResult.what, ATTENTION, ARRAYS)
        with writing(f"making {out}"):
            Path(out).mkdir(parents=True, exist_ok=True)
    own_run = [model] if isinstance(model, str | Path) and is_run(Path(model)) else []
    growths = find_growths([Path(run) for run in (*own_run, *beside)])
    encoder, known, name = open_subject(model, tokenizer)
    max_length = min(max_length, known.model_max_length)
    for other in (compare, *beside):
        if isinstance(other, str | Path):
            theirs = open_tokenizer(final_model(Path(other)))
            if theirs.get_vocab() != known.get_vocab():
                raise UserError(f"{other} and {name}: different vocabularies do not compare.")
            max_length = min(max_length, theirs.model_max_length)
    if isinstance(text, str | Path):
        source, chosen = Path(text).name, sample_sentences(text, known, sentences, seed=seed)
    else:
        source, chosen = "given", [sentence for sentence in text if sentence.strip()]
    if not chosen:
        raise UserError("The list of sentences is empty; give at least one.")
    look = functools.partial(
        observe, tokenizer=known, sentences=chosen, max_length=max_length, seed=seed
    )
    say(f"measuring {name} on {counted(len(chosen), 'sentence')}")
    seen = {"measured": look(encoder, name)}
    say("measuring an untrained model of the same config")
    seen["untrained"] = look(random_twin(encoder, seed), "untrained", sentences=chosen[:SENTENCES])
    if compare is not None:
        second, _, name = open_subject(compare, known)
        say(f"measuring {name}")
        seen["compared"] = look(second, name)
    maps = {f"maps_{number}": each for number, each in enumerate(seen["measured"].examples)}
    growth_heads = [pd.DataFrame()]
    for number, growth in enumerate(growths):
        say(f"measuring the growth of {growth.run} at step {growth.step:,}")
        heads, drawn = observe_growth(growth, look)
        growth_heads.append(heads.assign(growth=number))
        maps |= {f"growth_{number}_{moment}": each for moment, each in drawn.items()}
    rows = {model: each.rows for model, each in seen.items()}
    alike = {model: divergences(rows["measured"], each) for model, each in rows.items()}
    top_bottom = shallow_deep = None
    if len(alike["measured"]) > 1:
        top_bottom = contrast(alike["measured"], alike["untrained"], seed, halves=True)
    if "compared" in seen:
        # Of equal depth, the second model counts as the deeper one.
        pair = sorted(("measured", "compared"), key=lambda model: seen[model].about["depth"])
        shallow, deep = (rows[model] for model in pair)
        fresh = divergences(deep, rows["untrained"])
        shallow_deep = contrast(divergences(deep, shallow), fresh, seed, halves=False)
    tables = [each.heads.assign(model=model) for model, each in seen.items()]
    result = AttentionResult(
        text=source,
        seed=seed,
        max_length=max_length,
        models=pd.DataFrame({"model": model, **each.about} for model, each in seen.items()),
        heads=pd.concat(tables, ignore_index=True),
        growth_heads=pd.concat(growth_heads[1:] or growth_heads, ignore_index=True),
        top_bottom=top_bottom,
        shallow_deep=shallow_deep,
        examples=tuple(each.tokens for each in seen["measured"].examples),
        arrays={
            # Half precision is enough to draw them.
            **{key: each.maps_LHSS.astype(np.float16) for key, each in maps.items()},
            **{f"likeness_{model}": each for model, each in alike.items()},
        },
    )
    if out is not None:
        result.save(out)
    return result
