"""What a run directory holds, whom it refuses, what a budget makes of it, and its model card."""

import shutil
from pathlib import Path

import pytest

from stackbert.corpus.build import build_corpus
from stackbert.errors import UserError
from stackbert.pretraining import run as run_module
from stackbert.pretraining.record import read_run
from stackbert.pretraining.run import pretrain
from stackbert.recipes import load_recipe
from tiny_runs import (
    At,
    Child,
    Crash,
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
    with pytest.raises(Crash):
        pretrain(RECIPE, corpus=tiny_corpus, out=run, progress=At(5))
    return run


def test_the_run_directory_is_as_designed(finished) -> None:
    run = finished(RECIPE)
    names = {path.name for path in run.iterdir() if path.name != ".lock"}
    assert names == {"checkpoints", "metrics.jsonl", "model", "recipe.yaml", "run.json"}
    for folder in checkpoints(run).values():
        held = {"config.json", "model.safetensors", "optimizer.safetensors", "state.json"}
        assert held | {"tokenizer.json", "tokenizer_config.json"} <= set(map(str, content(folder)))
    record = read_run(run)
    assert load_recipe(run / "recipe.yaml") == record.recipe == record.request.recipe == RECIPE
    # Nothing pickled, nothing half-written, nothing that only its owner can read.
    files = [path for path in run.rglob("*") if path.is_file()]
    assert not [p for p in files if p.suffix in (".bin", ".pt", ".pth", ".pkl", ".partial")]
    assert {p.stat().st_mode & 0o044 for p in files} == {0o044}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"seed": 1}, ["seed (0 there, 1 here)"]),
        (
            {"optimizer__lr": 0.1, "model__hidden_size": 64, "model__hidden_dropout_prob": 0.1},
            [
                "model.hidden_size (16 there, 64 here)",
                "model.hidden_dropout_prob (None there, 0.1 here)",
                "optimizer.lr (0.005 there, 0.1 here)",
            ],
        ),
        (
            {"stages": [{"depth": 1, "steps": 9}]},
            ["stages.0.steps (4 there, 9 here)", "stages.1.depth (2 there, None here)"],
        ),
    ],
)
def test_another_recipe_on_the_same_folder_is_refused_naming_the_fields(
    fields, named, stopped, tiny_corpus
) -> None:
    before = content(stopped)
    with pytest.raises(UserError) as refused:
        pretrain(tiny_recipe(**fields), corpus=tiny_corpus, out=stopped)
    assert all(part in str(refused.value) for part in named), refused.value
    assert content(stopped) == before


def test_another_budget_corpus_or_resume_never_is_refused_and_a_moved_corpus_is_not(
    stopped, tiny_corpus, tmp_path
) -> None:
    (tmp_path / "all.txt").write_text("\n\n".join(f"Words of {n}." for n in range(99)))
    other = build_corpus(tmp_path / "other", text=[tmp_path / "all.txt"], validation=0.3)
    before = content(stopped)
    for said, wrong in {
        r"--budget \(none there, 2s here\)": {"budget": "2s"},
        r"--steps \(none there, 9 here\)": {"steps": 9},
        "not both": {"steps": 9, "budget": "2s"},
        f"{tiny_corpus.fingerprint}.*{other.fingerprint}": {"corpus": other},
        "holds a run already": {"resume": "never"},
    }.items():
        with pytest.raises(UserError, match=said):
            pretrain(RECIPE, **{"corpus": tiny_corpus, "out": stopped, **wrong})
    assert content(stopped) == before
    run = shutil.copytree(stopped, tmp_path / "run")
    moved = shutil.copytree(tiny_corpus.folder, tmp_path / "moved")
    assert pretrain(RECIPE, corpus=moved, out=run).model_folder.is_dir()


def test_a_folder_of_something_else_or_a_file_is_refused_and_left_alone(
    tiny_corpus, tmp_path
) -> None:
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
    monkeypatch.setattr(run_module, "recipe_model", None)
    monkeypatch.setattr(run_module, "training_plan", None)
    assert pretrain(RECIPE, corpus=tiny_corpus, out=run).loss > 0
    assert content(run) == before
    with pytest.raises(UserError, match="seed"):
        pretrain(tiny_recipe(seed=9), corpus=tiny_corpus, out=run)


@pytest.mark.parametrize("name", ["run.json", "recipe.yaml"])
def test_a_damaged_record_is_a_sentence_that_names_the_file(
    name, stopped, tiny_corpus, tmp_path
) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    for damage in (b"{", b"[]", b"", b"{}", b"\xff\x00"):
        (run / name).write_bytes(damage)
        with pytest.raises(UserError, match=name.replace(".", r"\.")) as refused:
            pretrain(RECIPE, corpus=tiny_corpus, out=run)
        assert "\n" not in str(refused.value)


def test_a_recipe_edited_in_the_run_directory_is_refused(stopped, tiny_corpus, tmp_path) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    path = run / "recipe.yaml"
    path.write_text(path.read_text().replace("lr: 0.005", "lr: 0.5"))
    with pytest.raises(UserError, match=r"was changed after the run had started: optimizer\.lr"):
        pretrain(RECIPE, corpus=tiny_corpus, out=run)


@pytest.mark.parametrize(
    ("fields", "options", "said"),
    [
        ({}, {"track": ["tensorbored"]}, "tensorbored"),
        ({}, {"budget": "soon"}, "not a duration"),
        ({}, {"steps": 1}, "1 step"),
        ({"model__hiddensize": 3}, {}, "hiddensize"),
        ({"model__num_attention_heads": 3}, {}, "num_attention_heads|multiple"),
    ],
)
def test_wrong_options_are_refused_before_a_run_is_made(
    fields, options, said, tiny_corpus, tmp_path
) -> None:
    with pytest.raises(UserError, match=said):
        pretrain(tiny_recipe(**fields), corpus=tiny_corpus, out=tmp_path, **options)
    assert not content(tmp_path)


def test_a_budget_scales_the_steps_once_and_steps_scale_them_too(
    tiny_corpus, tmp_path, monkeypatch
) -> None:
    recipe = tiny_recipe(
        stages=[{"depth": 1, "steps": 30}, {"depth": 2, "steps": 10}],
        schedule__warmup_steps=20,
        evaluation__every_steps=None,
        precision="auto",
        log_every=3,
    )
    heard = At(6)
    with pytest.raises(Crash):
        pretrain(recipe, corpus=tiny_corpus, out=tmp_path / "run", budget="0.5s", progress=heard)
    written = load_recipe(tmp_path / "run" / "recipe.yaml")
    first, second = (stage.steps for stage in written.stages)
    assert abs(first - 3 * second) <= 3, "each stage keeps its share"
    assert abs(written.schedule.warmup_steps - (first + second) / 2) <= 1
    assert any(f"{first + second:,} steps fit into 0.5s" in text for text in heard.said)
    assert written.precision in ("fp32", "bf16"), "nothing is left open"
    assert read_run(tmp_path / "run").request.recipe == recipe, "the request is kept as it was"
    monkeypatch.setattr(run_module, "measure", None)  # a resumed run does not measure again
    result = pretrain(recipe, corpus=tiny_corpus, out=tmp_path / "run", budget="0.5s")
    assert result.stages.steps.tolist() == [first, second]
    with pytest.raises(UserError, match=r"--budget \(0\.5s there, none here\)"):
        pretrain(recipe, corpus=tiny_corpus, out=tmp_path / "run")
    result = pretrain(recipe, corpus=tiny_corpus, out=tmp_path / "steps", steps=8)
    assert result.stages.steps.tolist() == [6, 2]
