"""The central promises of a run: resuming, micro-batches and the masked loss change nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from stackbert.batches.batches import IGNORED, training_plan
from stackbert.corpus.build import build_corpus
from stackbert.corpus.store import Corpus
from stackbert.pretraining.run import pretrain
from stackbert.pretraining.trainer import recipe_model
from stackbert.progress import Progress
from stackbert.recipe import Recipe

STEPS, GROWTH = 8, 4
DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
_TIMED = {"seconds", "tokens_per_second", "mfu", "growth_seconds", "wall"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    words = ("river", "harbour", "library", "market", "garden", "bridge", "railway", "forest")
    documents = [
        f"The {word} of town {n} was opened in {1800 + n}. Later a second {word} followed it."
        for n, word in enumerate(words * 12)
    ]
    (folder / "all.txt").write_text("\n\n".join(documents), encoding="utf-8")
    return build_corpus(
        folder / "corpus", text=[folder / "all.txt"], vocab_size=128, validation=0.2
    )


def tiny(model: dict[str, Any], **fields: Any) -> Recipe:
    raw = {
        "name": "tiny",
        "model": {
            "hidden_size": 16,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            **model,
        },
        "stages": [{"depth": 1, "steps": GROWTH}, {"depth": 2, "steps": STEPS - GROWTH}],
        "batch": {"sequences": 4, "sequence_length": 16, "micro_batch": 4},
        "optimizer": {"lr": 5e-3},
        "precision": "fp32",
        "compile": False,
        "evaluation": {"sequences": 8, "every_steps": 2},
        "checkpoint": {"every_steps": 3, "every_minutes": None, "keep": 9},
        "log_every": 1,
    }
    return Recipe.model_validate({**raw, **fields})


class CrashAt(Progress):
    def __init__(self, step: int) -> None:
        self._step = step

    def step(self, done: int, total: int, text: str) -> None:
        if done == self._step:
            raise KeyboardInterrupt


def ledger(run: Path) -> list[dict[str, Any]]:
    """Without what a clock said."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: line[key] for key in line if key not in _TIMED} for line in lines]


def tensors(run: Path) -> dict[str, bytes]:
    files = [*run.rglob("*.safetensors"), *run.rglob("config.json")]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("model", "optimizer"),
    [({"type": "megatron-bert", **DROPOUT}, "muon"), ({"type": "modernbert"}, "adamw")],
    ids=["megatron-bert, muon, dropout", "modernbert, adamw"],
)
def test_a_run_that_breaks_off_ends_with_the_same_bits(
    model: dict[str, Any], optimizer: str, corpus: Corpus, tmp_path: Path
) -> None:
    """Before, right at and after a growth: each time from the last checkpoint."""
    fields = {"name": optimizer, "lr": 5e-3, "clip_norm": 0.5}
    recipe = tiny(model, optimizer=fields, growth={"optimizer_state": "copy"})
    torch.set_num_threads(1)
    pretrain(recipe, corpus=corpus, out=tmp_path / "whole")
    for step in (2, GROWTH, GROWTH + 1, STEPS):
        with pytest.raises(KeyboardInterrupt):
            pretrain(recipe, corpus=corpus, out=tmp_path / "run", progress=CrashAt(step))
    pretrain(recipe, corpus=corpus, out=tmp_path / "run")
    assert tensors(tmp_path / "run") == tensors(tmp_path / "whole")
    assert ledger(tmp_path / "run") == ledger(tmp_path / "whole")
    shutil.rmtree(tmp_path / "run" / "model")  # as a kill in the middle of the export would
    pretrain(recipe, corpus=corpus, out=tmp_path / "run")
    assert tensors(tmp_path / "run") == tensors(tmp_path / "whole")


def test_micro_batches_change_neither_losses_nor_gradients(corpus: Corpus, tmp_path: Path) -> None:
    pairs = {"objective": {"next_sentence": True}, "optimizer": {"lr": 5e-4, "eps": 1e-4}}
    lines = []
    for size in (4, 3, 1):
        batch = {"sequences": 4, "sequence_length": 24, "micro_batch": size}
        recipe = tiny({"type": "bert"}, batch=batch, **pairs)
        pretrain(recipe, corpus=corpus, out=tmp_path / f"run-{size}")
        lines.append(ledger(tmp_path / f"run-{size}"))
    whole, *split = lines
    for name in ("loss", "masked_lm", "next_sentence", "gradient_norm"):
        expected = [line[name] for line in whole if name in line]
        for other in split:
            assert [line[name] for line in other if name in line] == pytest.approx(expected, 1e-5)


@pytest.mark.parametrize("kind", ["bert", "megatron-bert", "roberta-prelayernorm", "modernbert"])
def test_the_first_loss_is_transformers_dense_loss(
    kind: str, corpus: Corpus, tmp_path: Path
) -> None:
    pairs = kind in ("bert", "megatron-bert")
    batch = {"sequences": 4, "sequence_length": 24, "micro_batch": 4}
    recipe = tiny({"type": kind}, batch=batch, objective={"next_sentence": pairs})
    pretrain(recipe, corpus=corpus, out=tmp_path / "run")
    logged = next(line for line in ledger(tmp_path / "run") if line["kind"] == "step")

    model: Any = recipe_model(recipe, corpus.vocabulary, 1, seed=recipe.seed)
    rows = training_plan(recipe, corpus).batch(0)
    labels_BS = torch.full_like(rows.input_ids_BS, IGNORED)
    labels_BS.scatter_(1, rows.columns_BK, rows.labels_BK)
    inputs = {"input_ids": rows.input_ids_BS, "labels": labels_BS}
    if pairs:
        inputs |= {"token_type_ids": rows.token_types_BS, "next_sentence_label": rows.is_random_B}
    dense = model(**inputs).loss
    dense.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    assert logged["loss"] == pytest.approx(dense.item(), rel=1e-5)
    assert logged["gradient_norm"] == pytest.approx(norm.item(), rel=1e-4)
