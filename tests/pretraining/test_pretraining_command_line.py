"""The command line: exit codes, sentences instead of tracebacks, help with examples."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pretraining_helpers import checkpoints, tiny_recipe

import stackbert as sb
from stackbert.pretraining import run as run_module

COMMANDS = ("demo", "corpus", "pretrain", "plan", "compare", "report")
COMMANDS += ("attention", "grow", "recipes")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_recipe().to_yaml())
    return path


def test_help_lists_every_command(stackbert) -> None:
    done = stackbert("--help")
    assert done.code == 0
    for command in COMMANDS:
        assert re.search(rf"^\s+{command}\s+\w", done.out, re.MULTILINE), command


def test_the_version_is_printed(stackbert) -> None:
    done = stackbert("--version")
    assert done.code == 0
    assert done.out.split() == ["stackbert", sb.__version__]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_has_an_example(command: str, stackbert) -> None:
    done = stackbert(command, "--help")
    assert done.code == 0
    assert f"Example: stackbert {command}" in " ".join(done.out.split())


def test_importing_stackbert_and_asking_for_help_load_nothing_heavy() -> None:
    code = (
        "import sys, stackbert, stackbert.cli, stackbert.__main__; dir(stackbert); "
        "from typer.testing import CliRunner; "
        "result = CliRunner().invoke(stackbert.cli.app, ['pretrain', '--help']); "
        "assert result.exit_code == 0; "
        "heavy = {'torch', 'transformers', 'numpy', 'pyarrow', 'tokenizers'} & set(sys.modules); "
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there() -> None:
    for name in sb.__all__:
        assert getattr(sb, name) is not None
    assert set(sb.__all__) <= set(dir(sb))
    with pytest.raises(AttributeError, match="pretrian"):
        sb.pretrian  # noqa: B018


def test_pretrain_prints_the_stages_and_where_the_model_is(
    stackbert, recipe, corpus, tmp_path
) -> None:
    run = tmp_path / "run"
    done = stackbert(
        "pretrain", recipe, "--corpus", corpus.folder, "--out", run,
        "--set", "optimizer.lr=0.001", "--set", "seed=4", "--steps", 9, "--track", "tensorboard",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert f"The model is {run / 'model'}" in done.out
    assert "Stages of tiny" in done.out
    assert "step 3: grown 1 → 2 layers by stack" in done.err
    assert list(checkpoints(run)) == [3, 6, 9]
    assert (run / "tensorboard").is_dir()
    written = sb.load_recipe(run / "recipe.yaml")
    assert (written.optimizer.lr, written.seed, written.total_steps) == (0.001, 4, 9)
    again = stackbert(
        "pretrain", recipe, "--corpus", corpus.folder, "--out", run,
        "--set", "optimizer.lr=0.001", "--set", "seed=4", "--steps", 9,
    )  # fmt: skip
    assert again.code == 0
    assert "finished already" in again.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pretrain", "no-such", "--corpus", "{corpus}", "--out", "{out}"], "no recipe 'no-such'"),
        (["pretrain", "{recipe}", "--corpus", "{out}", "--out", "{out}"], "manifest.json"),
        (["pretrain", "{recipe}", "--corpus", "{corpus}", "--out", "{recipe}"], "A file stands"),
        (
            ["pretrain", "{recipe}", "--corpus", "{corpus}", "--out", "{out}", "--set", "seed"],
            "--set seed: write it as field=value",
        ),
        (
            ["pretrain", "{recipe}", "--corpus", "{corpus}", "--out", "{out}", "--set", "sead=1"],
            "did you mean 'seed'?",
        ),
        (
            ["pretrain", "{recipe}", "--corpus", "{corpus}", "--out", "{out}", "--budget", "1 h"],
            "'1 h' is not a duration",
        ),
        (
            ["pretrain", "{recipe}", "--corpus", "{corpus}", "--out", "{out}", "--track", "mlflow"],
            "--track mlflow: choose from tensorboard, wandb",
        ),
        (["grow", "{corpus}", "{out}", "--depth", "4"], "config.json"),
        (["grow", "{out}", "{out}", "--depth", "4"], "{out}"),
        (["corpus", "{out}", "--text", "{out}/nothing.txt"], "nothing.txt"),
        (["corpus", "{out}"], "Give either text"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_exit_code_2(
    arguments, said, stackbert, recipe, corpus, tmp_path
) -> None:
    places = {"recipe": recipe, "corpus": corpus.folder, "out": tmp_path / "out"}
    done = stackbert(*(argument.format(**places) for argument in arguments))
    assert done.code == 2
    assert done.err.startswith("stackbert: ")
    assert len(done.err.splitlines()) == 1, done.err
    assert said.format(**places) in done.err
    assert done.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["pretrain"],
        ["pretrain", "x", "--corpus", "y", "--out", "z", "--steps", "0"],
        ["pretrain", "x", "--corpus", "y", "--out", "z", "--resume", "perhaps"],
        ["grow", "a", "b", "--depth", "four"],
        ["train"],
        ["--colour"],
    ],
)
def test_a_wrong_command_line_is_exit_code_2_with_a_hint(arguments, stackbert) -> None:
    done = stackbert(*arguments)
    assert done.code == 2
    assert "--help" in done.err
    assert "Traceback" not in done.err


def test_a_run_that_fails_is_exit_code_1(stackbert, recipe, corpus, tmp_path) -> None:
    done = stackbert(
        "pretrain", recipe, "--corpus", corpus.folder, "--out", tmp_path / "run",
        "--set", "optimizer.lr=1.0e+30",
    )  # fmt: skip
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith("stackbert: The loss is not finite at step 1 ")
    assert "Traceback" not in done.err


@pytest.mark.parametrize(("number", "code"), [(2, 130), (15, 143)])
def test_a_run_that_was_stopped_is_exit_code_128_and_the_signal(
    number, code, stackbert, recipe, corpus, tmp_path, monkeypatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise sb.Interrupted("Stopped at step 3.", number)

    monkeypatch.setattr(run_module, "pretrain", stopped)
    done = stackbert("pretrain", recipe, "--corpus", corpus.folder, "--out", tmp_path / "run")
    assert done.code == code
    assert done.err == "stackbert: Stopped at step 3.\n"


def test_ctrl_c_outside_the_training_is_exit_code_130_without_a_traceback(
    stackbert, recipe, corpus, tmp_path, monkeypatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "pretrain", stopped)
    done = stackbert("pretrain", recipe, "--corpus", corpus.folder, "--out", tmp_path / "run")
    assert done.code == 130
    assert "Traceback" not in done.err


def test_python_m_stackbert_grow_makes_a_deeper_checkpoint_of_a_runs(undisturbed, tmp_path) -> None:
    """From a fresh interpreter, start to finish."""
    source = checkpoints(undisturbed(tiny_recipe()))[12]
    deeper = tmp_path / "deeper"
    done = subprocess.run(
        [sys.executable, "-m", "stackbert", "grow", source, deeper, "--depth", "6"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "MegatronBertForMaskedLM of 6 layers" in done.stdout
    assert "grown from 2 by stack" in done.stdout
    names = {path.name for path in deeper.iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert not names & {"optimizer.safetensors", "state.json"}, "of the source's training"
    from transformers import AutoModelForMaskedLM

    assert AutoModelForMaskedLM.from_pretrained(deeper).config.num_hidden_layers == 6


def test_grow_refuses_what_it_cannot_reach(stackbert, undisturbed, tmp_path) -> None:
    source = checkpoints(undisturbed(tiny_recipe()))[12]
    done = stackbert("grow", source, tmp_path / "deeper", "--depth", 1)
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    done = stackbert("grow", source, tmp_path / "deeper", "--depth", 4, "--operator", "stak")
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert "stack" in done.err
    assert not (tmp_path / "deeper").exists()


def test_corpus_says_what_it_made(stackbert, documents, tmp_path) -> None:
    for number in range(2):
        part = documents[number * 8 : number * 8 + 8]
        (tmp_path / f"{number}.txt").write_text("\n\n".join(part), encoding="utf-8")
    done = stackbert(
        "corpus", tmp_path / "corpus", tmp_path / "1.txt", "--text", tmp_path / "0.txt",
        "--vocab-size", 300, "--validation", 0.2,
    )  # fmt: skip
    assert done.code == 0, done.err
    manifest = sb.open_corpus(tmp_path / "corpus").manifest
    assert manifest.train.documents + manifest.validation.documents == 16
    assert f"{manifest.train.tokens:,} tokens for training" in done.out


def test_recipes_lists_the_shipped_ones(stackbert) -> None:
    done = stackbert("recipes")
    assert done.code == 0
    assert [line.split()[0] for line in done.out.splitlines()] == list(sb.shipped_recipes())
