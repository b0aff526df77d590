"""What is recorded, part by part, through the doors of the old code or of the new (`code`)."""

import dataclasses
import json
from itertools import product
from pathlib import Path
from typing import Any

import inputs
import numpy as np
from inputs import DATA, digest, json_digest, tensor_digest
from safetensors.torch import load_file


def models(code) -> tuple[dict[str, Any], dict[str, Any]]:
    """(parameters and FLOPs, initial weights) of every type that recipes name."""
    flops, weights = {}, {}
    for (kind, pairs), depth in product(inputs.TRAINED, (1, 3)):
        spec = code.parse_recipe(inputs.recipe(model={"type": kind}), "golden").model
        options = {"vocabulary": code.synthetic_vocabulary(500), "sequence_length": 64}
        model = code.create_model(spec, depth=depth, next_sentence=pairs, **options)
        name = f"{kind} {pairs} {depth}"
        weights[name] = tensor_digest(model.state_dict())
        flops[name] = [code.parameter_count(model)] + [
            count(model, rows=rows, sequence_length=length, masked=masked)
            for rows, length, masked in DATA["flop_shapes"]
            for count in (code.forward_flops, code.training_flops)
        ]
    return flops, weights


def growth(code, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what is copied and from where, the whole models) by operator; refused ones are left out."""
    copied, whole = {}, {}
    for operator, depth in inputs.OPERATORS.items():
        model = inputs.make_model(kind)
        try:
            grown = code.grow_with_origins(model, depth, operator, seed=5)
        except code.UserError:
            continue
        state = grown.model.state_dict()
        moved = code.grow_optimizer_state(inputs.optimizer_state(model), grown, "copy")
        moments = {f"{n} {key}": tensor for n in moved for key, tensor in moved[n].items()}
        copied[operator] = {
            "copies": tensor_digest({n: state[n] for n, source in grown.origins.items() if source}),
            "origins": json_digest(dict(grown.origins)),
            "tensors": len(state),
            "moments": tensor_digest(moments),
            "layer_types": grown.model.config.to_dict().get("layer_types"),
        }
        whole[operator] = tensor_digest(state)
    return copied, whole


def corpus(code, built) -> dict[str, Any]:
    """Tokenizer, ids, and each token, document and sentence of a corpus."""
    manifest, ids = built.manifest, dataclasses.asdict(code.vocabulary_of(built))
    tokenizer = json.loads((built.tokenizer_folder / "tokenizer.json").read_text("utf-8"))
    found = {
        "vocabulary": json_digest(tokenizer["model"]["vocab"]),
        "tokenizer": json_digest(tokenizer),
        "ids": {**ids, "special": list(ids["special"])},
        "duplicates": manifest.duplicate_documents,
        "empty": manifest.empty_documents,
        "source documents": [source.documents for source in manifest.sources],
    }
    for side in ("train", "validation"):
        stream, counts = getattr(built, side), getattr(manifest, side)
        tokens = stream.read(0, len(stream))
        found[side] = {
            "tokens": digest(tokens),
            "documents": digest(np.flatnonzero(tokens == ids["sep"])),
            "sentences": digest(code.sentence_starts(stream)),
            "counts": [counts.tokens, counts.documents, counts.sentences],
            "entropy": counts.unigram_entropy,
        }
    return found


def batches(code, built, shape: str) -> list[str]:
    """A digest of each of 200 steps, equal at every number of ranks, and of the validation set."""

    def whole(*shares) -> str:
        arrays = [[getattr(share, name) for share in shares] for name in code.batch_fields]
        return digest(*(None if some[0] is None else np.concatenate(some) for some in arrays))

    recipe = code.parse_recipe(inputs.BATCHES[shape], "golden")
    plan = code.training_plan(recipe, built)
    by_size = [
        [whole(*(plan.batch(step, rank, size) for rank in range(size))) for step in range(200)]
        for size in (1, 2, 4)
    ]
    assert by_size[0] == by_size[1] == by_size[2]
    return [*by_size[0], whole(code.validation_batch(recipe, built))]


LEDGER = {
    "step": ("loss", "masked_lm", "next_sentence", "lr", "gradient_norm", "tokens", "flops"),
    "evaluation": ("step", "stage", "depth", "loss", "masked_lm", "next_sentence"),
    "growth": ("step", "source_depth", "target_depth", "loss_before", "loss_after"),
}


def run(folder: Path) -> dict[str, Any]:
    """Losses, rates, weights and config of a run."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    config = json.loads((folder / "model" / "config.json").read_text())
    del config["transformers_version"]
    return {
        **{
            kind: [[row[field] for field in fields] for row in rows if row["kind"] == kind]
            for kind, fields in LEDGER.items()
        },
        "order": " ".join(row["kind"][0] for row in rows),
        "weights": tensor_digest(load_file(folder / "model" / "model.safetensors")),
        "config": json_digest(config),
    }
