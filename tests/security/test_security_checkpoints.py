"""No code in somebody's checkpoint is run, however it got there."""

import json
import os
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from security_helpers import RECIPE, TABLE, TEXT
from stackbert.recipe_files import parse_recipe

import stackbert as sb
from stackbert.__main__ import main


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self._marker),)


class Enemy:
    """Puts code into folders, and tells whether it was run."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker
        self.pickle = pickle.dumps(Payload(marker))
        self.code = f"import os\nos.mkdir({str(marker)!r})\n"

    @property
    def succeeded(self) -> bool:
        return self.marker.exists()

    def put_pickle(self, folder: Path, name: str) -> None:
        (folder / name).write_bytes(self.pickle)

    def put_torch_file(self, folder: Path, name: str) -> None:
        """As torch.save writes it: an archive with a pickle in it."""
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("archive/data.pkl", self.pickle)
            archive.writestr("archive/version", "3\n")

    def put_code(self, folder: Path, file: str, **fields: object) -> None:
        (folder / "mine.py").write_text(self.code)
        (folder / "custom_generate").mkdir(exist_ok=True)
        (folder / "custom_generate" / "generate.py").write_text(self.code)
        path = folder / file
        value = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(value | fields), encoding="utf-8")


@pytest.fixture
def enemy(tmp_path: Path) -> Enemy:
    return Enemy(tmp_path / "marker")


def test_the_enemy_s_files_do_what_they_are_for(enemy: Enemy, tmp_path: Path) -> None:
    import torch

    pickle.loads(enemy.pickle)  # noqa: S301 (it is our own)
    assert enemy.succeeded
    enemy.marker.rmdir()
    enemy.put_torch_file(tmp_path, "pytorch_model.bin")
    torch.load(tmp_path / "pytorch_model.bin", weights_only=False)
    assert enemy.succeeded
    enemy.marker.rmdir()
    exec(enemy.code)
    assert enemy.succeeded


def _only(name: str, enemy: Enemy, folder: Path) -> None:
    """The weights are there in this file alone."""
    (folder / "model.safetensors").unlink()
    enemy.put_torch_file(folder, name)


def _indexed(enemy: Enemy, folder: Path) -> None:
    _only("weights.bin", enemy, folder)
    index = {"metadata": {}, "weight_map": {"bert.embeddings": "weights.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _auto_map(file: str, enemy: Enemy, folder: Path) -> None:
    classes = ("AutoConfig", "AutoModel", "AutoModelForMaskedLM")
    tokenizer = ["mine.Tokenizer", "mine.Tokenizer"]
    auto_map = {**dict.fromkeys(classes, "mine.Model"), "AutoTokenizer": tokenizer}
    enemy.put_code(folder, file, auto_map=auto_map)


def _unknown_type(enemy: Enemy, folder: Path) -> None:
    _auto_map("config.json", enemy, folder)
    enemy.put_code(folder, "config.json", model_type="mine", architectures=["Mine"])


REFUSED: dict[str, Callable[[Enemy, Path], None]] = {
    "pickle as model.safetensors": lambda e, f: e.put_pickle(f, "model.safetensors"),
    "torch's file as model.safetensors": lambda e, f: e.put_torch_file(f, "model.safetensors"),
    "pytorch_model.bin alone": lambda e, f: _only("pytorch_model.bin", e, f),
    "an index that leads to a pickle": _indexed,
    "weights from elsewhere": lambda e, f: e.put_code(
        f, "config.json", transformers_weights="pytorch_model.bin"
    ),
    "pickle as config.json": lambda e, f: e.put_pickle(f, "config.json"),
    "auto_map in config.json": lambda e, f: _auto_map("config.json", e, f),
    "a type of its own": _unknown_type,
    "pickle as tokenizer.json": lambda e, f: e.put_pickle(f, "tokenizer.json"),
}
IGNORED: dict[str, Callable[[Enemy, Path], None]] = {
    "pytorch_model.bin beside": lambda e, f: e.put_torch_file(f, "pytorch_model.bin"),
    "training_args.bin": lambda e, f: e.put_torch_file(f, "training_args.bin"),
    "optimizer.pt": lambda e, f: e.put_torch_file(f, "optimizer.pt"),
    "code for generation": lambda e, f: e.put_code(f, "config.json"),
    "auto_map of the tokenizer": lambda e, f: _auto_map("tokenizer_config.json", e, f),
}


def _grow(folder: Path) -> None:
    sb.grow_folder(folder, folder.parent / "grown", depth=4)


def _attention(folder: Path) -> None:
    sb.measure_attention(folder, text=["The river of town 3 was opened."])


def _finetune(folder: Path) -> None:
    from stackbert.finetuning.heads import find_source, open_model
    from stackbert.finetuning.work import Head

    head = Head("classes", ("no", "yes"))
    open_model(find_source(folder), head, seed=0, dropout=None)


OPENERS = {"grow": _grow, "attention": _attention, "finetune": _finetune}
_NEEDS_NO_TOKENIZER = "grow"


@pytest.mark.parametrize("attack", [*REFUSED, *IGNORED])
@pytest.mark.parametrize("opener", OPENERS)
def test_no_code_in_a_checkpoint_is_run(
    opener: str, attack: str, enemy: Enemy, finished: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished / "model", tmp_path / "theirs")
    {**REFUSED, **IGNORED}[attack](enemy, folder)
    copies = opener == _NEEDS_NO_TOKENIZER and "tokenizer" in attack
    if attack in REFUSED and not copies:
        with pytest.raises(sb.UserError) as refused:
            OPENERS[opener](folder)
        assert str(folder) in str(refused.value)
        assert "\n" not in str(refused.value)
    else:
        OPENERS[opener](folder)
    assert not enemy.succeeded
    grown = tmp_path / "grown"
    carried = {path.name for path in grown.rglob("*")} if grown.exists() else set()
    assert not carried & {"mine.py", "generate.py", "pytorch_model.bin", "training_args.bin"}


@pytest.mark.parametrize(
    "attack", [*REFUSED, "pickle as optimizer.safetensors", "pickle as state.json", *IGNORED]
)
def test_no_code_in_a_run_s_checkpoint_is_run_when_the_run_goes_on(
    attack: str, enemy: Enemy, finished: Path, corpus: sb.Corpus, tmp_path: Path
) -> None:
    """Its checksums are made to agree."""
    from stackbert.pretraining.checkpoints import STATE, read_state, write_state

    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "model")
    for step in (3, 4):
        folder = run / "checkpoints" / f"step-{step:08d}"
        state = read_state(folder)
        name = attack.removeprefix("pickle as ")
        if name in ("optimizer.safetensors", STATE):
            enemy.put_pickle(folder, name)
        else:
            {**REFUSED, **IGNORED}[attack](enemy, folder)
        if name != STATE:
            write_state(folder, state)
    recipe = parse_recipe(RECIPE, "tiny.yaml")
    # The run takes its tokenizer from the corpus, and a state that is none leaves the one before.
    if attack in IGNORED or attack in ("pickle as tokenizer.json", "pickle as state.json"):
        sb.pretrain(recipe, corpus=corpus, out=run)
    else:
        with pytest.raises(sb.UserError) as refused:
            sb.pretrain(recipe, corpus=corpus, out=run)
        assert "checkpoints" in str(refused.value)
        assert "\n" not in str(refused.value)
    assert not enemy.succeeded


@pytest.mark.parametrize("command", ["grow", "attention", "finetune"])
def test_a_command_refuses_code_in_one_line(
    command: str, enemy: Enemy, finished: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    folder = shutil.copytree(finished / "model", tmp_path / "theirs")
    _auto_map("config.json", enemy, folder)
    (tmp_path / "text.txt").write_text(TEXT)
    own, out = str(tmp_path / "own.csv"), str(tmp_path / "out")
    Path(own).write_text(TABLE)
    columns = ["--text", "text", "--label", "label"]
    arguments = {
        "grow": [str(folder), out, "--depth", "4"],
        "attention": [str(folder), "--text", str(tmp_path / "text.txt"), "--out", out],
        "finetune": [str(folder), "--task", "own", "--data", own, *columns, "--out", out],
    }[command]
    monkeypatch.setattr(sys, "argv", ["stackbert", command, *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2, said
    assert said.startswith(f"stackbert: {folder / 'config.json'} asks for code of its own")
    assert len(said.splitlines()) == 1
    assert not enemy.succeeded
