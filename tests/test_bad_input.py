"""Whatever is damaged in a file: a sentence that names it, or what it says. Nothing else."""

import random
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tiny_runs import tiny_recipe

CASES = {"recipe": 30, "text": 60, "tokenizer": 30, "corpus": 30, "run": 12, "model": 20}
"""Of each reader of the fuzzer, a few; benchmarks/fuzz.py runs as many of all as one likes."""


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(Path(__file__).parents[1] / "benchmarks")])
        return __import__("fuzz")


@pytest.fixture(scope="module")
def material(finished, tiny_corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    run = finished(tiny_recipe())
    shutil.copytree(run, folder / "run")
    shutil.copytree(run / "model", folder / "model")
    shutil.copytree(tiny_corpus.folder, folder / "corpus")
    shutil.copytree(tiny_corpus.tokenizer_folder, folder / "tokenizer")
    (folder / "recipe").mkdir()
    shutil.copy(run / "recipe.yaml", folder / "recipe")
    (folder / "text").mkdir()
    lines = (f'{{"text": "Document {n}.", "n": {n}}}\n' for n in range(20))
    (folder / "text" / "a.jsonl").write_text("".join(lines))
    return folder


@pytest.mark.parametrize("reader", CASES)
def test_a_damaged_file_gives_a_sentence_or_what_it_says(reader: str, fuzz, material) -> None:
    cases = [
        fuzz.run_case(reader, material, random.Random(f"{reader} {number}"))
        for number in range(CASES[reader])
    ]
    assert [said for outcome, said in cases if outcome == "failed"] == []
    assert {outcome for outcome, _ in cases} == {"refused", "accepted"}, "a reader was not tried"
