"""A damaged checkpoint is passed over for the one before it, and named."""

import contextlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pretraining_helpers import At, Crash, Listening, checkpoints, crash, tiny_recipe, weights
from safetensors.torch import load_file, save_file

import stackbert as sb
from stackbert.pretraining.checkpoints import (
    OPTIMIZER,
    STATE,
    CheckpointStore,
    DamagedCheckpointError,
    read_state,
    write_state,
)

RECIPE = tiny_recipe(optimizer__name="muon", checkpoint__every_steps=5, checkpoint__keep=9)
LAST, BEFORE = 15, 12


@pytest.fixture(scope="session")
def crashed(corpus, tmp_path_factory) -> Path:
    """A run that broke off at step 17; never changed."""
    run = tmp_path_factory.mktemp("crashed") / "run"
    with pytest.raises(Crash):
        sb.pretrain(RECIPE, corpus=corpus, out=run, reporter=At(17, crash))
    assert list(checkpoints(run)) == [5, 6, 10, BEFORE, LAST]
    return run


@pytest.fixture
def run(crashed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(crashed, tmp_path / "run")


def flip_bit(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def cut_off(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


def append(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes() + draw.randbytes(1))


def remove(path: Path, draw: random.Random) -> None:
    path.unlink()


FILES = ("model.safetensors", OPTIMIZER, "config.json", "tokenizer.json", STATE)
DAMAGES = (flip_bit, cut_off, append, remove)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_found_and_named(
    file: str, damage: Callable[[Path, random.Random], None], run: Path
) -> None:
    path = checkpoints(run)[LAST] / file
    # A flipped bit in the JSON's white space does no harm; these places lie elsewhere.
    damage(path, random.Random(1))
    found, problems = CheckpointStore(run / "checkpoints").newest()
    assert found is not None
    assert found[0] == checkpoints(run)[BEFORE]
    assert found[1].step == BEFORE
    assert len(problems) == 1
    assert str(path) in problems[0]


def test_no_bit_of_the_counters_can_flip_unnoticed(crashed: Path, tmp_path: Path) -> None:
    source = checkpoints(crashed)[LAST]
    true = read_state(source)
    content = (source / STATE).read_bytes()
    draw = random.Random(0)
    for _ in range(300):
        folder = shutil.copytree(source, tmp_path / source.name)
        flip_bit(folder / STATE, draw)
        # Found out, or nothing that counts has changed: white space, a capital E of a number.
        with contextlib.suppress(DamagedCheckpointError):
            assert read_state(folder) == true, (folder / STATE).read_bytes()
            assert json.loads((folder / STATE).read_bytes()) == json.loads(content)
        shutil.rmtree(folder)


@pytest.mark.parametrize("file", ["model.safetensors", OPTIMIZER, STATE])
def test_the_run_goes_on_from_the_one_before_and_ends_bit_identical(
    file: str, run: Path, corpus, undisturbed
) -> None:
    flip_bit(checkpoints(run)[LAST] / file, random.Random(2))
    listening = Listening()
    sb.pretrain(RECIPE, corpus=corpus, out=run, reporter=listening)
    passed_over = [text for text in listening.said if "passed over" in text]
    assert len(passed_over) == 1
    assert f"step-{LAST:08d}/{file}" in passed_over[0]
    assert any(f"resuming at step {BEFORE}" in text for text in listening.said)
    assert weights(run) == weights(undisturbed(RECIPE))
    # Its place is free for a good one; the damaged one is kept for whoever wants to look.
    assert read_state(checkpoints(run)[LAST]).step == LAST
    assert (run / "checkpoints" / f"step-{LAST:08d}.damaged" / "config.json").is_file()


def test_several_damaged_ones_are_all_passed_over(run: Path, corpus, undisturbed) -> None:
    for step in (LAST, BEFORE, 10, 6):
        remove(checkpoints(run)[step] / OPTIMIZER, random.Random(0))
    listening = Listening()
    sb.pretrain(RECIPE, corpus=corpus, out=run, reporter=listening)
    assert sum("passed over" in text for text in listening.said) == 4
    assert weights(run) == weights(undisturbed(RECIPE))


def test_all_damaged_is_a_sentence_and_nothing_is_thrown_away(run: Path, corpus) -> None:
    for path in checkpoints(run).values():
        flip_bit(path / "model.safetensors", random.Random(3))
    ledger = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(sb.UserError, match=r"Every checkpoint in .* is damaged") as refused:
        sb.pretrain(RECIPE, corpus=corpus, out=run)
    assert str(refused.value).count("model.safetensors differs from its checksum") == 5
    assert (run / "metrics.jsonl").read_bytes() == ledger
    with pytest.raises(sb.UserError, match="is damaged"):
        sb.pretrain(RECIPE, corpus=corpus, out=run)
    assert (run / "metrics.jsonl").read_bytes() == ledger


def test_a_checkpoint_of_another_step_under_this_name_is_damaged(run: Path) -> None:
    paths = checkpoints(run)
    shutil.rmtree(paths[LAST])
    shutil.copytree(paths[10], paths[LAST])
    found, problems = CheckpointStore(run / "checkpoints").newest()
    assert found is not None
    assert found[1].step == BEFORE
    assert "step 10" in problems[0]


def drop(tensors: dict[str, torch.Tensor], name: str) -> None:
    del tensors[name]


def rename(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name.replace("weight", "wait")] = tensors.pop(name)


def reshape(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = tensors[name][:1].clone()


@pytest.mark.parametrize("change", [drop, rename, reshape])
def test_wrong_tensors_under_right_checksums_are_refused_by_name(change, run: Path, corpus) -> None:
    """What no crash makes, but a hand: never loaded in part, never by position."""
    folder = checkpoints(run)[LAST]
    state = read_state(folder)
    tensors = load_file(folder / "model.safetensors")
    name = "bert.encoder.layer.2.attention.self.query.weight"
    change(tensors, name)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    write_state(folder, state)
    assert read_state(folder) == state
    with pytest.raises(sb.UserError, match=name.replace("weight", "wa?e?ight")) as refused:
        sb.pretrain(RECIPE, corpus=corpus, out=run)
    assert str(folder) in str(refused.value)


@pytest.mark.parametrize("change", [rename, reshape])
def test_wrong_optimiser_tensors_under_right_checksums_are_refused_by_name(
    change, run: Path, corpus
) -> None:
    folder = checkpoints(run)[LAST]
    state = read_state(folder)
    tensors = load_file(folder / OPTIMIZER)
    name = "bert.encoder.layer.2.attention.self.query.weight|momentum_buffer"
    change(tensors, name)
    save_file(tensors, folder / OPTIMIZER)
    write_state(folder, state)
    with pytest.raises(sb.StackBertError, match=r"layer\.2\.attention\.self\.query"):
        sb.pretrain(RECIPE, corpus=corpus, out=run)


def test_an_optimiser_file_that_is_none_is_refused(run: Path, corpus) -> None:
    folder = checkpoints(run)[LAST]
    state = read_state(folder)
    (folder / OPTIMIZER).write_bytes(b"no tensors here")
    write_state(folder, state)
    with pytest.raises(sb.UserError, match=r"optimizer\.safetensors"):
        sb.pretrain(RECIPE, corpus=corpus, out=run)
