"""Several processes train as one does: the same losses, the same files, and they stop together."""

import signal
from pathlib import Path

import pytest
from pretraining_helpers import At, checkpoints, interrupt, start_ranks, tiny_recipe
from safetensors.numpy import load_file

import stackbert as sb
from stackbert.errors import Interrupted

# Adam's first update is the sign of the gradient, so a rate of 5e-3 makes much of a rounding.
GENTLE = {
    "optimizer__lr": 5e-4,
    "optimizer__eps": 1e-4,
    "batch__micro_batch": 1,
    "stages": [{"depth": 1, "steps": 25}, {"depth": 2, "steps": 25}],
}
PAIRS = {
    "optimizer__name": "muon",
    "optimizer__clip_norm": 0.5,
    "objective__next_sentence": True,
    "batch__sequence_length": 24,
}
RECIPES = {
    "ddp": tiny_recipe(**GENTLE),
    "ddp, pairs": tiny_recipe(**GENTLE, **PAIRS),
    "fsdp, pairs": tiny_recipe(**GENTLE, **PAIRS, engine="fsdp"),
}
HELD = {"ddp": "each with a copy of the model", "fsdp": "the model cut into pieces"}
TOTAL = 50


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in sb.read_ledger(run) if row["kind"] in ("step", "evaluation")]


def ledger_losses(run: Path) -> list[float]:
    """So far; none before the ledger is there."""
    return losses(run) if (run / "metrics.jsonl").exists() else []


def command(recipe: sb.Recipe, corpus: sb.Corpus, folder: Path) -> list[object]:
    path = folder / "recipe.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    return ["pretrain", path, "--corpus", corpus.folder, "--out", folder / "run"]


def ranks_of(
    recipe: sb.Recipe, corpus: sb.Corpus, folder: Path, count: int, *more: object
) -> tuple[list[int], list[str]]:
    children = start_ranks([*command(recipe, corpus, folder), *more], folder, count)
    codes = [child.wait() for child in children]
    return codes, [child.output for child in children]


@pytest.mark.parametrize(("name", "count"), [("ddp", 4), ("ddp, pairs", 2), ("fsdp, pairs", 2)])
def test_processes_have_the_losses_of_one(name, count, corpus, undisturbed, tmp_path) -> None:
    recipe = RECIPES[name]
    alone = undisturbed(recipe)
    codes, said = ranks_of(recipe, corpus, tmp_path, count)
    assert codes == [0] * count, said
    run = tmp_path / "run"
    assert f"{count} processes share each step, {HELD[recipe.engine]}" in said[0]
    assert said[1:] == [""] * (count - 1), "one process speaks"
    assert losses(run) == pytest.approx(losses(alone), abs=1e-5)
    first, second = (
        [row for row in sb.read_ledger(each) if row["kind"] == "step"] for each in (run, alone)
    )
    for key in ("step", "tokens", "flops", "depth", "lr"):
        assert [row[key] for row in first] == [row[key] for row in second]
    norms = [[row["gradient_norm"] for row in rows] for rows in (first, second)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    for file in ("model/model.safetensors", f"checkpoints/step-{TOTAL:08}/optimizer.safetensors"):
        ours, theirs = load_file(run / file), load_file(alone / file)
        assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}


@pytest.mark.parametrize("name", ["ddp", "fsdp, pairs"])
def test_a_run_goes_on_in_another_number_of_processes(name, corpus, undisturbed, tmp_path) -> None:
    """From two to one and back to two; a signal that one of them gets stops both."""
    recipe = RECIPES[name]
    run = tmp_path / "run"
    children = start_ranks(command(recipe, corpus, tmp_path), tmp_path, 2)
    assert children[0].wait_until(lambda: len(ledger_losses(run)) >= 10)
    children[1].send(signal.SIGTERM)
    assert [child.wait() for child in children] == [143, 143], children[0].output
    assert "everything is saved" in children[0].output
    assert children[1].output == ""
    first = max(checkpoints(run))
    assert first < 30

    with pytest.raises(Interrupted):
        sb.pretrain(recipe, corpus=corpus, out=run, reporter=At(35, interrupt))
    assert max(checkpoints(run)) == 35
    codes, said = ranks_of(recipe, corpus, tmp_path, 2)
    assert codes == [0, 0], said
    assert "resuming at step 35" in said[0]
    assert losses(run) == pytest.approx(losses(undisturbed(recipe)), abs=1e-5)


def test_a_process_that_is_killed_ends_the_others_with_a_sentence(
    corpus, undisturbed, tmp_path
) -> None:
    recipe = RECIPES["ddp"]
    run = tmp_path / "run"
    children = start_ranks(command(recipe, corpus, tmp_path), tmp_path, 2)
    assert children[0].wait_until(lambda: len(ledger_losses(run)) >= 10)
    children[1].send(signal.SIGKILL)
    assert children[0].wait() == 1, children[0].output
    assert "Another process of the run was lost" in children[0].output
    assert "Traceback" not in children[0].output
    sb.pretrain(recipe, corpus=corpus, out=run)
    assert losses(run) == pytest.approx(losses(undisturbed(recipe)), abs=1e-5)


def test_rows_that_cannot_be_shared_are_refused_before_anything_is_written(
    corpus, tmp_path
) -> None:
    codes, said = ranks_of(RECIPES["ddp"], corpus, tmp_path, 3)
    assert codes == [2, 2, 2], said
    assert "4 rows a step (batch.sequences), which 3 processes cannot share" in said[0]
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_what_the_first_process_refuses_ends_all_with_one_sentence(corpus, tmp_path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "letter.txt").write_text("not a run")
    codes, said = ranks_of(RECIPES["ddp"], corpus, tmp_path, 2)
    assert codes == [2, 2], said
    assert "it holds letter.txt" in said[0]
    assert said[1] == ""


def test_an_incomplete_environment_is_a_sentence(corpus, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(sb.UserError, match="WORLD_SIZE is 2, but RANK, MASTER_ADDR, MASTER_PORT"):
        sb.pretrain(RECIPES["ddp"], corpus=corpus, out=tmp_path / "run")
