"""The command line: exit codes, one sentence instead of a traceback, help with examples."""

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
import weakref

import pytest

import stackbert as sb
from stackbert.errors import Interrupted
from stackbert.pretraining import memory as pretraining_memory
from stackbert.pretraining import run as run_module
from stackbert.progress import Bar, Lines, console_progress
from stackbert.recipes import shipped_recipes
from tiny_runs import At, checkpoints, interrupt, outcome, pretrain_command, tiny_recipe

COMMANDS = [
    *("demo", "corpus", "plan", "pretrain", "compare", "grow"),
    *("attention", "finetune", "evaluate", "recipes", "report"),
]


def test_help_lists_every_command_with_an_example_and_version_the_version(stackbert) -> None:
    done = stackbert("--help")
    assert done.code == 0
    assert re.findall(r"^  ([a-z]+) +[A-Z]", done.out, re.MULTILINE) == COMMANDS
    assert not re.search(r"^  .*\.\.\.$", done.out, re.MULTILINE), "cut off"
    for command in COMMANDS:
        shown = " ".join(stackbert(command, "--help").out.split())
        assert f"Example: stackbert {command}" in shown
    done = stackbert("--version")
    assert (done.code, done.out) == (0, f"stackbert {sb.__version__}\n")


def test_recipes_lists_the_shipped_ones_or_prints_one_from_a_fresh_interpreter(tmp_path) -> None:
    command = [sys.executable, "-m", "stackbert", "recipes"]
    listed, one = (
        subprocess.run([*command, *names], capture_output=True, text=True, check=True).stdout
        for names in ([], ["small-cpu"])
    )
    assert [line.split()[0] for line in listed.splitlines()] == list(shipped_recipes())
    (tmp_path / "mine.yaml").write_text(one)
    assert sb.load_recipe(tmp_path / "mine.yaml") == sb.load_recipe("small-cpu")


def test_corpus_pretrain_and_grow_say_what_they_made(
    stackbert, tiny_corpus, finished, tmp_path
) -> None:
    for number in range(2):
        documents = (f"Document {n} tells of {n * n} things." for n in range(number, 80, 2))
        (tmp_path / f"{number}.txt").write_text("\n\n".join(documents), encoding="utf-8")
    out = tmp_path / "corpus"
    done = stackbert("corpus", out, tmp_path / "1.txt", "--text", tmp_path / "0.txt")
    assert done.code == 0, done.err
    train, held_out = sb.open_corpus(out).manifest.train, sb.open_corpus(out).manifest.validation
    assert train.documents + held_out.documents == 80, "of both files"
    assert f"{train.documents} documents and {train.tokens:,} tokens for training" in done.out

    command = pretrain_command(tiny_recipe(), tiny_corpus, tmp_path)
    options = ("--set", "optimizer.lr=0.001", "--set", "seed=4", "--steps", 6)
    done = stackbert(*command, *options)
    assert done.code == 0, done.err
    assert f"Stages of {tmp_path / 'run'}" in done.out
    assert f"The model is {tmp_path / 'run' / 'model'}" in done.out
    assert "step 3: grown 1 → 2 layers by stack" in done.err
    written = sb.load_recipe(tmp_path / "run" / "recipe.yaml")
    assert (written.optimizer.lr, written.seed, written.total_steps) == (0.001, 4, 6)
    done = stackbert(*command, *options)
    assert (done.code, "finished already" in done.err) == (0, True)

    source = checkpoints(tmp_path / "run")[3]
    assert stackbert("grow", tmp_path / "run", tmp_path / "of-the-run", "--depth", 4).code == 0
    done = stackbert("grow", source, tmp_path / "deeper", "--depth", 3)
    assert done.code == 0, done.err
    assert "a MegatronBertForMaskedLM of 3 layers" in done.out
    assert "made by stack" in done.out
    names = {path.name for path in (tmp_path / "deeper").iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert not names & {"optimizer.safetensors", "state.json"}, "of the source's training"


def test_out_alone_resumes_quietly_with_tables_as_json_and_a_log(
    stackbert, tiny_corpus, finished, tmp_path
) -> None:
    recipe, run = tiny_recipe(), tmp_path / "run"
    with pytest.raises(Interrupted):
        sb.pretrain(recipe, corpus=tiny_corpus, out=run, progress=At(5, interrupt))
    for options in (("--set", "seed=1"), ("--resume", "never")):
        assert stackbert("pretrain", "--out", run, *options).code == 2
    done = stackbert("pretrain", "--out", run, "--quiet", "--json")
    assert (done.code, done.err) == (0, "")
    assert [row["steps"] for row in json.loads(done.out)["stages"]] == [4, 4]
    assert outcome(run) == outcome(finished(recipe))
    lines = (run / "log.txt").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \w", line) for line in lines)
    assert len([line for line in lines if line.endswith("resuming at step 5 of 8")]) == 1
    assert re.search(r"Validation loss .* (below|above) that of a model that knows", lines[-1])


def test_without_its_extra_a_report_names_it_and_results_come_without_a_page(
    stackbert, tiny_corpus, finished, tmp_path, monkeypatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("stackbert.reports")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "altair", None)
    run, named = finished(tiny_recipe()), "pip install 'stackbert[report]'."
    done = stackbert("report", run, "--out", tmp_path / "report.html")
    assert (done.code, done.err) == (2, f"stackbert: A report takes altair: {named}\n")
    folders = ("--data", tiny_corpus.folder, "--out", tmp_path / "found")
    done = stackbert("evaluate", run / "model", *folders, "--json")
    assert (done.code, json.loads(done.out).keys()) == (0, {"scores"})
    assert done.err.endswith(f"No page was written: A report takes altair: {named}\n")


TRAIN = "pretrain {recipe} --corpus {corpus} --out {out}"
OWN = "finetune {model} --task own --data {recipe} --out {out}"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("pretrain no-such --corpus {corpus} --out {out}", "no-such"),
        ("pretrain {recipe} --corpus {out} --out {out}", "manifest.json"),
        (f"{TRAIN} --set sead=1", "did you mean 'seed'?"),
        (f"{TRAIN} --budget 1h --steps 9", "not both"),
        ("grow {corpus} {out} --depth 4", "config.json"),
        ("grow {model} {out} --depth 1", "layers"),
        ("corpus {out} --text {out}/nothing.txt", "nothing.txt"),
        ("compare {recipe} --corpus {corpus} --out {out} --fractions a,b", "--fractions"),
        ("attention {corpus} --text {recipe} --out {out}", "config.json"),
        (OWN, "--text and --label"),
        ("finetune {model} --task rte --text a --data {corpus} --out {out}", "--task own"),
        ("finetune {model} --task rte --kind regression --data a --out {out}", "--task own"),
        ("finetune {model} --task rte --data {corpus} --out {out}", "RTE/train.tsv"),
        (f"{OWN} --text a --label b --predict", "--test"),
        (f"{OWN} --text a --label b", "{recipe}"),
        ("report {model} --out {out}/x.html", "{model}"),
        ("attention {model} --text {recipe} --out {run}", "{run} is not empty and not a measure"),
        ("plan {recipe} --device cpu --corpus {small}", "{small} was changed after it was built"),
        ("compare {recipe} --corpus {small} --out {out}", "{small} was changed after it was built"),
        (f"{TRAIN} --set optimizer.betas=[1,1]", "optimizer.betas.0: input should be less than 1"),
        (f"{TRAIN} --set stages.0.depth=1000000000", "less than or equal to 1000, got 1000000000"),
        (f"{TRAIN} --set batch.sequences=10000000000", "less than or equal to 1000000000"),
        (f"{TRAIN} --set batch.sequences=1000000000", "A step of 16,000,000,000 tokens takes at"),
        (f"{TRAIN} --set batch.sequence_length=1000000000", "parameters takes at least"),
        (f"{TRAIN} --set model.hidden_size=10000000", "parameters takes at least"),
        ("grow {model} {out} --depth 1000000000", "1,000,000,000 layers are too many"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_exit_code_2(
    line: str, said: str, stackbert, tiny_corpus, finished, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(pretraining_memory, "memory", lambda device: 1 << 35)
    (tmp_path / "tiny.yaml").write_text(tiny_recipe().to_yaml())
    places = {"recipe": tmp_path / "tiny.yaml", "corpus": tiny_corpus.folder}
    run = finished(tiny_recipe())
    places |= {"out": tmp_path / "out", "run": run, "model": run / "model"}
    places["small"] = shutil.copytree(tiny_corpus.folder, tmp_path / "small")
    manifest = (places["small"] / "manifest.json").read_text()
    few = re.sub(r'"size": \d+', '"size": 3', manifest)
    (places["small"] / "manifest.json").write_text(few)
    done = stackbert(*line.format(**places).split())
    assert done.code == 2, done.err
    assert done.err.startswith("stackbert: ")
    assert len(done.err.splitlines()) == 1, done.err
    assert said.format(**places) in done.err
    assert done.out == ""
    assert not list((tmp_path / "out").glob("[!.]*")), "nothing was made but the lock"


def test_a_wrong_command_line_is_exit_code_2_with_a_hint(stackbert) -> None:
    for line in ("pretrain", "grow a b --depth four", "train", "-x"):
        done = stackbert(*line.split())
        assert (done.code, "--help" in done.err, "Traceback" in done.err) == (2, True, False)


def again_while_it_is_said(number: int) -> None:
    write = sys.stderr.write

    def interrupted(text: str) -> int:
        signal.raise_signal(number)
        return write(text)

    sys.stderr.write = interrupted
    signal.raise_signal(number)


def in_a_callback(number: int) -> None:
    tired = type("Tired", (), {})()
    reference = weakref.ref(tired, lambda _: signal.raise_signal(number))
    del tired  # Python prints what a callback raises, and goes on
    time.sleep(9.0)
    assert reference() is None


@pytest.mark.parametrize("way", [signal.raise_signal, again_while_it_is_said, in_a_callback])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_in_a_measurement_is_one_sentence_and_nothing_is_left(
    name, way, stackbert, tiny_corpus, tmp_path, monkeypatch
) -> None:
    number = signal.Signals[name]
    monkeypatch.setattr(run_module, "autotune", lambda *_, **__: way(number))
    done = stackbert(*pretrain_command(tiny_recipe(), tiny_corpus, tmp_path))
    said = f"stackbert: Stopped by {name}. Run the same command again.\n"
    assert (done.code, done.err) == (128 + number, said)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_a_terminal_that_is_closed_ends_no_work(monkeypatch) -> None:
    master, slave = pty.openpty()
    said: list[str] = []
    with contextlib.suppress(OSError), os.fdopen(slave, "w", buffering=1) as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setattr(sys, "stderr", terminal)
        with console_progress() as progress:
            assert isinstance(progress, Bar)
            os.close(master)
            progress.step(1, 2, "half")
            progress.say("x" * 9999)
        Lines().say("to the end")
        said.append("all")
    assert said == ["all"]
