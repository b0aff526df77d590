"""The command line: exit codes, one sentence instead of a traceback, help with examples."""

import re
import subprocess
import sys

import pytest

import stackbert as sb
from stackbert.pretraining import run as run_module
from stackbert.recipes import shipped_recipes
from tiny_runs import checkpoints, pretrain_command, tiny_recipe

COMMANDS = [
    *("demo", "corpus", "plan", "pretrain", "compare", "grow"),
    *("attention", "finetune", "evaluate", "recipes", "report"),
]


def test_help_lists_every_command_with_an_example_and_version_the_version(stackbert) -> None:
    done = stackbert("--help")
    assert done.code == 0
    assert re.findall(r"^  ([a-z]+) +[A-Z]", done.out, re.MULTILINE) == COMMANDS
    for command in COMMANDS:
        shown = " ".join(stackbert(command, "--help").out.split())
        assert f"Example: stackbert {command}" in shown
    done = stackbert("--version")
    assert (done.code, done.out) == (0, f"stackbert {sb.__version__}\n")


def test_recipes_lists_the_shipped_ones_from_a_fresh_interpreter() -> None:
    command = [sys.executable, "-m", "stackbert", "recipes"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(shipped_recipes())


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
    done = stackbert("grow", source, tmp_path / "deeper", "--depth", 3)
    assert done.code == 0, done.err
    assert "a MegatronBertForMaskedLM of 3 layers" in done.out
    assert "made by stack" in done.out
    names = {path.name for path in (tmp_path / "deeper").iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert not names & {"optimizer.safetensors", "state.json"}, "of the source's training"


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
        ("finetune {model} --task rte --data {corpus} --out {out}", "RTE/train.tsv"),
        (f"{OWN} --text a --label b", "{recipe}"),
        ("report {model} --out {out}/x.html", "{model}"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_exit_code_2(
    line: str, said: str, stackbert, tiny_corpus, finished, tmp_path
) -> None:
    (tmp_path / "tiny.yaml").write_text(tiny_recipe().to_yaml())
    places = {"recipe": tmp_path / "tiny.yaml", "corpus": tiny_corpus.folder}
    places |= {"out": tmp_path / "out", "model": finished(tiny_recipe()) / "model"}
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


def test_ctrl_c_outside_training_is_exit_code_130_without_a_traceback(
    stackbert, tiny_corpus, tmp_path, monkeypatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "pretrain", stopped)
    done = stackbert(*pretrain_command(tiny_recipe(), tiny_corpus, tmp_path))
    assert (done.code, done.err) == (130, "")
