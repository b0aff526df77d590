"""The model card: README.md of an exported model, with the header that the hub reads."""

from pathlib import Path
from typing import Any

import yaml

from stackbert.corpus.manifest import Manifest
from stackbert.pretraining.summary import RunSummary
from stackbert.recipe import Recipe


def write_model_card(
    folder: Path,
    recipe: Recipe,
    manifest: Manifest,
    summary: RunSummary | None,
    machine: dict[str, Any],
) -> None:
    """Write README.md: how to use the model, how it was trained, on what.

    Args:
        folder: of the exported model.
        recipe: as run.
        manifest: of the corpus.
        summary: the stages and losses; None if the run's ledger cannot be read.
        machine: versions and hardware.
    """
    (folder / "README.md").write_text(
        model_card(recipe, manifest, summary, machine), encoding="utf-8"
    )


def model_card(
    recipe: Recipe, manifest: Manifest, summary: RunSummary | None, machine: dict[str, Any]
) -> str:
    """The card's text; arguments as in `write_model_card`."""
    header = {
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["stackbert", "progressive-stacking", recipe.model.type],
    }
    train, held_out = manifest.train, manifest.validation
    sources = "\n".join(
        f"- {source.name.replace('`', '')}: {source.documents:,} documents, {source.bytes:,} bytes"
        for source in manifest.sources[:20]
    )
    if len(manifest.sources) > 20:
        sources += f"\n- … and {len(manifest.sources) - 20:,} more"
    return f"""---
{yaml.safe_dump(header, sort_keys=False).strip()}
---

# {recipe.name}

A `{recipe.model.type}` encoder of {recipe.stages[-1].depth} layers, pre-trained by progressive
stacking (Gong et al., ICML 2019) with StackBERT {machine.get("stackbert", "")}.

```python
from transformers import pipeline

fill = pipeline("fill-mask", model="PATH/TO/THIS/FOLDER")
print(fill(f"The capital is the {{fill.tokenizer.mask_token}} of the country."))
```

## Training

{_losses(recipe, summary) if summary else "The ledger of the run, with its losses, is damaged."}
The entropy of the validation text's token frequencies is {held_out.unigram_entropy:.3f} nats.

Machine: {", ".join(f"{key} {value}" for key, value in machine.items())}.

## Text

{train.documents:,} documents ({train.words:,} words, {train.tokens:,} tokens) for training,
{held_out.documents:,} held out; {manifest.duplicate_documents:,} exact duplicates dropped.
Vocabulary: {manifest.tokenizer_size:,} pieces. Corpus fingerprint: `{manifest.fingerprint}`.

{sources}

## Recipe

```yaml
{recipe.to_yaml().strip()}
```
"""


def _losses(recipe: Recipe, summary: RunSummary) -> str:
    stages = "\n".join(
        f"| {s.depth} | {s.steps:,} | {s.tokens:,} | {s.seconds:,.0f} | "
        f"{_number(s.loss_grown)} | {_number(s.loss)} |"
        for s in summary.stages
    )
    objective = f"masked LM at a mask rate of {recipe.evaluation.mask_rate}"
    if recipe.objective.next_sentence:
        objective += ", plus next sentence"
    return f"""| depth | steps | tokens | seconds | validation loss after growth | at the end |
|---|---|---|---|---|---|
{stages}

Final validation loss: {_number(summary.loss)} nats ({objective})."""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
