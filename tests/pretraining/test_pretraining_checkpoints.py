"""Which checkpoints are kept, and what a full or read-only disk does to them."""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from pretraining_helpers import At, Crash, checkpoints, crash, tiny_recipe, untimed_ledger, weights

import stackbert as sb
from stackbert import files
from stackbert.pretraining.checkpoints import CheckpointStore, read_state


@pytest.mark.parametrize(
    ("every", "keep", "left"),
    [
        (2, 1, [6, 12, 18]),
        (2, 2, [6, 12, 16, 18]),
        (4, 3, [6, 12, 16, 18]),
        (None, 1, [6, 12, 18]),
        (1, 4, [6, 12, 15, 16, 17, 18]),
    ],
)
def test_the_newest_and_each_stages_last_are_kept(every, keep, left, corpus, tmp_path) -> None:
    recipe = tiny_recipe(checkpoint__every_steps=every, checkpoint__keep=keep)
    sb.pretrain(recipe, corpus=corpus, out=tmp_path)
    assert list(checkpoints(tmp_path)) == left
    for step, folder in checkpoints(tmp_path).items():
        state = read_state(folder)
        assert state.step == step
        assert state.tokens == step * 4 * 16
        assert state.depth == {0: 1, 1: 2, 2: 4}[min(2, (step - 1) // 6)]


def test_minutes_between_checkpoints(corpus, tmp_path) -> None:
    recipe = tiny_recipe(
        checkpoint__every_steps=None, checkpoint__every_minutes=1e-9, checkpoint__keep=99
    )
    sb.pretrain(recipe, corpus=corpus, out=tmp_path)
    assert list(checkpoints(tmp_path)) == list(range(1, 19))


RECIPE = tiny_recipe(checkpoint__every_steps=1)


def assert_resumable(run: Path, after: int, corpus, undisturbed) -> None:
    """What was saved is whole, nothing half-written is taken for it, and the run ends the same."""
    assert max(checkpoints(run)) == after
    for folder in checkpoints(run).values():
        read_state(folder)
    assert not list((run / "checkpoints").glob("*.partial"))
    sb.pretrain(RECIPE, corpus=corpus, out=run)
    assert weights(run) == weights(undisturbed(RECIPE))
    assert untimed_ledger(run) == untimed_ledger(undisturbed(RECIPE))


@pytest.mark.parametrize(
    ("where", "number"),
    [
        ("config.json", errno.ENOSPC),
        ("tokenizer.json", errno.ENOSPC),
        ("state.json", errno.ENOSPC),
        ("state.json", errno.EDQUOT),
    ],
)
def test_full_disk_while_a_file_is_written_is_a_sentence_and_what_was_saved_stays(
    where, number, corpus, undisturbed, tmp_path, monkeypatch
) -> None:
    """Broken off at the fourth checkpoint, in one of its files."""
    true_open, true_replace = open, Path.replace

    def full(path: object) -> bool:
        return "step-00000004" in str(path) and where in str(path)

    def refuse(path: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    def opening(path, mode="r", *args, **kwargs):
        if full(path) and set(mode) & set("wax"):
            refuse(path)
        return true_open(path, mode, *args, **kwargs)

    def replacing(self, target):
        if full(target):
            refuse(target)
        return true_replace(self, target)

    monkeypatch.setattr("builtins.open", opening)
    monkeypatch.setattr("shutil.open", opening, raising=False)
    monkeypatch.setattr(Path, "replace", replacing)
    with pytest.raises(sb.RunError, match="The disk is full while training in") as stopped:
        sb.pretrain(RECIPE, corpus=corpus, out=tmp_path)
    assert stopped.value.exit_code == 1
    assert "nothing that was already saved is lost" in str(stopped.value)
    assert "\n" not in str(stopped.value)
    monkeypatch.undo()
    assert_resumable(tmp_path, 3, corpus, undisturbed)


def test_full_disk_for_safetensors_is_the_same_sentence(
    corpus, undisturbed, train_in_child, tmp_path: Path
) -> None:
    """A limit on the size of a file, which the weights of two layers go beyond first."""
    run = tmp_path / "run"
    # One layer: weights of 110 kB and moments of twice that. Two: 290 kB of moments.
    child = train_in_child(RECIPE, run, largest_file=250_000)
    assert child.wait() == 1
    assert child.output.splitlines()[-1].startswith("stackbert: ")
    assert "File too large" in child.output
    assert "Traceback" not in child.output
    assert_resumable(run, 6, corpus, undisturbed)


def test_full_disk_under_the_ledger_is_the_same_sentence(
    corpus, undisturbed, train_in_child, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    child = train_in_child(tiny_recipe(checkpoint__every_steps=3), run, largest_file=1500)
    assert child.wait() == 1
    assert child.output.splitlines()[-1].startswith("stackbert: ")
    assert "Traceback" not in child.output
    recipe = tiny_recipe(checkpoint__every_steps=3)
    sb.pretrain(recipe, corpus=corpus, out=run)
    assert weights(run) == weights(undisturbed(recipe))
    assert untimed_ledger(run) == untimed_ledger(undisturbed(recipe))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for two checkpoints or so."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(place)]
    if mount is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root may mount a small file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path, corpus, train_in_child) -> None:
    run = small_disk / "run"
    child = train_in_child(RECIPE, run)
    assert child.wait() == 1
    assert "stackbert: The disk is full while training in" in child.output
    assert "Traceback" not in child.output
    last = max(checkpoints(run))
    assert not list((run / "checkpoints").glob("*.partial"))
    found, problems = CheckpointStore(run / "checkpoints").newest()
    assert found is not None
    assert found[1].step == last
    assert not problems
    # With more room the same command goes on.
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert train_in_child(RECIPE, run).wait() == 0


def test_a_folder_that_may_not_be_written_to_is_a_sentence(corpus, tmp_path, monkeypatch) -> None:
    for number, message in (
        (errno.EACCES, "No permission while training in"),
        (errno.EROFS, "The file system is read-only while training in"),
    ):
        run = tmp_path / str(number)

        def refuse(path: Path, *, number: int = number, **_: object) -> None:
            raise OSError(number, os.strerror(number), str(path))

        with monkeypatch.context() as patch:
            patch.setattr(Path, "mkdir", refuse)
            with pytest.raises(sb.UserError, match=message) as refused:
                sb.pretrain(RECIPE, corpus=corpus, out=run)
        assert refused.value.exit_code == 2
        assert str(run) in str(refused.value)


def test_a_folder_that_is_really_read_only_is_a_sentence(
    corpus, tmp_path, request: pytest.FixtureRequest
) -> None:
    if os.geteuid():
        run, message = tmp_path / "run", "No permission while training in"
        run.mkdir(mode=0o500)
    else:  # to whom a mode means nothing
        run, message = request.getfixturevalue("small_disk"), "The file system is read-only while"
        subprocess.run(["mount", "-o", "remount,ro", str(run)], check=True)
    with pytest.raises(sb.UserError, match=message):
        sb.pretrain(RECIPE, corpus=corpus, out=run)
    assert not list(run.iterdir())


def test_a_run_that_became_read_only_is_a_sentence_and_can_go_on(
    corpus, undisturbed, tmp_path, monkeypatch
) -> None:
    with pytest.raises(Crash):
        sb.pretrain(RECIPE, corpus=corpus, out=tmp_path, reporter=At(5, crash))

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path))

    with monkeypatch.context() as patch:
        patch.setattr("stackbert.pretraining.checkpoints.folder_made_whole", refuse)
        with pytest.raises(sb.UserError, match="read-only while training"):
            sb.pretrain(RECIPE, corpus=corpus, out=tmp_path)
    assert_resumable(tmp_path, 4, corpus, undisturbed)


def test_what_a_killed_process_left_half_done_is_cleared_away(corpus, tmp_path) -> None:
    with pytest.raises(Crash):
        sb.pretrain(RECIPE, corpus=corpus, out=tmp_path, reporter=At(3, crash))
    # One that was being removed: it has no later attempt that would write it anew.
    half = tmp_path / "checkpoints" / "step-00000001.partial"
    shutil.copytree(checkpoints(tmp_path)[1], half)
    (tmp_path / "checkpoints" / ".step-00000001.lock").touch()
    sb.pretrain(RECIPE, corpus=corpus, out=tmp_path)
    assert not half.exists()
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_a_checkpoint_is_synced_before_it_takes_its_name(corpus, tmp_path, monkeypatch) -> None:
    events: list[tuple[str, str]] = []
    true_tree, true_rename = files.sync_tree, Path.rename

    def tree(folder: Path) -> None:
        true_tree(folder)
        events.append(("synced", folder.name))

    def rename(self: Path, target: Path) -> Path:
        events.append(("renamed", self.name))
        return true_rename(self, target)

    monkeypatch.setattr(files, "sync_tree", tree)
    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(Crash):
        sb.pretrain(RECIPE, corpus=corpus, out=tmp_path, reporter=At(2, crash))
    name = "step-00000001.partial"
    assert events == [("synced", name), ("renamed", name)]
