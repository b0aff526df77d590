"""The code gives what it gave before it was rebuilt; record_old.py says how that was recorded.

Integers, copies and schedules agree everywhere. Losses, fresh weights and measures agree to the
last bit on a machine with the record's fingerprint, and elsewhere to a tolerance.
"""

import dataclasses
import json
from itertools import product

import inputs
import numpy as np
import pytest
import torch
from golden_record import ANYWHERE, HERE, agree, agree_here, recipe_of
from inputs import DATA, digest, json_digest, tensor_digest
from safetensors.torch import load_file

import stackbert as sb
from stackbert.batches.batches import Batch, training_plan, validation_batch
from stackbert.corpus.store import Corpus, TokenStream
from stackbert.growth.grow import grow_optimizer_state, grow_with_origins
from stackbert.model import FAMILIES, create_model, forward_flops, parameter_count, training_flops
from stackbert.pretraining.autotune import Timing, evaluations_by_stage, scaled_to
from stackbert.pretraining.schedule import learning_rate_factor
from stackbert.pretraining.synthetic import synthetic_vocabulary
from stackbert.recipes import shipped_recipes


def test_recipes_and_schedules_are_the_same() -> None:
    shipped = {name: recipe.model_dump(mode="json") for name, recipe in shipped_recipes().items()}
    agree(shipped, ANYWHERE["recipes"], 0.0)
    found = {
        name: [learning_rate_factor(recipe_of(raw), step) for step in range(42)]
        for name, raw in inputs.schedules().items()
    }
    agree(found, ANYWHERE["schedule"], 1e-15)


def test_a_budget_buys_the_same_steps() -> None:
    timing, found = DATA["timing"], {}
    timing = Timing(tuple(timing["step"]), tuple(timing["evaluations"]))
    for name, every, seconds in product(*DATA["budgets"].values()):
        recipe = sb.load_recipe(name, [f"evaluation.every_steps={every}"])
        scaled = scaled_to(recipe, timing, seconds)
        found[f"{name} {every} {seconds}"] = {
            "steps": [stage.steps for stage in scaled.stages],
            "every": scaled.evaluation.every_steps,
            "warmup": scaled.schedule.warmup_steps,
            "evaluations": list(evaluations_by_stage(scaled)),
        }
    agree(found, ANYWHERE["budget"], 0.0)


@pytest.mark.parametrize("name", DATA["plans"])
def test_a_plan_has_the_same_numbers(name: str) -> None:
    recipe, arguments = DATA["plans"][name]
    plan, expected = sb.plan(sb.load_recipe(recipe), **arguments), ANYWHERE["plan"][name]
    for row, old in zip(
        plan.table.drop("stacked").to_dict("records"), expected["stages"], strict=True
    ):
        memory, evaluation = sum(old.pop("memory").values()), old.pop("evaluation_seconds")
        old |= {"memory": memory, "evaluation_seconds": evaluation * old["evaluations"]}
        agree({key: row[key] for key in old}, old, 1e-9, name)
    assert plan.saving == pytest.approx(expected["saving"], rel=1e-9)
    agree(plan.table.cost["stacked"], expected["cost"], 1e-9)


def test_models_and_their_flops_are_the_same() -> None:
    vocabulary, flops, weights = synthetic_vocabulary(500), {}, {}
    for kind, pairs, depth in product(FAMILIES, (False, True), (1, 3)):
        if pairs and len(FAMILIES[kind]) < 2:
            continue
        name, spec = f"{kind} {pairs} {depth}", recipe_of(inputs.recipe(model={"type": kind})).model
        model = create_model(
            spec, depth=depth, vocabulary=vocabulary, sequence_length=64, next_sentence=pairs
        )
        weights[name] = tensor_digest(model.state_dict())
        flops[name] = [parameter_count(model)] + [
            count(model, rows=rows, sequence_length=length, masked=masked)
            for rows, length, masked in DATA["flop_shapes"]
            for count in (forward_flops, training_flops)
        ]
    agree(flops, ANYWHERE["flops"], 0.0)
    agree_here(weights, HERE["initial weights"], 0.0)


@pytest.mark.parametrize("kind", inputs.MODELS)
def test_growth_gives_the_same_model(kind: str) -> None:
    model = inputs.make_model(kind)
    for operator, depth in inputs.OPERATORS.items():
        name = f"{kind} {operator}"
        if name not in HERE["growth"]:
            with pytest.raises(sb.UserError):
                grow_with_origins(model, depth, operator, seed=5)
            continue
        growth = grow_with_origins(model, depth, operator, seed=5)
        state, moments = growth.model.state_dict(), inputs.optimizer_state(model)
        moved = grow_optimizer_state(moments, growth, "copy")
        found = {
            "copies": tensor_digest(
                {n: state[n] for n, origin in growth.origins.items() if origin}
            ),
            "origins": json_digest(dict(growth.origins)),
            "tensors": len(state),
            "moments": tensor_digest({f"{n} {k}": t for n in moved for k, t in moved[n].items()}),
            "layer_types": growth.model.config.to_dict().get("layer_types"),
        }
        agree(found, ANYWHERE["growth"][name], 0.0, name)
        agree_here(tensor_digest(state), HERE["growth"][name], 0.0, name)
    if kind == "bert":
        half = grow_with_origins(model.bfloat16(), 4, "stack").model
        assert tensor_digest(half.state_dict()) == ANYWHERE["growth"]["bert in bf16"]


def document_starts(stream: TokenStream, separator: int) -> np.ndarray:
    ends = np.flatnonzero(stream.read(0, len(stream)) == separator) + 1
    return np.array([0, *ends[:-1]])


def test_a_corpus_has_the_same_tokens(corpora: dict[str, Corpus]) -> None:
    for name, corpus in corpora.items():
        manifest = corpus.manifest
        tokenizer = json.loads((corpus.tokenizer_folder / "tokenizer.json").read_text("utf-8"))
        found = {
            "vocabulary": json_digest(tokenizer["model"]["vocab"]),
            "tokenizer": json_digest(tokenizer),
            "ids": {**dataclasses.asdict(corpus.vocabulary)},
            "duplicates": manifest.duplicate_documents,
            "empty": manifest.empty_documents,
            "source documents": [source.documents for source in manifest.sources],
        }
        found["ids"]["special"] = list(found["ids"]["special"])
        for side in ("train", "validation"):
            stream, counts = getattr(corpus, side), getattr(manifest, side)
            words = ANYWHERE["corpus"][name][side]["counts"][3]
            # Those of a document that gives no token are counted now.
            assert 0 <= counts.words - words <= manifest.empty_documents
            found[side] = {
                "tokens": digest(stream.read(0, len(stream))),
                "documents": digest(document_starts(stream, corpus.vocabulary.sep)),
                "sentences": digest(stream.sentence_starts),
                "counts": [counts.tokens, counts.documents, counts.sentences, words],
                "entropy": counts.unigram_entropy,
            }
        agree(found, ANYWHERE["corpus"][name], 1e-12, name)


def batch_digest(*parts: Batch) -> str:
    names = ("input_ids_BS", "columns_BK", "labels_BK", "token_types_BS", "is_random_B")
    tensors = [[getattr(part, name) for part in parts] for name in names]
    return digest(*(None if some[0] is None else torch.cat(some) for some in tensors))


@pytest.mark.parametrize(("name", "shape"), product(("main", "bytes"), inputs.BATCHES))
def test_200_steps_have_the_same_batches_on_any_number_of_ranks(corpora, name, shape) -> None:
    recipe, corpus = recipe_of(inputs.BATCHES[shape]), corpora[name]
    plan, expected = training_plan(recipe, corpus), ANYWHERE["batches"]
    for size in inputs.WORLD_SIZES:
        found = [
            batch_digest(*(plan.batch(step, rank, size) for rank in range(size)))
            for step in range(inputs.STEPS)
        ]
        assert found == expected[f"{shape} of {name}"], size
    validation = batch_digest(validation_batch(recipe, corpus))
    assert [validation] == expected[f"{shape} of {name}, validation"]


LEDGER = {
    "step": ("loss", "masked_lm", "next_sentence", "lr", "gradient_norm", "tokens", "flops"),
    "evaluation": ("step", "stage", "depth", "loss", "masked_lm", "next_sentence"),
    "growth": ("step", "source_depth", "target_depth", "loss_before", "loss_after"),
}


@pytest.mark.parametrize("name", inputs.RUNS)
def test_a_run_has_the_same_losses_and_weights(make_run, name: str) -> None:
    run = make_run(name)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    config = json.loads((run / "model" / "config.json").read_text())
    del config["transformers_version"]
    found = {
        **{
            kind: [[row[field] for field in fields] for row in rows if row["kind"] == kind]
            for kind, fields in LEDGER.items()
        },
        "order": " ".join(row["kind"][0] for row in rows),
        "weights": tensor_digest(load_file(run / "model" / "model.safetensors")),
        "config": json_digest(config),
    }
    agree_here(found, HERE["runs"][name], 2e-2 if "bf16" in name else 1e-3)
