"""What happens under a run: to its corpus, its directory, its clock, its ledger.

docs/faults.md has them all, with those of the other tests.
"""

import ast
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pretraining_helpers import (
    PATIENCE,
    At,
    Child,
    Crash,
    checkpoints,
    crash,
    start_ranks,
    tiny_recipe,
    untimed_ledger,
    weights,
)

import stackbert as sb

RECIPE = tiny_recipe()
SOURCE = Path(sb.__file__).parent
TOKENS = Path("train", "tokens-00000.npy")


@pytest.fixture
def mine(corpus: sb.Corpus, tmp_path: Path) -> Path:
    """A corpus to be damaged."""
    return shutil.copytree(corpus.folder, tmp_path / "mine")


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def flip_bit(path: Path) -> None:
    """In the last entry, in place."""
    with path.open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-2, os.SEEK_END)
        file.write(bytes([byte ^ 1]))


def cut_off(path: Path) -> None:
    os.truncate(path, 200)


def remove(path: Path) -> None:
    path.unlink()


def steps_done(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count('"kind": "step"') if path.exists() else 0


@pytest.fixture(scope="module")
def stopped(corpus: sb.Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that broke off at step 8; never changed."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(Crash):
        sb.pretrain(RECIPE, corpus=corpus, out=run, reporter=At(8, crash))
    return run


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    return shutil.copytree(stopped, tmp_path / "run")


DAMAGES = {
    "flipped bit": (flip_bit, "train/tokens-00000.npy"),
    "flipped bit in sentences": (flip_bit, "train/sentences-00000.npy"),
    "flipped bit in what is held out": (flip_bit, "validation/tokens-00000.npy"),
    "cut off": (cut_off, "train/tokens-00000.npy"),
    "sentences cut off": (cut_off, "train/sentences-00000.npy"),
    "removed": (remove, "train/documents-00000.npy"),
    "manifest cut off": (cut_off, "manifest.json"),
}


def test_a_damaged_corpus_stops_a_run_before_anything_is_made(mine: Path, tmp_path: Path) -> None:
    for name, (damage, file) in DAMAGES.items():
        true = (mine / file).read_bytes()
        damage(mine / file)
        with pytest.raises(sb.UserError, match="damaged") as refused:
            sb.pretrain(RECIPE, corpus=mine, out=tmp_path / "new")
        assert str(mine / file) in str(refused.value), name
        assert [path.name for path in (tmp_path / "new").glob("*")] in ([], [".lock"]), name
        (mine / file).write_bytes(true)


def test_a_corpus_changed_between_stop_and_resume_is_refused_until_it_is_put_back(
    run: Path, mine: Path, undisturbed
) -> None:
    before = content(run)
    for name, (damage, file) in DAMAGES.items():
        true = (mine / file).read_bytes()
        damage(mine / file)
        with pytest.raises(sb.UserError, match=r"uild .* again") as refused:
            sb.pretrain(RECIPE, corpus=mine, out=run)
        assert str(mine / file) in str(refused.value), name
        assert content(run) == before, name
        (mine / file).write_bytes(true)
    sb.pretrain(RECIPE, corpus=mine, out=run)
    assert weights(run) == weights(undisturbed(RECIPE))


def test_a_shard_changed_while_it_is_trained_on_stops_the_run_at_its_next_checkpoint(
    mine: Path, tmp_path: Path, undisturbed
) -> None:
    """And no checkpoint holds anything of it."""
    run = tmp_path / "run"
    with pytest.raises(sb.UserError, match="was changed while a run read it") as stopped:
        sb.pretrain(RECIPE, corpus=mine, out=run, reporter=At(7, lambda: flip_bit(mine / TOKENS)))
    assert str(mine / TOKENS) in str(stopped.value)
    assert max(checkpoints(run)) == 6
    flip_bit(mine / TOKENS)
    sb.pretrain(RECIPE, corpus=mine, out=run)
    assert weights(run) == weights(undisturbed(RECIPE))


@pytest.mark.parametrize("file", [TOKENS, Path("train", "sentences-00000.npy")])
def test_a_shard_cut_off_while_it_is_trained_on_is_a_sentence_and_no_bus_error(
    file: Path, mine: Path, tmp_path: Path
) -> None:
    """A mapped file that is shorter than its map ends whoever reads there: a process of its own."""
    pairs = {"objective__next_sentence": True, "batch__sequence_length": 24}
    stages = [{"depth": 1, "steps": 100_000}]
    (tmp_path / "recipe.yaml").write_text(tiny_recipe(stages=stages, **pairs).to_yaml())
    run = tmp_path / "run"
    child = Child(
        ["pretrain", tmp_path / "recipe.yaml", "--corpus", mine, "--out", run],
        tmp_path / "output.txt",
    )
    assert child.wait_until(lambda: steps_done(run) > 7), child.output
    cut_off(mine / file)
    code = child.wait()
    assert code != -signal.SIGBUS
    assert code == 2, child.output
    last = child.output.splitlines()[-1]
    assert last.startswith(f"stackbert: The corpus file {mine / file} was changed while a run")
    assert "Traceback" not in child.output
    assert checkpoints(run)


def test_a_corpus_that_is_taken_away_is_a_sentence_and_the_run_goes_on_when_it_is_back(
    mine: Path, tmp_path: Path, undisturbed
) -> None:
    run, away = tmp_path / "run", tmp_path / "away"
    with pytest.raises(sb.UserError, match="A file or folder is missing while training") as stopped:
        sb.pretrain(RECIPE, corpus=mine, out=run, reporter=At(7, lambda: mine.rename(away)))
    assert str(mine) in str(stopped.value)
    with pytest.raises(sb.UserError, match="is not a corpus"):
        sb.pretrain(RECIPE, corpus=mine, out=run)
    sb.pretrain(RECIPE, corpus=away, out=run)
    assert weights(run) == weights(undisturbed(RECIPE))


def test_every_process_stops_at_a_shard_that_one_of_them_finds_damaged(
    mine: Path, tmp_path: Path
) -> None:
    """The two of one machine look at half of the files each; one of them speaks."""
    flip_bit(mine / "train" / "documents-00000.npy")
    (tmp_path / "recipe.yaml").write_text(RECIPE.to_yaml())
    run = tmp_path / "run"
    arguments = ["pretrain", tmp_path / "recipe.yaml", "--corpus", mine, "--out", run]
    children = start_ranks(arguments, tmp_path, 2)
    assert [child.wait() for child in children] == [2, 2], [child.output for child in children]
    said = sorted(child.output for child in children)
    assert said[0] == ""
    assert "documents-00000.npy is missing or damaged" in said[1]
    assert len(said[1].splitlines()) == 1


def test_more_shards_than_files_may_be_open_are_opened_all_the_same(
    documents, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("stackbert.corpus.shards.SHARD_TOKENS", 256)
    (tmp_path / "all.txt").write_text("\n\n".join(documents[:20]), encoding="utf-8")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    built = sb.build_corpus(
        tmp_path / "c", text=[tmp_path / "all.txt"], vocab_size=512, validation=0.15
    )
    assert len(built.manifest.train.shards) > 40
    few = len(list(Path("/proc/self/fd").iterdir())) + 40
    monkeypatch.setattr("stackbert.corpus.mapped._OTHER_FILES", few)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, limits[1]))
        again = sb.open_corpus(built.folder)
        assert again.train.sentence_starts(0, len(again.train)).size > 40
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_run_directory_renamed_while_it_trains_stops_and_goes_on_under_its_new_name(
    corpus: sb.Corpus, tmp_path: Path, undisturbed
) -> None:
    run, renamed = tmp_path / "run", tmp_path / "renamed"
    with pytest.raises(sb.RunError, match="removed, renamed or replaced while") as stopped:
        sb.pretrain(RECIPE, corpus=corpus, out=run, reporter=At(8, lambda: run.rename(renamed)))
    assert str(run) in str(stopped.value)
    assert not run.exists(), "nothing is made under the old name, which may be another's soon"
    sb.pretrain(RECIPE, corpus=corpus, out=renamed)
    assert weights(renamed) == weights(undisturbed(RECIPE))
    assert untimed_ledger(renamed) == untimed_ledger(undisturbed(RECIPE))


def test_a_run_directory_removed_while_it_trains_stops_the_run(
    corpus: sb.Corpus, tmp_path: Path
) -> None:
    run = tmp_path / "run"

    def remove_all() -> None:
        while run.exists():  # a checkpoint that is being written meanwhile is in rmtree's way
            shutil.rmtree(run, ignore_errors=True)

    with pytest.raises(sb.RunError, match="removed, renamed or replaced while"):
        sb.pretrain(RECIPE, corpus=corpus, out=run, reporter=At(8, remove_all))
    assert not run.exists()


def test_a_run_does_not_write_into_another_that_took_its_place(
    corpus: sb.Corpus, tmp_path: Path
) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    with pytest.raises(Crash):
        sb.pretrain(tiny_recipe(seed=1), corpus=corpus, out=other, reporter=At(4, crash))

    def exchange() -> None:
        while 3 not in checkpoints(run):  # one that is being written fails by itself
            time.sleep(0.01)
        run.rename(tmp_path / "away")
        other.rename(run)

    before = content(other)
    with pytest.raises(sb.RunError, match="removed, renamed or replaced while"):
        sb.pretrain(RECIPE, corpus=corpus, out=run, reporter=At(5, exchange))
    assert content(run) == before


CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>

/* The wall clock, a day fast and a day slow by turns. */
static long jump(void) {
    static int calls = 0;
    return (__sync_fetch_and_add(&calls, 1) / 3) % 2 ? 86400 : -86400;
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    int (*true_clock)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int result = true_clock(clock, now);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now->tv_sec += jump();
    return result;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now) *now = exact.tv_sec;
    return exact.tv_sec;
}
"""
JUMPING = """
import sys, time
seen = [time.time() for _ in range(12)]
assert max(seen) - min(seen) > 100_000, "the clock does not jump"
import torch
from stackbert.__main__ import main
torch.set_num_threads(1)
main()
"""


def test_a_wall_clock_that_jumps_changes_nothing(
    corpus: sb.Corpus, tmp_path: Path, undisturbed
) -> None:
    """Its every third reading is two days from the one before: checkpoints, times, weights stay."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("a clock that jumps is made with a C compiler")
    (tmp_path / "clock.c").write_text(CLOCK)
    library = tmp_path / "clock.so"
    make = [compiler, "-shared", "-fPIC", "-O1", "-o", library, tmp_path / "clock.c", "-ldl"]
    subprocess.run(make, check=True)
    # A checkpoint by the clock: none is due in five minutes.
    recipe = tiny_recipe(checkpoint__every_minutes=5.0)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    run = tmp_path / "run"
    arguments = ["pretrain", tmp_path / "recipe.yaml", "--corpus", corpus.folder, "--out", run]
    done = subprocess.run(
        [sys.executable, "-c", JUMPING, *map(str, arguments)],
        env=os.environ | {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert weights(run) == weights(undisturbed(RECIPE))
    assert untimed_ledger(run) == untimed_ledger(undisturbed(RECIPE))
    assert list(checkpoints(run)) == list(checkpoints(undisturbed(RECIPE)))
    rows = sb.read_ledger(run)
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)
    assert all(0 <= value < PATIENCE for value in rows[-1]["wall"].values())


def test_nothing_is_decided_by_the_wall_clock() -> None:
    """Only the date in a report's footer is read from it."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in WALL_CLOCK:
                found.append(path.relative_to(SOURCE).as_posix())
            assert not (isinstance(node, ast.ImportFrom) and node.module in ("time", "datetime"))
    assert found == ["attention/page.py", "reporting/runs.py"]


WALL_CLOCK = ("time.time", "time.time_ns", "datetime.datetime.now", "datetime.date.today")


def test_a_damaged_line_of_the_ledger_is_named_and_costs_no_model(
    run: Path, corpus: sb.Corpus, undisturbed
) -> None:
    ledger = run / "metrics.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join((*lines[:2], b"\0" + lines[2][1:], *lines[3:])))
    with pytest.raises(sb.UserError, match=r"metrics\.jsonl, line 3 is damaged") as told:
        sb.pretrain(RECIPE, corpus=corpus, out=run)
    assert str(told.value).endswith(f"The model is whole all the same: {run / 'model'}.")
    assert weights(run) == weights(undisturbed(RECIPE))
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    assert "The ledger of the run, with its losses, is damaged." in card


def test_the_run_json_of_a_new_run_takes_the_place_of_a_damaged_one(
    run: Path, corpus: sb.Corpus, tmp_path: Path, undisturbed
) -> None:
    with pytest.raises(Crash):
        sb.pretrain(RECIPE, corpus=corpus, out=tmp_path / "new", reporter=At(1, crash))
    os.truncate(run / "run.json", 50)
    with pytest.raises(sb.UserError, match=r"run\.json is damaged"):
        sb.pretrain(RECIPE, corpus=corpus, out=run)
    shutil.copy(tmp_path / "new" / "run.json", run)
    sb.pretrain(RECIPE, corpus=corpus, out=run)
    assert weights(run) == weights(undisturbed(RECIPE))
