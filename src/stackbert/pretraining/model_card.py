"""The model card: README.md of an exported model, with the header that the hub reads."""

import html
import itertools
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from huggingface_hub import ModelCardData

from stackbert.batches.batches import data_sentences, validation_entropy
from stackbert.corpus.store import Corpus
from stackbert.model_files import open_tokenizer, read_config
from stackbert.pretraining.starting import source_name
from stackbert.recipe import Recipe


def model_card(
    recipe: Recipe,
    corpus: Corpus,
    origin: Sequence[str],
    stages: pd.DataFrame | None,
    machine: dict[str, Any],
    folder: Path,
) -> str:
    """How to use the model, how it was trained, and on what.

    `origin` says what the run started from; `stages` is its `stage_table`, None if its ledger is
    damaged; `folder` holds the saved model.
    """
    manifest, entropy = corpus.manifest, validation_entropy(recipe, corpus)
    tags = ["stackbert", "progressive-stacking", recipe.model_type]
    if recipe.start is not None:  # no path of the machine that trained it, and no whole config
        config = {"model_type": recipe.model_type}
        short = {"folder": source_name(recipe.start), "config": config}
        recipe = recipe.model_copy(update={"start": recipe.start.model_copy(update=short)})
    header = ModelCardData(
        language=[code.strip() for code in manifest.language.split(",") if code.strip()] or None,
        license=manifest.license or None,
        datasets=[manifest.dataset] if manifest.dataset else None,
        library_name="transformers",
        pipeline_tag="fill-mask",
        tags=tags,
    )
    rates = [
        f"`{name}` {rate}"
        for name, rate in read_config(folder).items()
        if "dropout" in name and isinstance(rate, float)
    ]
    sources = "".join(
        f"- {html.escape(source.name.replace('`', ''))}: {source.documents:,} documents, "
        f"{source.bytes:,} bytes\n"
        for source in manifest.sources[:20]
    )
    if len(manifest.sources) > 20:
        sources += f"- … and {len(manifest.sources) - 20:,} more\n"
    growth = f" by progressive stacking (Gong et al., ICML 2019; {recipe.growth.rule.name})"
    how = growth if recipe.growth_steps else ""
    # Indented as a whole, which no text of the user's can end as it could end a fence.
    yaml = textwrap.indent(recipe.to_yaml().strip(), "    ")
    return f"""---
{header.to_yaml()}
---

# {recipe.name}

A `{recipe.model_type}` encoder of {recipe.stages[-1].depth} layers, pre-trained{how}
with StackBERT {machine.get("stackbert", "")}. {html.escape(" ".join(origin), quote=False)}

```python
from transformers import pipeline

fill = pipeline("fill-mask", model="PATH/TO/THIS/FOLDER"){_example(corpus, folder)}
```

Dropout is as in training: {", ".join(rates) or "the type's own"}. Fine-tuning usually sets 0.1.

## Training

{_training(recipe, stages)}
The entropy of the validation text's token frequencies is {entropy:.3f} nats.

Machine: {", ".join(f"{key} {value}" for key, value in machine.items())}.

## Text

{" ".join(data_sentences(recipe, corpus))}

{manifest.train.words:,} words. {html.escape(manifest.summary(), quote=False)}
Corpus fingerprint: `{manifest.fingerprint}`.

{sources}
## Recipe

{yaml}
"""


def _example(corpus: Corpus, folder: Path) -> str:
    """A line of code with a short held-out sentence, a token masked; none if no text is whole."""
    tokenizer = open_tokenizer(folder)  # the corpus's may have been changed since
    for start, end in itertools.pairwise(corpus.validation.sentence_starts[:1000].tolist()):
        ids = corpus.validation.read(start, end - start).tolist()
        ids = ids[:-1] if ids[-1] == corpus.vocabulary.sep else ids
        if 8 <= len(ids) <= 24 and tokenizer.unk_token_id not in ids:
            ids[len(ids) // 2] = corpus.vocabulary.mask
            text = str(tokenizer.decode(ids)).strip()
            again = tokenizer.encode(text, add_special_tokens=False, verbose=False)
            if tokenizer.decode(again) == text and "\ufffd" not in text:  # half a character
                return f"\nprint(fill({text!r}))"
    return ""


def _training(recipe: Recipe, stages: pd.DataFrame | None) -> str:
    if stages is None:
        return "The ledger of the run, with its losses, is damaged."
    lines = [
        "| depth | steps | tokens | seconds | validation loss after growth | at the end |",
        "|---|---|---|---|---|---|",
    ]
    for s in stages.itertuples():
        grown = "" if pd.isna(s.loss_grown) else f"{s.loss_grown:.3f}"
        spent = f"{s.depth} | {s.steps:,} | {s.tokens:,} | {s.seconds:,.0f}"
        lines.append(f"| {spent} | {grown} | {s.loss:.3f} |")
    pairs = ", plus next sentence" if recipe.objective.next_sentence else ""
    return "\n".join(lines) + (
        f"\n\nFinal validation loss: {stages.loss.iloc[-1]:.3f} nats (masked LM at a mask rate of "
        f"{recipe.evaluation.mask_rate}{pairs})."
    )
