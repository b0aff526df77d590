"""What a run directory holds, whom it refuses; budgets, trackers and the model card."""

import ast
import dataclasses
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from stackbert.corpus.build import build_corpus
from stackbert.corpus.store import TokenStream
from stackbert.errors import UserError
from stackbert.model_files import open_tokenizer
from stackbert.pretraining import run as run_module
from stackbert.pretraining.ledger import read_ledger
from stackbert.pretraining.model_card import model_card
from stackbert.pretraining.record import read_run
from stackbert.pretraining.run import pretrain
from stackbert.recipes import load_recipe
from tiny_runs import (
    At,
    Child,
    Crash,
    break_off,
    checkpoints,
    command_line,
    content,
    outcome,
    pretrain_command,
    tiny_recipe,
)

RECIPE = tiny_recipe()


@pytest.fixture(scope="module")
def stopped(tiny_corpus, tmp_path_factory) -> Path:
    """A run that broke off at step 5; never changed."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    break_off(RECIPE, corpus=tiny_corpus, out=run, at=5)
    return run


def test_the_run_directory_is_as_designed(finished) -> None:
    run = finished(RECIPE)
    names = {path.name for path in run.iterdir() if path.name != ".lock"}
    assert names == {"checkpoints", "log.txt", "metrics.jsonl", "model", "recipe.yaml", "run.json"}
    for folder in checkpoints(run).values():
        held = {"config.json", "model.safetensors", "optimizer.safetensors", "state.json"}
        assert held | {"tokenizer.json", "tokenizer_config.json"} <= set(map(str, content(folder)))
    record = read_run(run)
    assert load_recipe(run / "recipe.yaml") == record.recipe == record.request.recipe == RECIPE
    # Nothing pickled, nothing half-written, nothing that only its owner can read.
    files = [path for path in run.rglob("*") if path.is_file()]
    assert not [p for p in files if p.suffix in (".bin", ".pt", ".pth", ".pkl", ".partial")]
    assert {p.stat().st_mode & 0o044 for p in files} == {0o044}


def test_every_difference_to_the_run_that_is_there_is_named(stopped, tiny_corpus, tmp_path) -> None:
    (tmp_path / "all.txt").write_text("\n\n".join(f"Words of {n}." for n in range(99)))
    other = build_corpus(tmp_path / "other", text=[tmp_path / "all.txt"], validation=0.3)
    stages = [{"depth": 1, "steps": 9}]
    changed = tiny_recipe(optimizer__lr=0.1, model__hidden_dropout_prob=0.1, stages=stages)
    before = content(stopped)
    for wrong, *named in (
        (
            {"recipe": changed},
            "model.hidden_dropout_prob (None there, 0.1 here)",
            "optimizer.lr (0.005 there, 0.1 here)",
            "stages.0.steps (4 there, 9 here)",
            "stages.1.depth (2 there, None here)",
        ),
        ({"budget": "2s"}, "--budget (none there, 2s here)"),
        ({"steps": 9}, "--steps (none there, 9 here)"),
        ({"steps": 9, "budget": "2s"}, "not both"),
        ({"corpus": other}, tiny_corpus.fingerprint, other.fingerprint),
        ({"resume": "never"}, "holds a run already"),
    ):
        with pytest.raises(UserError) as refused:
            pretrain(**{"recipe": RECIPE, "corpus": tiny_corpus, "out": stopped, **wrong})
        assert all(part in str(refused.value) for part in named), refused.value
        assert content(stopped) == before


def test_a_moved_corpus_is_the_same_an_edited_recipe_is_not(stopped, tiny_corpus, tmp_path) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    moved = shutil.copytree(tiny_corpus.folder, tmp_path / "moved")
    written = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(written.replace("lr: 0.005", "lr: 0.5"))
    with pytest.raises(UserError, match=r"was changed after the run had started: optimizer\.lr"):
        pretrain(RECIPE, corpus=moved, out=run)
    (run / "recipe.yaml").write_text(written)
    assert pretrain(RECIPE, corpus=moved, out=run).model_folder.is_dir()


def test_a_resume_on_another_machine_is_said(stopped, tiny_corpus, tmp_path) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    record = read_run(run)
    machine = record.machine | {"threads": 64, "device": "CPU of another kind"}
    record.model_copy(update={"machine": machine}).write(run / "run.json")
    pretrain(RECIPE, corpus=tiny_corpus, out=run, progress=(heard := At()))
    (said,) = (text for text in heard.said if "the run began elsewhere" in text)
    assert "device (CPU of another kind there, " in said
    assert "threads (64 there, " in said
    pretrain(RECIPE, corpus=tiny_corpus, out=stopped.with_name("same"), progress=(heard := At()))
    assert not any("the run began elsewhere" in text for text in heard.said)


def test_a_folder_of_something_else_or_a_file_is_left_alone(tiny_corpus, tmp_path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "recipe.yaml").write_text("# my notes\n" + RECIPE.to_yaml())
    before = content(tmp_path)
    with pytest.raises(UserError, match=r"not empty .*recipe\.yaml, thesis\.tex"):
        pretrain(load_recipe(tmp_path / "recipe.yaml"), corpus=tiny_corpus, out=tmp_path)
    for out in (tmp_path / "thesis.tex", tmp_path / "thesis.tex" / "below"):
        with pytest.raises(UserError, match="Choose a path that is free"):
            pretrain(RECIPE, corpus=tiny_corpus, out=out)
    assert content(tmp_path) == before


def test_a_second_process_on_the_same_run_is_refused(tiny_corpus, finished, tmp_path) -> None:
    run, said = tmp_path / "run", []
    command = command_line(*pretrain_command(RECIPE, tiny_corpus, tmp_path))

    def second() -> None:
        child = Child(tmp_path / "said.txt", command)
        said.append((child.wait(), child.output))

    pretrain(RECIPE, corpus=tiny_corpus, out=run, progress=At(5, second))
    ((code, output),) = said
    assert code == 2
    assert output.startswith(f"stackbert: {run} is in use by another process.")
    assert len(output.splitlines()) == 1
    assert outcome(run) == outcome(finished(RECIPE)), "the first one was not disturbed"


def test_a_finished_run_called_again_changes_nothing(tiny_corpus, finished, monkeypatch) -> None:
    run = finished(RECIPE)
    before = content(run)
    monkeypatch.setattr(run_module, "first_model", None)
    assert pretrain(RECIPE, corpus=tiny_corpus, out=run).loss > 0
    assert content(run) == before
    with pytest.raises(UserError, match="seed"):
        pretrain(tiny_recipe(seed=9), corpus=tiny_corpus, out=run)


def test_a_model_or_steps_that_cannot_be_are_refused_before_a_run_is_made(tiny_corpus, tmp_path):
    for said, fields, steps in (("hiddensize", {"model__hiddensize": 3}, None), ("1 step", {}, 1)):
        with pytest.raises(UserError, match=said):
            pretrain(tiny_recipe(**fields), corpus=tiny_corpus, out=tmp_path, steps=steps)
        assert not content(tmp_path)


def test_a_budget_scales_the_steps_once_and_so_do_steps(tiny_corpus, tmp_path, monkeypatch) -> None:
    recipe = tiny_recipe(
        stages=[{"depth": 1, "steps": 30}, {"depth": 2, "steps": 10}],
        schedule__warmup_steps=20,
        evaluation__every_steps=None,
        precision="auto",
        log_every=3,
    )
    run, heard = tmp_path / "run", At(6)
    with pytest.raises(Crash):
        pretrain(recipe, corpus=tiny_corpus, out=run, budget="0.5s", progress=heard)
    written = read_run(run).recipe
    first, second = (stage.steps for stage in written.stages)
    assert abs(first - 3 * second) <= 3, "each stage keeps its share"
    assert abs(written.schedule.warmup_steps - (first + second) / 2) <= 1
    assert any(f"{first + second:,} steps fit into 0.5s" in text for text in heard.said)
    assert written.precision in ("fp32", "bf16"), "nothing is left open"
    assert read_run(run).request.recipe == recipe, "the request is kept as it was"
    monkeypatch.setattr(run_module, "measure", None)  # a resumed run does not measure again
    result = pretrain(recipe, corpus=tiny_corpus, out=run, budget="0.5s")
    assert result.stages.steps.tolist() == [first, second]
    result = pretrain(recipe, corpus=tiny_corpus, out=tmp_path / "steps", steps=8)
    assert result.stages.steps.tolist() == [6, 2]


def test_tensorboard_has_the_ledgers_numbers_after_a_resume(tiny_corpus, tmp_path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    break_off(RECIPE, corpus=tiny_corpus, out=tmp_path, track=["tensorboard"], at=6)
    pretrain(RECIPE, corpus=tiny_corpus, out=tmp_path, track=["tensorboard"])
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    ledger = read_ledger(tmp_path)
    steps, evaluations = (ledger[ledger.kind == kind] for kind in ("step", "evaluation"))
    for tag, rows in (("train/lr", steps), ("validation/loss", evaluations)):
        shown = events.Scalars(tag)
        assert [event.step for event in shown] == rows.step.tolist()
        wanted = pytest.approx(rows[tag.partition("/")[2]].tolist(), rel=1e-6)
        assert [event.value for event in shown] == wanted


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "trackio", "mlflow"])
def test_a_trackers_missing_package_is_named(tracker, tiny_corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, tracker, None)
    with pytest.raises(UserError, match=rf"pip install 'stackbert\[{tracker}\]'"):
        pretrain(RECIPE, corpus=tiny_corpus, out=tmp_path, track=[tracker])


HOSTILE = "---\ntags: [x]\n---\n```\n    # a`b <script>alert(1)</script> | pipe |"


def test_the_cards_example_is_a_whole_sentence_without_an_unknown_word(
    tiny_corpus, finished, tmp_path
) -> None:
    run, side = finished(RECIPE), tmp_path / "validation"
    shutil.copytree(tiny_corpus.folder / "validation", side)
    stream = TokenStream(side, tiny_corpus.vocabulary.dtype)
    corpus = dataclasses.replace(tiny_corpus, validation=stream)

    def example() -> list[str]:
        card = model_card(RECIPE, corpus, [], None, {}, run / "model")
        return re.findall(r"fill\(['\"](.*)['\"]\)", card)

    tokens = np.memmap(side / "tokens.bin", tiny_corpus.vocabulary.dtype, mode="r+")
    (first,) = example()
    tokens[3] = open_tokenizer(run / "model").unk_token_id
    (second,) = example()
    assert first != second
    for sentence in (first, second):
        assert re.fullmatch(r"[a-z0-9 ,]+ \[MASK\] [a-z0-9 ,]+\.", sentence), "whole"
    tokens[:] = tokens[3]
    assert example() == []


def test_the_model_card_says_how_the_model_was_made_and_no_text_of_a_user_breaks_out(
    tiny_corpus, finished
) -> None:
    run = finished(RECIPE)
    result = pretrain(RECIPE, corpus=tiny_corpus, out=run)
    written = (run / "model" / "README.md").read_text("utf-8")
    assert f"Final validation loss: {result.loss:.3f} nats" in written
    assert tiny_corpus.fingerprint in written
    rows = [line for line in written.splitlines() if line.startswith("| ")]
    assert [row.split("|")[1:3] for row in rows[1:]] == [[" 1 ", " 4 "], [" 2 ", " 4 "]]

    source = dataclasses.replace(tiny_corpus.manifest.sources[0], name=HOSTILE)
    manifest = tiny_corpus.manifest.model_copy(update={"sources": (source,)})
    hostile = RECIPE.model_copy(update={"summary": HOSTILE})
    told = {"language": "de, fr", "license": "cc-by-4.0", "dataset": "owner/name"}
    manifest = manifest.model_copy(update={"left_out": {HOSTILE: 1}, **told})
    corpus = dataclasses.replace(tiny_corpus, manifest=manifest)
    machine = {"stackbert": "1"}
    spoiled = model_card(hostile, corpus, [], result.stages, machine, run / "model")
    hub = {"language": ["de", "fr"], "license": "cc-by-4.0", "datasets": ["owner/name"]}
    for card, recipe, header in ((written, RECIPE, {}), (spoiled, hostile, hub)):
        assert yaml.safe_load(card.split("---\n", 2)[1]) == {
            **header,
            "library_name": "transformers",
            "pipeline_tag": "fill-mask",
            "tags": ["stackbert", "progressive-stacking", "megatron-bert"],
        }
        text, block = card.split("## Recipe\n\n")
        assert "<script>" not in text
        assert all(line.startswith("    ") for line in block.splitlines() if line)
        assert yaml.safe_load(block) == yaml.safe_load(recipe.to_yaml())
    assert "`hidden_dropout_prob` 0.0" in written
    (example,) = re.findall(r"print\(fill\((.*)\)\)", written)
    left, right = (part.replace(" ", "") for part in ast.literal_eval(example).split("[MASK]"))
    text = (tiny_corpus.folder.parent / "all.txt").read_text("utf-8").lower().replace(" ", "")
    assert re.search(f"{re.escape(left)}.{{1,20}}{re.escape(right)}", text), "words of the corpus"
