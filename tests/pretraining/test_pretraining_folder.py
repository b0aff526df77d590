"""What a run directory holds, and whom it refuses."""

import shutil
from pathlib import Path

import pytest
import yaml
from pretraining_helpers import At, Crash, Listening, checkpoints, crash, tiny_recipe
from stackbert.pretraining.rundir import read_record
from stackbert.recipe_files import load_recipe

import stackbert as sb

RECIPE = tiny_recipe()


@pytest.fixture(scope="module")
def stopped(corpus, tmp_path_factory) -> Path:
    """A run that broke off after its first checkpoint; never changed."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(Crash):
        sb.pretrain(RECIPE, corpus=corpus, out=run, reporter=At(4, crash))
    return run


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"seed": 1}, [r"seed \(0 there, 1 here\)"]),
        (
            {"optimizer__lr": 0.1, "model__hidden_size": 64},
            [r"model\.hidden_size \(32 there, 64 here\)", r"optimizer\.lr \(0\.005 there, 0\.1"],
        ),
        ({"model__hidden_dropout_prob": 0.1}, [r"model\.hidden_dropout_prob \(None there"]),
        (
            {"stages": [{"depth": 1, "steps": 6}, {"depth": 2, "steps": 12}]},
            [r"stages\.1\.steps \(6 there, 12 here\)", r"stages\.2\.depth \(4 there, None here\)"],
        ),
        ({"growth__optimizer_state": "copy"}, [r"growth\.optimizer_state"]),
        ({"precision": "bf16"}, [r"precision \(fp32 there, bf16 here\)"]),
    ],
)
def test_another_recipe_on_the_same_folder_is_refused_naming_the_fields(
    fields, named, stopped: Path, corpus
) -> None:
    before = content(stopped)
    for pattern in named:
        with pytest.raises(sb.UserError, match=pattern):
            sb.pretrain(tiny_recipe(**fields), corpus=corpus, out=stopped)
    assert content(stopped) == before


def test_another_budget_or_number_of_steps_is_refused(stopped: Path, corpus) -> None:
    with pytest.raises(sb.UserError, match=r"--budget \(none there, 2s here\)"):
        sb.pretrain(RECIPE, corpus=corpus, out=stopped, budget="2s")
    with pytest.raises(sb.UserError, match=r"--steps \(none there, 9 here\)"):
        sb.pretrain(RECIPE, corpus=corpus, out=stopped, steps=9)
    with pytest.raises(sb.UserError, match="not both"):
        sb.pretrain(RECIPE, corpus=corpus, out=stopped, steps=9, budget="2s")


def test_another_corpus_is_refused_and_a_moved_one_is_not(
    stopped: Path, corpus, other_corpus, tmp_path: Path
) -> None:
    with pytest.raises(sb.UserError, match=corpus.manifest.fingerprint) as refused:
        sb.pretrain(RECIPE, corpus=other_corpus, out=stopped)
    assert other_corpus.manifest.fingerprint in str(refused.value)

    run = shutil.copytree(stopped, tmp_path / "run")
    moved = shutil.copytree(corpus.folder, tmp_path / "moved")
    sb.pretrain(RECIPE, corpus=moved, out=run)
    assert (run / "model").is_dir()


def test_a_folder_of_something_else_is_refused_and_left_alone(corpus, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "checkpoints").mkdir()
    before = content(tmp_path)
    with pytest.raises(sb.UserError, match=r"not empty .*checkpoints, thesis\.tex") as refused:
        sb.pretrain(RECIPE, corpus=corpus, out=tmp_path)
    assert "\n" not in str(refused.value)
    assert {name: data for name, data in content(tmp_path).items() if name != ".lock"} == before


def test_a_users_own_recipe_in_the_folder_is_not_overwritten(corpus, tmp_path: Path) -> None:
    mine = tmp_path / "recipe.yaml"
    mine.write_text("# my notes\n" + RECIPE.to_yaml())
    with pytest.raises(sb.UserError, match=r"recipe\.yaml"):
        sb.pretrain(load_recipe(mine), corpus=corpus, out=tmp_path)
    assert mine.read_text().startswith("# my notes")


def test_a_file_in_the_place_of_the_folder_is_refused(corpus, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    for out in (tmp_path / "run", tmp_path / "run" / "below"):
        with pytest.raises(sb.UserError, match="A file stands where a folder is needed"):
            sb.pretrain(RECIPE, corpus=corpus, out=out)


def test_a_second_process_on_the_same_run_is_refused(corpus, train_in_child, tmp_path) -> None:
    run = tmp_path / "run"
    said: list[tuple[int, str]] = []

    def second() -> None:
        child = train_in_child(RECIPE, run)
        said.append((child.wait(), child.output))

    sb.pretrain(RECIPE, corpus=corpus, out=run, reporter=At(8, second))
    assert len(said) == 1
    code, output = said[0]
    assert code == 2
    assert output.startswith(f"stackbert: {run} is in use by another process.")
    assert len(output.splitlines()) == 1
    assert (run / "model").is_dir(), "the first one was not disturbed"


def test_resume_never_refuses_a_run_and_begins_a_new_one(
    stopped: Path, corpus, tmp_path: Path
) -> None:
    before = content(stopped)
    with pytest.raises(sb.UserError, match="holds a run already"):
        sb.pretrain(RECIPE, corpus=corpus, out=stopped, resume="never")
    assert content(stopped) == before
    with pytest.raises(Crash):
        sb.pretrain(
            RECIPE, corpus=corpus, out=tmp_path / "new", resume="never", reporter=At(1, crash)
        )


def test_a_finished_run_called_again_returns_at_once(
    corpus, undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = undisturbed(RECIPE)
    before = content(run)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a model was built")

    monkeypatch.setattr("stackbert.pretraining.opening.create_model", forbidden)
    monkeypatch.setattr("stackbert.pretraining.opening.load_model", forbidden)
    listening = Listening()
    result = sb.pretrain(RECIPE, corpus=corpus, out=run, reporter=listening)
    assert result.model_folder == run / "model"
    assert [stage.depth for stage in result.summary.stages] == [1, 2, 4]
    evaluated = [row["loss"] for row in sb.read_ledger(run) if row["kind"] == "evaluation"]
    assert result.summary.loss == evaluated[-1]
    assert "finished already" in listening.said[0]
    assert content(run) == before
    with pytest.raises(sb.UserError, match="seed"):
        sb.pretrain(tiny_recipe(seed=9), corpus=corpus, out=run)


def test_the_run_directory_is_as_designed(undisturbed) -> None:
    run = undisturbed(RECIPE)
    visible = sorted(path.name for path in run.iterdir() if not path.name.startswith("."))
    assert visible == ["checkpoints", "metrics.jsonl", "model", "recipe.yaml", "run.json"]
    for folder in checkpoints(run).values():
        names = {path.name for path in folder.iterdir()}
        assert names >= {
            "config.json",
            "model.safetensors",
            "optimizer.safetensors",
            "state.json",
            "tokenizer.json",
            "tokenizer_config.json",
        }
    assert load_recipe(run / "recipe.yaml") == RECIPE
    recipe, record = read_record(run)
    assert recipe == record.request.recipe == RECIPE
    # Nothing pickled, nothing half-written, nothing but its owner can read.
    files = [path for path in run.rglob("*") if path.is_file()]
    assert not [p for p in files if p.suffix in (".bin", ".pt", ".pth", ".pkl", ".npy")]
    assert not list(run.rglob("*.partial"))
    assert {oct(p.stat().st_mode & 0o044) for p in files} == {oct(0o044)}


def test_steps_scale_the_stages_and_precision_auto_is_settled_in_the_record(
    corpus, tmp_path: Path
) -> None:
    recipe = tiny_recipe(precision="auto", schedule__warmup_steps=6)
    with pytest.raises(Crash):
        sb.pretrain(recipe, corpus=corpus, out=tmp_path, steps=9, reporter=At(1, crash))
    written = load_recipe(tmp_path / "recipe.yaml")
    assert [stage.steps for stage in written.stages] == [3, 3, 3]
    assert written.schedule.warmup_steps == 3
    assert written.precision in ("fp32", "bf16")
    # The request is as it was asked, so the same call goes on.
    assert read_record(tmp_path)[1].request.recipe == recipe
    sb.pretrain(recipe, corpus=corpus, out=tmp_path, steps=9)
    assert max(checkpoints(tmp_path)) == 9


@pytest.mark.parametrize("file", ["run.json", "recipe.yaml"])
def test_a_damaged_record_is_a_sentence_that_names_the_file(
    file: str, stopped: Path, corpus, tmp_path: Path
) -> None:
    for number, damage in enumerate(("{", "[]", "", "{}", "\xff\x00")):
        run = shutil.copytree(stopped, tmp_path / str(number))
        (run / file).write_bytes(damage.encode("latin-1"))
        with pytest.raises(sb.UserError, match=file.replace(".", r"\.")) as refused:
            sb.pretrain(RECIPE, corpus=corpus, out=run)
        assert "\n" not in str(refused.value)


def test_a_recipe_that_was_edited_in_the_run_directory_is_refused(
    stopped: Path, corpus, tmp_path: Path
) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    edited = yaml.safe_load((run / "recipe.yaml").read_text())
    edited["optimizer"]["lr"] = 0.5
    (run / "recipe.yaml").write_text(yaml.safe_dump(edited))
    with pytest.raises(sb.UserError, match=r"optimizer\.lr"):
        sb.pretrain(RECIPE, corpus=corpus, out=run)


def test_wrong_options_are_refused_before_anything_is_made(corpus, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for wrong, message in (
        ({"track": ["tensorbored"]}, "tensorbored"),
        ({"budget": "soon"}, "not a duration"),
        ({"steps": 2}, "2 steps are too few"),
    ):
        with pytest.raises(sb.UserError, match=message):
            sb.pretrain(RECIPE, corpus=corpus, out=run, **wrong)
        assert not (run / "run.json").exists()
    with pytest.raises(sb.UserError, match="hiddensize"):
        sb.pretrain(tiny_recipe(model__hiddensize=3), corpus=corpus, out=run)
    with pytest.raises(sb.UserError, match="manifest"):
        sb.pretrain(RECIPE, corpus=tmp_path, out=run)
    # None of them spoiled the folder.
    with pytest.raises(Crash):
        sb.pretrain(RECIPE, corpus=corpus, out=run, reporter=At(1, crash))
