"""A tokenizer of words, sentences of it, tiny encoders whose heads differ, tiny runs."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stackbert.attention.measure import AttentionResult, measure_attention
from tiny_encoders import save as save_to
from tiny_encoders import shaken, tiny_encoder, word_tokenizer
from tiny_runs import tiny_recipe

WORDS = [f"w{number}" for number in range(90)]
OPERATORS = ("stack", "identity-noise", "interleave")
ENGLISH = (
    "The river runs from the mountains in the north to the sea in the south of the country.",
    "The economy depends on agriculture, on fishing and on the export of minerals and wood.",
    "Most of the people live in the capital and in the towns along the coast of the island.",
)


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
        model = tiny_encoder(kind, depth, seed=depth, num_attention_heads=heads, **fields)
        return shaken(model, depth + 1, by=0.3)

    return build


@pytest.fixture
def save(tokenizer, tmp_path):
    return lambda model, name="model", own=tokenizer: save_to(tmp_path / name, model, own)


@pytest.fixture(scope="session")
def make_run(finished) -> Callable[[str], Path]:
    """Runs of 1, 2, 4 layers by an operator."""
    stages = [{"depth": depth, "steps": 4} for depth in (1, 2, 4)]
    fields = {"stages": stages, "batch__sequence_length": 32, "model__initializer_range": 0.2}
    return lambda operator: finished(tiny_recipe(growth__operator=operator, **fields))


@pytest.fixture(scope="session")
def found(make_run) -> AttentionResult:
    """Runs by three operators; the first stage knows of none."""
    run, *others = map(make_run, OPERATORS)
    return measure_attention(run, text=ENGLISH, beside=others)
