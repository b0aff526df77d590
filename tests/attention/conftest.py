"""A word tokenizer, sentences of it, tiny encoders that look somewhere in particular, tiny runs."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import stackbert as sb
from browser_helpers import browser, visit  # noqa: F401 (fixtures)
from recipe_fields import recipe_of
from stackbert.__main__ import main
from stackbert.attention.examples import Examples
from stackbert.attention.maps import attention_maps
from stackbert.attention.measure import measure_attention
from stackbert.attention.result import AttentionResult
from tiny_encoders import KINDS, tiny_encoder, word_tokenizer

WORDS = [f"w{number}" for number in range(90)]
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


def build(kind: str = "bert", depth: int = 2, heads: int = 2, **fields) -> PreTrainedModel:
    """With weights so large that heads differ and none is uniform."""
    model = tiny_encoder(kind, depth, seed=depth, num_attention_heads=heads, **fields)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(depth + 1)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer(WORDS)


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """Of 13 to 43 tokens, not in the order of their length."""
    lengths = [12, 41, 20, 33, 11, 27, 20, 15]
    starts = (7 * place for place in range(len(lengths)))
    return [
        " ".join(WORDS[(start + 11 * at) % 90] for at in range(length))
        for start, length in zip(starts, lengths, strict=True)
    ]


@pytest.fixture(params=list(KINDS))
def kind(request) -> str:
    return request.param


@pytest.fixture
def make_model():
    return build


@pytest.fixture
def words_tokenizer():
    return word_tokenizer


@pytest.fixture
def save(tokenizer, tmp_path):
    """Writes a model with its tokenizer as a checkpoint folder."""

    def write(model, name="model", with_tokenizer=tokenizer):
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
            sb.pretrain(recipe, corpus=factbook_corpus, out=made[key])
        return made[key]

    return make


@pytest.fixture(scope="session")
def result(tokenizer, sentences) -> AttentionResult:
    return measure_attention(build(depth=3), text=sentences, tokenizer=tokenizer)


@pytest.fixture(scope="session")
def examples(tokenizer, sentences) -> Examples:
    """Of `result`."""
    maps = attention_maps(build(depth=3), tokenizer, sentences[:4], max_length=24)
    return Examples(tuple(sorted(maps, key=lambda each: each.index)))


@pytest.fixture
def hostile(examples) -> Examples:
    """The same with a third token in every sentence that is no friend of a page."""
    token = "</script><img src=x onerror=alert(1)>"
    return Examples(
        tuple(
            replace(each, tokens=(*each.tokens[:2], token, *each.tokens[3:]))
            for each in examples.sentences
        )
    )


@pytest.fixture
def years(tmp_path) -> Path:
    """A text of English sentences, for the runs."""
    path = tmp_path / "years.txt"
    path.write_text(
        "\n".join(
            f"In the year {year} the river rose over the town and {year - 1700} people left it."
            for year in range(1800, 1812)
        ),
        encoding="utf-8",
    )
    return path


@pytest.fixture
def stackbert(monkeypatch, capsys):
    """Calls the command; gives its code, and what it wrote to either stream."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["stackbert", *map(str, arguments)])
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        return (code, *capsys.readouterr())

    return call
