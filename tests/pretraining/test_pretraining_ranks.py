"""Several processes train as one does: the same losses, the same files, and they stop together."""

import signal
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from safetensors.numpy import load_file

from stackbert.corpus.store import Corpus
from stackbert.errors import Interrupted, UserError
from stackbert.pretraining.ledger import read_ledger
from stackbert.pretraining.run import pretrain
from stackbert.recipe import Recipe
from tiny_runs import (
    PAIRS,
    TOTAL,
    At,
    after_step,
    checkpoints,
    command_line,
    interrupt,
    pretrain_command,
    send_self,
    start_ranks,
    tiny_recipe,
)

RECIPE = tiny_recipe(
    # Adam's first update is the sign of the gradient: with a small eps it turns a rounding around.
    optimizer={"name": "muon", "lr": 5e-4, "eps": 1e-4, "clip_norm": 0.5},
    batch__micro_batch=1,
    evaluation__sequences=7,  # odd: the ranks' shares of the validation rows differ
    **PAIRS,
)


def run_ranks(
    recipe: Recipe, corpus: Corpus, folder: Path, prepare: Callable[[], object] = lambda: None
) -> tuple[list[int], list[str]]:
    """Exit code and output of each of two processes; `prepare` is for the second."""
    command = command_line(*pretrain_command(recipe, corpus, folder))
    children = start_ranks(folder, command, prepare)
    return [child.wait() for child in children], [child.output for child in children]


def assert_same_run(run: Path, alone: Path) -> None:
    """Up to rounding: losses and norms, counters to the digit, and all tensors whole."""
    ours, theirs = (
        ledger[ledger.kind != "time"].reset_index(drop=True)
        for ledger in map(read_ledger, (run, alone))
    )
    exact = ["kind", "step", "depth", "tokens", "flops", "lr", "operator"]
    pd.testing.assert_frame_equal(ours[exact], theirs[exact], check_exact=True)
    losses = ["loss", "next_sentence", "loss_before", "loss_after"]
    losses += ["plain_loss"] * ("plain_loss" in theirs)
    pd.testing.assert_frame_equal(ours[losses], theirs[losses], rtol=0, atol=1e-5)
    norms = ours.gradient_norm, theirs.gradient_norm
    pd.testing.assert_series_equal(*norms, rtol=1e-3, atol=0)
    for file in ("model/model.safetensors", f"checkpoints/step-{TOTAL:08}/optimizer.safetensors"):
        found, expected = (load_file(each / file) for each in (run, alone))
        assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in expected.items()}


def test_ddp_has_the_losses_of_one_process_through_a_kill_a_signal_and_another_number_of_processes(
    tiny_corpus, finished, tmp_path
) -> None:
    run = tmp_path / "run"
    killed = after_step(3, send_self(signal.SIGKILL))
    codes, said = run_ranks(RECIPE, tiny_corpus, tmp_path, killed)
    assert codes == [1, -signal.SIGKILL], said
    assert "stackbert: Another process of the run was lost" in said[0]
    assert "Traceback" not in said[0]

    stopped = after_step(4, send_self(signal.SIGTERM))
    codes, said = run_ranks(RECIPE, tiny_corpus, tmp_path, stopped)
    assert codes == [143, 143], said
    assert "2 processes, each with a copy of the model" in said[0]
    assert f"Stopped at step 5 of {TOTAL}; everything is saved" in said[0]
    assert said[1] == "", "one process speaks"

    with pytest.raises(Interrupted):
        pretrain(RECIPE, corpus=tiny_corpus, out=run, progress=At(6, interrupt))
    assert max(checkpoints(run)) == 6
    codes, said = run_ranks(RECIPE, tiny_corpus, tmp_path)
    assert codes == [0, 0], said
    assert "resuming at step 6" in said[0]
    assert_same_run(run, finished(RECIPE))


def test_fsdp_has_the_losses_of_one_and_whole_checkpoints(tiny_corpus, finished, tmp_path) -> None:
    recipe = RECIPE.model_copy(update={"engine": "fsdp", "tail_average": 0.9})
    run = tmp_path / "run"
    codes, said = run_ranks(recipe, tiny_corpus, tmp_path, after_step(5, send_self(signal.SIGTERM)))
    assert codes == [143, 143], said
    assert "each with a shard of the model" in said[0]
    codes, said = run_ranks(recipe, tiny_corpus, tmp_path)
    assert codes == [0, 0], said
    assert_same_run(run, finished(recipe))


def test_a_start_and_new_layers_are_the_same_in_two_ranks(tiny_corpus, finished, tmp_path) -> None:
    deep = {"depth": 4, "steps": 3}
    recipe = tiny_recipe(
        model=None,
        start={"folder": str(finished(tiny_recipe()))},
        stages=[{"depth": 2, "steps": 2}, deep | {"train": "new"}, deep],
        optimizer=RECIPE.optimizer.model_dump(),
    )
    codes, said = run_ranks(recipe, tiny_corpus, tmp_path)
    assert codes == [0, 0], said
    pretrain(recipe, corpus=tiny_corpus, out=tmp_path / "alone")
    assert_same_run(tmp_path / "run", tmp_path / "alone")


def test_what_is_wrong_ends_all_processes_and_one_of_them_says_it(tiny_corpus, tmp_path) -> None:
    odd = tiny_recipe(batch__sequences=3)
    codes, said = run_ranks(odd, tiny_corpus, tmp_path)
    assert codes == [2, 2], said
    assert "Stage 1 has 3 rows a step (batch.sequences), which 2 processes cannot share" in said[0]
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    (tmp_path / "run" / "letter.txt").write_text("not a run")
    codes, said = run_ranks(RECIPE, tiny_corpus, tmp_path)
    assert codes == [2, 2], said
    assert "it holds letter.txt" in said[0]
    assert (len(said[0].splitlines()), said[1]) == (1, "")


def test_an_incomplete_environment_is_a_sentence(tiny_corpus, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="WORLD_SIZE is 2, but RANK, MASTER_ADDR, MASTER_PORT"):
        pretrain(RECIPE, corpus=tiny_corpus, out=tmp_path / "run")
