"""Which checkpoints are kept; a damaged one is passed over; they are written while a run trains."""

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from stackbert.errors import RunError, UserError
from stackbert.files import sha256
from stackbert.pretraining import checkpoints as checkpoints_module
from stackbert.pretraining.checkpoints import OPTIMIZER, STATE, read_checkpoint
from stackbert.pretraining.run import pretrain
from tiny_runs import At, break_off, checkpoints, content, cut_off, flip_bit, outcome, tiny_recipe

RECIPE = tiny_recipe(checkpoint={"every_steps": 1, "every_minutes": None, "keep": 9})
WEIGHTS = "model.safetensors"


@pytest.mark.parametrize(
    ("every_steps", "every_minutes", "keep", "left"),
    [
        (2, None, 1, [4, 8]),
        (3, None, 2, [4, 6, 8]),
        (1, None, 3, [4, 6, 7, 8]),
        (None, 1e-9, 9, list(range(1, 9))),
    ],
)
def test_the_newest_and_each_stages_last_are_kept(
    every_steps, every_minutes, keep, left, tiny_corpus, tmp_path
) -> None:
    spec = {"every_steps": every_steps, "every_minutes": every_minutes, "keep": keep}
    pretrain(tiny_recipe(checkpoint=spec), corpus=tiny_corpus, out=tmp_path)
    assert list(checkpoints(tmp_path)) == left
    for step, folder in checkpoints(tmp_path).items():
        state = read_checkpoint(folder)
        assert (state.counters.step, state.counters.tokens) == (step, step * 64)
        assert state.depth == (1 if step <= 4 else 2), "before the growth that is due"


@pytest.fixture(scope="module")
def crashed(tiny_corpus, tmp_path_factory) -> Path:
    """A run that broke off at step 7, with checkpoints after each before; never changed."""
    run = tmp_path_factory.mktemp("crashed") / "run"
    break_off(RECIPE, corpus=tiny_corpus, out=run, at=7)
    return run


@pytest.fixture
def run(crashed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(crashed, tmp_path / "run")


def test_want_of_file_handles_damages_no_checkpoint(run: Path, tiny_corpus, monkeypatch) -> None:
    def scarce(path: Path) -> str:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    monkeypatch.setattr(checkpoints_module, "sha256", scarce)
    with pytest.raises(RunError, match="Too many open files while training in"):
        pretrain(RECIPE, corpus=tiny_corpus, out=run)
    assert not list(run.rglob("*.damaged"))


def test_a_run_resumes_from_before_damaged_checkpoints(run: Path, tiny_corpus, finished) -> None:
    saved = checkpoints(run)
    # Left by a kill while an old one was removed, and one of another step under a wrong name.
    shutil.copytree(saved[1], run / "checkpoints" / "step-00000001.partial")
    saved[99] = shutil.copytree(saved[1], run / "checkpoints" / "step-00000099")
    damages: dict[int, tuple[str, Callable]] = {
        6: (WEIGHTS, flip_bit),
        5: (OPTIMIZER, Path.unlink),
        4: ("config.json", cut_off),
        3: ("tokenizer.json", flip_bit),
        2: (STATE, cut_off),  # whose own digits have no checksum
    }
    for step, (name, damage) in damages.items():
        damage(saved[step] / name)
    heard = At()
    pretrain(RECIPE, corpus=tiny_corpus, out=run, progress=heard)
    passed = [text for text in heard.said if "damaged checkpoint was passed over" in text]
    wanted = [saved[99], *(saved[step] / name for step, (name, _) in damages.items())]
    assert [str(path) in text for path, text in zip(wanted, passed, strict=True)] == [True] * 6
    assert any(text.startswith("resuming at step 1 of 8") for text in heard.said)
    assert outcome(run) == outcome(finished(RECIPE))
    assert len(list(run.rglob("*.damaged"))) == 6
    assert read_checkpoint(saved[6]), "its place was free for a good one"
    assert not list(run.rglob("*.partial"))


def test_if_all_are_damaged_it_says_so_and_changes_nothing(run: Path, tiny_corpus) -> None:
    for path in checkpoints(run).values():
        flip_bit(path / WEIGHTS)
    before = content(run)
    for _ in range(2):
        with pytest.raises(UserError, match=r"Every checkpoint in .* is damaged") as refused:
            pretrain(RECIPE, corpus=tiny_corpus, out=run)
        assert str(refused.value).count("differs from its checksum") == len(checkpoints(run))
        assert content(run) | {"log.txt": ""} == before | {"log.txt": ""}


QUERY = "bert.encoder.layer.1.attention.self.query.weight"
MOMENTUM = f"{QUERY}|momentum_buffer"


@pytest.mark.parametrize("change", ["dropped", "renamed", "of another shape"])
@pytest.mark.parametrize(("file", "name"), [(WEIGHTS, QUERY), (OPTIMIZER, MOMENTUM)])
def test_wrong_tensors_under_right_checksums_are_refused_by_name(
    file, name, change, run: Path, tiny_corpus
) -> None:
    """What no crash makes, but a hand: state lands by name, or not at all."""
    path = checkpoints(run)[6] / file
    tensors = load_file(path)
    tensor = tensors.pop(name)
    if change == "renamed":
        tensors[name.replace("layer.1", "layer.7")] = tensor
    if change == "of another shape":
        tensors[name] = tensor[:1].clone()
    save_file(tensors, path, {"format": "pt"})
    state = json.loads((path.parent / STATE).read_text())
    state["sha256"][file] = sha256(path)
    (path.parent / STATE).write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"layer\.[17]\.attention\.self\.query") as refused:
        pretrain(RECIPE, corpus=tiny_corpus, out=run)
    assert str(path.parent) in str(refused.value)


def test_training_continues_while_a_checkpoint_is_written_of_the_model_as_it_was(
    tiny_corpus, finished, tmp_path, monkeypatch
) -> None:
    true, later = checkpoints_module.save_model, threading.Event()

    def slow(model: Any, folder: Path, **options: Any) -> None:
        if folder.name == "step-00000003.partial":
            assert later.wait(60), "the run waits for its checkpoint"
        true(model, folder, **options)

    monkeypatch.setattr(checkpoints_module, "save_model", slow)
    recipe = tiny_recipe(checkpoint={"every_steps": 3, "every_minutes": None, "keep": 9})
    pretrain(recipe, corpus=tiny_corpus, out=tmp_path, progress=At(4, later.set))
    for step in (3, 6):
        for name in (WEIGHTS, OPTIMIZER):
            expected = checkpoints(finished(RECIPE))[step] / name
            assert sha256(checkpoints(tmp_path)[step] / name) == sha256(expected)
