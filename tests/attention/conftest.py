"""A tokenizer of words, sentences of it, tiny encoders whose heads differ, tiny runs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from recipe_fields import recipe_of
from stackbert.attention.measure import AttentionResult, measure_attention
from stackbert.pretraining.run import pretrain
from tiny_encoders import tiny_encoder, word_tokenizer

WORDS = [f"w{number}" for number in range(90)]
OPERATORS = ("stack", "identity-noise", "interleave")
ENGLISH = (
    "The river runs from the mountains in the north to the sea in the south of the country.",
    "The economy depends on agriculture, on fishing and on the export of minerals and wood.",
    "Most of the people live in the capital and in the towns along the coast of the island.",
)
RECIPE = {
    "name": "tiny",
    "model": {
        "type": "megatron-bert",
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "initializer_range": 0.2,
    },
    "stages": [{"depth": 1, "steps": 4}, {"depth": 2, "steps": 4}, {"depth": 4, "steps": 4}],
    "batch": {"sequences": 4, "sequence_length": 32, "micro_batch": 4},
    "optimizer": {"lr": 5e-3},
    "precision": "fp32",
    "compile": False,
    "evaluation": {"sequences": 4},
    "seed": 3,
}


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer(WORDS)


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """Of 13 to 43 tokens, not in the order of their length."""
    lengths = [12, 41, 20, 33, 11, 27, 20, 15]
    return [
        " ".join(WORDS[(7 * number + 11 * at) % 90] for at in range(length))
        for number, length in enumerate(lengths)
    ]


@pytest.fixture
def make_model():
    def build(kind: str = "bert", depth: int = 2, heads: int = 2, **fields) -> PreTrainedModel:
        """With weights so large that heads differ and none is uniform."""
        model = tiny_encoder(kind, depth, seed=depth, num_attention_heads=heads, **fields)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(depth + 1)
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
        return model

    return build


@pytest.fixture
def save(tokenizer, tmp_path):
    """Writes a model with a tokenizer as a Hugging Face folder."""

    def write(model, name="model", with_tokenizer=tokenizer) -> Path:
        model.save_pretrained(tmp_path / name)
        with_tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture(scope="session")
def make_run(factbook_corpus, tmp_path_factory) -> Callable[..., Path]:
    """Runs of 1, 2, 4 layers by an operator; each is made once."""
    made: dict[str, Path] = {}

    def make(operator: str, **fields) -> Path:
        key = operator + repr(fields)
        if key not in made:
            recipe = recipe_of(RECIPE, growth={"operator": operator}, **fields)
            made[key] = tmp_path_factory.mktemp("runs") / f"{operator}-run"
            pretrain(recipe, corpus=factbook_corpus, out=made[key])
        return made[key]

    return make


@pytest.fixture(scope="session")
def found(make_run) -> AttentionResult:
    """Runs by three operators; the first stage knows of none."""
    run, *others = map(make_run, OPERATORS)
    return measure_attention(run, text=ENGLISH, beside=others)
