"""Which architectures `pretrain --from` takes: each starts, grows, trains and opens again.

    python benchmarks/start_from.py

A tiny model of every type, saved by transformers with the corpus' tokenizer, is trained for 20
steps, 10 of them after a growth from 2 to 4 layers. The table goes to benchmarks/results/.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

import reporting
import stackbert as sb
from stackbert.corpus.store import Corpus
from stackbert.demo import write_factbook
from stackbert.encoder import supports_masked_forward
from stackbert.model import prediction_head
from stackbert.pretraining.ledger import read_ledger
from stackbert.recipes import parse_recipe

TYPES = (
    *("bert", "roberta", "xlm-roberta", "camembert", "roberta-prelayernorm", "megatron-bert"),
    *("modernbert", "electra", "distilbert", "deberta", "deberta-v2", "mpnet", "ernie", "esm"),
    *("eurobert", "nystromformer", "convbert", "data2vec-text", "mobilebert", "albert", "bart"),
)
SIZES = {
    **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 72},
}
RECIPE: dict[str, Any] = {
    "name": "start-from",
    "stages": [{"depth": 2, "steps": 10}, {"depth": 4, "steps": 10}],
    "batch": {"sequences": 16, "sequence_length": 64, "micro_batch": 16},
    "optimizer": {"lr": 2e-3},
    "schedule": {"name": "constant", "warmup_steps": 2},
    "precision": "fp32",
    "compile": False,
    "evaluation": {"sequences": 64, "every_steps": 5},
}


def row(kind: str, corpus: Corpus, folder: Path) -> dict[str, Any]:
    """One architecture: its losses, or the sentence that refuses it."""
    ids = {f"{role}_token_id": getattr(corpus.vocabulary, role) for role in ("pad", "cls", "sep")}
    ids |= {"bos_token_id": ids["cls_token_id"], "eos_token_id": ids["sep_token_id"]}
    size = {"vocab_size": corpus.vocabulary.size, "position_buckets": 16, "embedding_size": 64}
    config = AutoConfig.for_model(kind, **SIZES, **size, **ids)
    torch.manual_seed(0)
    model: Any = AutoModelForMaskedLM.from_config(config)
    source, run = folder / kind, folder / f"{kind}-run"
    model.save_pretrained(source)
    AutoTokenizer.from_pretrained(corpus.tokenizer_folder).save_pretrained(source)
    forward = "fast" if supports_masked_forward(model) else "its own"
    head = "at masked positions" if prediction_head(model) is not None else "everywhere"
    line = {"type": kind, "class": type(model).__name__, "forward": forward, "head": head}
    try:
        result = sb.pretrain(parse_recipe(RECIPE, kind), corpus=corpus, out=run, start=source)
    except sb.UserError as error:
        return {**line, "result": str(error)}
    ledger = read_ledger(run)
    losses = ledger[ledger.kind == "evaluation"].loss
    grown = ledger[ledger.kind == "growth"].loss_after.iloc[0]
    line |= {"at start": losses.iloc[0], "before": losses.iloc[2], "grown": grown}
    line["after 20"] = losses.iloc[-1]
    opened = AutoModelForMaskedLM.from_pretrained(result.model_folder)
    return {**line, "result": f"opens with {opened.config.num_hidden_layers} layers"}


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--types", default=",".join(TYPES), help="of transformers, with commas")
    parser.add_argument("--out", type=Path, default=reporting.RESULTS)
    arguments, began = parser.parse_args(), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_factbook(folder / "text.txt")
        text = (folder / "text.txt").read_text("utf-8")[:600_000]
        (folder / "text.txt").write_text(text, "utf-8")
        corpus = sb.build_corpus(
            folder / "corpus", text=[folder / "text.txt"], vocab_size=1024, validation=0.1
        )
        rows = [row(kind, corpus, folder) for kind in arguments.types.split(",")]
    losses = dict.fromkeys(("at start", "before", "grown", "after 20"), "{:.3f}")
    report = reporting.write_report(
        arguments.out,
        "start_from",
        "Training on from a model of each type",
        {"Types": pd.DataFrame(rows)},
        notes=["Validation losses in nats; `before` and `grown` are those around the growth."],
        seconds=time.monotonic() - began,
        formats=losses,
    )
    print(report)


if __name__ == "__main__":
    main()
