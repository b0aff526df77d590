"""Readers of recipes, runs and corpora."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import yaml

import fuzz_damage as damage
import fuzz_structure as structure
from fuzz_cases import Reader, WrongResult
from fuzz_text import DOCUMENTS
from stackbert.corpus.build import build_corpus
from stackbert.corpus.manifest import MANIFEST
from stackbert.corpus.store import Corpus, open_corpus
from stackbert.pretraining.ledger import LEDGER, Ledger, read_ledger
from stackbert.pretraining.rundir import RECIPE, RUN, Request, RunRecord, write_record
from stackbert.recipe import Recipe
from stackbert.recipe_files import load_recipe, parse_recipe

TINY: dict[str, Any] = {
    "name": "tiny",
    "summary": "Two depths, Motörhead",
    "model": {
        "type": "bert",
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "hidden_dropout_prob": 0.1,
    },
    "stages": [{"depth": 1, "steps": 6}, {"depth": 2, "steps": 6, "mask_rate": 0.2}],
    "batch": {"sequences": 4, "sequence_length": 16, "micro_batch": 4},
    "optimizer": {"lr": 0.005, "betas": [0.9, 0.98]},
    "schedule": {"name": "piecewise", "points": [[0, 1.0], [9, 0.1]]},
    "precision": "fp32",
    "compile": False,
    "evaluation": {"sequences": 8, "every_steps": 6},
    "seed": 3,
}
MACHINE = {"stackbert": "0.1.0", "device": "cpu", "threads": 1, "processes": 1}


def small_corpus(folder: Path) -> Corpus:
    """A corpus of a few sentences."""
    (folder / "first.txt").write_bytes("\n\n".join(DOCUMENTS * 2).encode())
    return build_corpus(folder / "corpus", text=[folder / "first.txt"], validation=0.4)


def _check_recipe(recipe: Recipe) -> None:
    again = parse_recipe(yaml.safe_load(recipe.to_yaml()), "its own YAML")
    if again != recipe:
        raise WrongResult("a recipe that is another one once written and read")
    if recipe.total_steps != sum(stage.steps for stage in recipe.stages):
        raise WrongResult("steps that do not add up")
    json.dumps(recipe.model_dump(mode="json"), allow_nan=False, ensure_ascii=False).encode()


class RecipeFile(Reader):
    """Recipes."""

    name = "recipe"
    reads = "a recipe's YAML"
    damages: ClassVar = {"my.yaml": structure.of_yaml}

    def prepare(self, folder: Path) -> None:
        """One with every kind of field."""
        text = yaml.safe_dump(TINY, allow_unicode=True, sort_keys=False)
        (folder / "my.yaml").write_text("# a comment\n" + text, encoding="utf-8")

    def read(self, folder: Path, damaged: str) -> None:
        """What is taken survives being written."""
        _check_recipe(load_recipe(folder / damaged))


class Overrides(Reader):
    """What --set says, one a line; the file is the fuzzer's, not the user's."""

    name = "set"
    reads = "--set FIELD=VALUE"
    damages: ClassVar = {"overrides.txt": damage.of_bytes}
    named = ("--set", "recipe 'small-cpu'")

    def prepare(self, folder: Path) -> None:
        """Of each kind of field."""
        lines = ("seed=3", "stages.0.steps=12", "model.hidden_dropout_prob=0.1", "compile=auto")
        more = ("stages=[{depth: 2, steps: 900}]", "optimizer.betas=[0.9, 0.99]", "summary=a b")
        (folder / "overrides.txt").write_text("\n".join((*lines, *more)), encoding="utf-8")

    def read(self, folder: Path, damaged: str) -> None:
        """As the system gives them: bytes that are no text stand as lone surrogates."""
        text = (folder / damaged).read_bytes().decode("utf-8", "surrogateescape")
        given = [line for line in text.split("\n") if line]
        lengths = [line for line in given if len(line) < 100_000]  # the system's own limit
        _check_recipe(load_recipe("small-cpu", lengths))


def write_run(folder: Path, corpus: Corpus) -> Path:
    """A run directory as one that has ended leaves it, made without training."""
    recipe = parse_recipe(copy.deepcopy(TINY), "tiny.yaml")
    folder.mkdir()
    request = Request(recipe, "30m", None, corpus.manifest.fingerprint)
    write_record(folder, recipe, RunRecord(request, str(corpus.folder), MACHINE, 1e11))
    ledger = Ledger(folder / LEDGER)

    def at(step: int) -> dict[str, Any]:
        return {"step": step, "tokens": 64 * step, "flops": 10**6 * step, "seconds": 0.1 * step}

    def evaluate(step: int, stage: int, loss: float) -> None:
        more = {"loss": loss, "masked_lm": loss, "next_sentence": None}
        ledger.write("evaluation", stage=stage, depth=stage + 1, **at(step), **more)

    evaluate(0, 0, 5.0)
    for step in range(1, 13):
        stage = int(step > 6)
        ledger.write(
            "step",
            stage=stage,
            depth=stage + 1,
            **at(step),
            loss=5.0 - 0.1 * step,
            masked_lm=5.0 - 0.1 * step,
            next_sentence=None,
            lr=1e-3,
            gradient_norm=1.0,
            tokens_per_second=640.0,
            mfu=0.3,
        )
        if step % 6 == 0:
            evaluate(step, stage, 5.0 - 0.1 * step)
            ledger.write(
                "time", step=step, stage=stage, depth=1, seconds=0.1 * step, wall={"training": 0.6}
            )
        if step == 6:
            ledger.write(
                "growth",
                step=6,
                stage=1,
                operator="stack",
                optimizer_state="reset",
                source_depth=1,
                target_depth=2,
                loss_before=4.4,
                loss_after=4.6,
                seconds=0.6,
                growth_seconds=0.1,
            )
    ledger.write("end", step=12, seconds=1.2, wall={"training": 1.2})
    ledger.close()
    return folder


class Run(Reader):
    """A run directory, up to its report's content."""

    name = "run"
    reads = "a run: run.json, recipe.yaml"
    damages: ClassVar = {f"run/{RUN}": structure.of_json, f"run/{RECIPE}": structure.of_yaml}

    def prepare(self, folder: Path) -> None:
        """As a run leaves it."""
        write_run(folder / "run", small_corpus(folder))

    def read(self, folder: Path, damaged: str) -> None:
        """A report can be made of whatever is taken."""
        _check_run(folder / "run")


def _check_run(run: Path) -> None:
    from stackbert.pretraining.rundir import read_record
    from stackbert.reporting.content import Table, Text
    from stackbert.reporting.page import render
    from stackbert.reporting.runs import run_page

    recipe, record = read_record(run)
    _check_recipe(recipe)
    _check_recipe(record.request.recipe)
    if not (isinstance(record.matrix_rate, int | float) and math.isfinite(record.matrix_rate)):
        raise WrongResult(f"a matrix rate of {record.matrix_rate!r}")
    page = run_page([run])
    # Without the figures: each takes a third of a second.
    parts = tuple(part for part in page.parts if isinstance(part, Table | Text))
    render(replace(page, parts=parts)).encode()


class LedgerFile(Reader):
    """A run's numbers."""

    name = "ledger"
    reads = "a run: metrics.jsonl"
    damages: ClassVar = {f"run/{LEDGER}": structure.of_json_lines}
    named = ("run",)

    def prepare(self, folder: Path) -> None:
        """As a run leaves it."""
        write_run(folder / "run", small_corpus(folder))

    def read(self, folder: Path, damaged: str) -> None:
        """Line by line what stands there; a report can be made of it."""
        rows = read_ledger(folder / "run")
        lines = (folder / damaged).read_bytes().split(b"\n")
        whole = [line for line in lines[:-1] if line.strip()]
        parsed = [json.loads(line) for line in whole]
        if rows[: len(parsed)] != parsed or len(rows) > len(parsed) + 1:
            raise WrongResult(f"{len(rows)} rows of {len(parsed)} lines")
        _check_run(folder / "run")


class CorpusFolder(Reader):
    """A corpus."""

    name = "shards"
    reads = "a corpus: manifest, shards, tokenizer"
    damages: ClassVar = {
        f"corpus/{MANIFEST}": structure.of_json,
        **{
            f"corpus/{side}/{part}-00000.npy": structure.of_array
            for side, part in (
                ("train", "tokens"),
                ("train", "documents"),
                ("validation", "sentences"),
            )
        },
        "corpus/tokenizer/tokenizer.json": structure.of_json,
    }

    def prepare(self, folder: Path) -> None:
        """A small one."""
        self._fingerprint = small_corpus(folder).manifest.fingerprint

    def read(self, folder: Path, damaged: str) -> None:
        """Verified, every shard is what it was; and its counts are those of the manifest."""
        corpus = open_corpus(folder / "corpus")
        manifest = corpus.manifest
        sides = ((corpus.train, manifest.train), (corpus.validation, manifest.validation))
        for stream, split in sides:
            counts = (split.tokens, split.documents, split.sentences)
            if any(type(count) is not int or count < 0 for count in counts):
                raise WrongResult(f"counts that are none: {str(counts)[:80]}")
            if len(stream.read(0, len(stream))) != split.tokens:
                raise WrongResult("another number of tokens")
            if len(stream.document_starts) != split.documents:
                raise WrongResult("another number of documents")
        if not 0 <= manifest.separator_id < manifest.tokenizer_size <= manifest.vocab_size:
            raise WrongResult("a separator that is no token")
        json.dumps(manifest.to_json(), allow_nan=False)
        corpus.verify()
        if not damaged.endswith(MANIFEST) and manifest.fingerprint != self._fingerprint:
            raise WrongResult("a change was not seen")
        for stream, _ in sides:
            starts = stream.sentence_starts(0, len(stream))
            if len(starts) and not 0 <= starts.min() <= starts.max() < len(stream):
                raise WrongResult("sentences outside the corpus")
