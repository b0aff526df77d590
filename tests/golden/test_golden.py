"""The code gives what it gave before it was rebuilt; record_old.py says how that was recorded.

Integers and copies agree everywhere. Losses, fresh weights and measures agree to the last bit on a
machine with the record's fingerprint, and elsewhere to a tolerance. After a change that should move
numbers, STACKBERT_RECORD=1 writes what is found into expected.json instead.
"""

import functools
import gc
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import inputs
import numpy as np
import parts
import pytest
import torch
from inputs import DATA, summary

import stackbert as sb
from stackbert import model, recipes
from stackbert.attention.measures import PROFILE, WINDOWS
from stackbert.batches.batches import training_plan, validation_batch
from stackbert.corpus.store import Corpus
from stackbert.growth.grow import grow_optimizer_state, grow_with_origins
from stackbert.pretraining.synthetic import synthetic_vocabulary

RECORD = Path(__file__).with_name("expected.json")
EXPECTED: dict[str, Any] = json.loads(RECORD.read_text("utf-8"))
SAME_MACHINE = inputs.fingerprint() == EXPECTED["fingerprint"]
CODE = SimpleNamespace(
    **{name: getattr(model, name) for name in ("create_model", "parameter_count")},
    **{name: getattr(model, name) for name in ("forward_flops", "training_flops")},
    UserError=sb.UserError,
    parse_recipe=recipes.parse_recipe,
    grow_with_origins=grow_with_origins,
    grow_optimizer_state=grow_optimizer_state,
    synthetic_vocabulary=synthetic_vocabulary,
    vocabulary_of=lambda corpus: corpus.vocabulary,
    sentence_starts=lambda stream: stream.sentence_starts,
    training_plan=training_plan,
    validation_batch=validation_batch,
    batch_fields=("input_ids_BS", "columns_BK", "labels_BK", "token_types_BS", "is_random_B"),
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Corpus]:
    place = tmp_path_factory.mktemp("golden")
    wanted = inputs.corpora(place / "text")
    return {name: sb.build_corpus(place / name, **wanted[name]) for name in wanted}


def agree(found, expected, tolerance: float = 0.0, where: str = "") -> None:
    """Floats to a relative tolerance, all else exactly; fields that the record lacks are new."""
    if isinstance(expected, dict):
        for key in expected:
            agree(found[key], expected[key], tolerance, f"{where}, {key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for place, pair in enumerate(zip(found, expected, strict=True)):
            agree(*pair, tolerance, f"{where}, {place}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=tolerance, abs=tolerance), where
    elif tolerance < 1e-6 or not isinstance(expected, str) or len(expected) != 16:
        assert found == expected, where


def check(found, side: str, *keys: str, tolerance: float = 0.0) -> None:
    """What was found against its place in the record; bits of the side "here" bind only here."""
    *parents, last = keys
    place = functools.reduce(dict.__getitem__, parents, EXPECTED[side])
    if "STACKBERT_RECORD" in os.environ:
        place[last] = json.loads(json.dumps(found))
        RECORD.write_text(json.dumps(EXPECTED, indent=1, ensure_ascii=False) + "\n", "utf-8")
    exactly = SAME_MACHINE and side == "here"
    agree(found, place[last], 0.0 if exactly else tolerance, last)


def test_models_and_their_flops_are_the_same() -> None:
    flops, weights = parts.models(CODE)
    check(flops, "anywhere", "flops")
    check(weights, "here", "weights", tolerance=1.0)


@pytest.mark.parametrize("kind", inputs.MODELS)
def test_growth_gives_the_same_model(kind: str) -> None:
    copied, whole = parts.growth(CODE, kind)
    check(copied, "anywhere", "growth", kind)
    assert copied.keys() == EXPECTED["anywhere"]["growth"][kind].keys()
    check(whole, "here", "growth", kind, tolerance=1.0)


def test_a_corpus_has_the_same_tokens(corpora: dict[str, Corpus]) -> None:
    found = {name: parts.corpus(CODE, built) for name, built in corpora.items()}
    check(found, "anywhere", "corpus", tolerance=1e-12)


@pytest.mark.parametrize("shape", inputs.BATCHES)
def test_200_steps_have_the_same_batches_on_any_number_of_ranks(corpora, shape) -> None:
    check(parts.batches(CODE, corpora["main"], shape), "anywhere", "batches", shape)


@pytest.mark.parametrize("name", inputs.RUNS)
def test_a_run_has_the_same_losses_and_weights(corpora, tmp_path, name: str) -> None:
    recipe = recipes.parse_recipe(inputs.RUNS[name], "golden")
    sb.pretrain(recipe, corpus=corpora["main"], out=tmp_path / "run")
    check(parts.run(tmp_path / "run"), "here", "runs", name, tolerance=1e-3)


@pytest.mark.parametrize("kind", inputs.ATTENTION)
def test_attention_measures_the_same(kind: str) -> None:
    measured = inputs.make_model(kind, 4, gain=2.0)
    result = sb.measure_attention(measured, text=inputs.SENTENCES, tokenizer=inputs.TOKENIZER)
    heads = result.heads_of("measured")
    shape = int(heads["layer"].max()), int(heads["head"].max())
    grid = {name: heads[name].to_numpy().reshape(shape) for name in heads}
    grid["within"] = [grid[f"within_{window}"] for window in WINDOWS]
    grid["near"] = [grid[f"near_{window}"] for window in WINDOWS]
    grid["profile"] = np.stack([grid[name] for name in PROFILE], axis=-1)
    found = {name: summary(grid[name]) for name in inputs.MEASURES}
    found["likeness"] = summary(result.arrays["likeness_measured"])
    check(found, "here", "attention", kind, tolerance=1e-3)


def test_fine_tuning_scores_the_same(tmp_path: Path) -> None:
    gc.freeze()  # each Trainer collects garbage, which takes half a second where torch is loaded
    files = inputs.write_study(tmp_path)
    result = sb.finetune(
        files / "model",
        task="own",
        data=files / "train.csv",
        dev=files / "dev.csv",
        out=tmp_path / "out",
        seeds=2,
        settings=DATA["finetuning"]["settings"],
        control=True,
    )
    gc.unfreeze()
    found = {
        f"{name} {seed}": [
            dict(zip(rows["metric"], rows["score"], strict=True)),
            round(float(rows["loss"].iloc[0]), 6),
        ]
        for (name, seed), rows in result.scores.groupby(["model", "seed"])
    }
    check(found, "here", "finetuning", tolerance=0.5)
