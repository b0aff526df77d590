"""Whatever bytes of a file are damaged: a sentence that names it, or what it says."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import stackbert as sb
from stackbert.errors import StackBertError
from stackbert.model_files import open_model, open_tokenizer
from stackbert.pretraining.checkpoints import read_checkpoint
from stackbert.pretraining.ledger import read_ledger, stage_table
from stackbert.pretraining.record import read_run
from tiny_runs import checkpoints, content, tiny_recipe


def open_checkpoint(folder: Path) -> object:
    from transformers import AutoModelForMaskedLM

    return open_model(folder, AutoModelForMaskedLM)


def read_all(folder: Path) -> None:
    read_ledger(folder)
    stage_table(folder)


# Where a file of each kind lies in the folder of everything, and how its folder is read.
READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "manifest": ("corpus/manifest.json", lambda f: sb.open_corpus(f).verify()),
    "tokens": ("corpus/train/tokens.bin", lambda f: sb.open_corpus(f.parent).verify()),
    "tokenizer": ("corpus/tokenizer/tokenizer.json", open_tokenizer),
    "recipe": ("run/recipe.yaml", lambda f: sb.load_recipe(f / "recipe.yaml")),
    "record": ("run/run.json", read_run),
    "ledger": ("run/metrics.jsonl", read_all),
    "state": ("run/last/state.json", read_checkpoint),
    "weights": ("run/last/model.safetensors", open_checkpoint),
    "config": ("run/last/config.json", open_checkpoint),
}


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Cut off, with bytes changed, or with a part gone, doubled or replaced by another value."""
    place = draw.randrange(len(data))
    end = min(len(data), place + draw.choice([1, 2, 8, 60]))
    middle = draw.choice(
        [
            b"",
            draw.randbytes(end - place),
            data[place:end] * 2,
            *(b"null", b"-1", b"1e999", b"[]", b"{}", b'"x"', b"NaN", b"\xff", b"9" * 30),
        ]
    )
    return data[:place] + middle + (b"" if draw.random() < 0.2 else data[end:])


@pytest.fixture(scope="module")
def everything(finished, tiny_corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("everything")
    shutil.copytree(tiny_corpus.folder, folder / "corpus")
    shutil.copytree(finished(tiny_recipe()), folder / "run")
    *_, last = checkpoints(folder / "run").values()
    last.rename(folder / "run" / "last")
    return folder


@pytest.mark.parametrize("kind", READERS)
def test_a_damaged_file_gives_a_sentence_or_what_it_says(kind: str, everything) -> None:
    name, read = READERS[kind]
    path, outcomes = everything / name, set()
    true = path.read_bytes()
    for seed in range(30):
        path.write_bytes(damaged(true, random.Random(seed)))
        before = content(everything)
        try:
            read(path.parent)
            outcomes.add("read")
        except StackBertError as error:
            outcomes.add("refused")
            said = str(error)
            assert str(path.parent) in said or str(path.parent.parent) in said, (seed, said)
            assert said[-1] in ".?…)", (seed, said)
            assert "\n" not in said
        assert content(everything) == before, seed
    path.write_bytes(true)
    assert "refused" in outcomes
