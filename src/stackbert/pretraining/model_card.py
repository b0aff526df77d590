"""The model card: README.md of an exported model, with the header that the hub reads."""

import html
import textwrap
from typing import Any

import pandas as pd
from huggingface_hub import ModelCard, ModelCardData

from stackbert.corpus.store import Manifest
from stackbert.recipe import Recipe

_TEXT = """---
{header}
---

# {recipe.name}

A `{recipe.model.type}` encoder of {recipe.stages[-1].depth} layers, pre-trained by progressive
stacking (Gong et al., ICML 2019) with StackBERT {machine[stackbert]}.

```python
from transformers import pipeline

fill = pipeline("fill-mask", model="PATH/TO/THIS/FOLDER")
print(fill(f"The capital is the {{fill.tokenizer.mask_token}} of the country."))
```

## Training

{stages}

Validation losses are in nats ({objective}). The entropy of the validation text's token frequencies
is {manifest.validation.unigram_entropy:.3f} nats.

Machine: {hardware}.

## Text

{manifest.train.documents:,} documents ({manifest.train.words:,} words, {manifest.train.tokens:,}
tokens) for training, {manifest.validation.documents:,} held out;
{manifest.duplicate_documents:,} exact duplicates dropped. Vocabulary: {manifest.tokenizer_size:,}
pieces. Corpus fingerprint: `{manifest.fingerprint}`.

{sources}

## Recipe

{yaml}
"""


def model_card(
    recipe: Recipe, manifest: Manifest, stages: pd.DataFrame | None, machine: dict[str, Any]
) -> ModelCard:
    """How to use the model, how it was trained, and on what.

    Args:
        recipe: as run.
        manifest: of the corpus.
        stages: of the run, as `stage_table` gives them; None if its ledger is damaged.
        machine: versions and hardware.
    """
    tags = ["stackbert", "progressive-stacking", recipe.model.type]
    header = ModelCardData(library_name="transformers", pipeline_tag="fill-mask", tags=tags)
    objective = f"masked LM at a mask rate of {recipe.evaluation.mask_rate}"
    if recipe.objective.next_sentence:
        objective += ", plus next sentence"
    table = "The ledger of the run, with its losses, is damaged."
    if stages is not None:
        rows = [
            f"| {s.depth} | {s.steps:,} | {s.tokens:,} | {s.seconds:,.0f} | "
            f"{'' if pd.isna(s.loss_grown) else f'{s.loss_grown:.3f}'} | {s.loss:.3f} |"
            for s in stages.itertuples()
        ]
        heading = "| depth | steps | tokens | seconds | validation loss after growth | at the end |"
        table = "\n".join((heading, "|---|---|---|---|---|---|", *rows))
    sources = [
        f"- {html.escape(source.name.replace('`', ''))}: {source.documents:,} documents, "
        f"{source.bytes:,} bytes"
        for source in manifest.sources[:20]
    ]
    if len(manifest.sources) > 20:
        sources.append(f"- … and {len(manifest.sources) - 20:,} more")
    text = _TEXT.format(
        header=header.to_yaml(),
        recipe=recipe,
        machine=machine,
        stages=table,
        objective=objective,
        manifest=manifest,
        hardware=", ".join(f"{key} {value}" for key, value in machine.items()),
        sources="\n".join(sources),
        yaml=textwrap.indent(recipe.to_yaml().strip(), "    "),  # no text of the user's ends this
    )
    return ModelCard(text, ignore_metadata_errors=True)
