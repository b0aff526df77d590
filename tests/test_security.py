"""Nothing that StackBERT reads is run or fetched; a damaged file gives a sentence."""

import ast
import functools
import json
import os
import pickle
import random
import re
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import stackbert as sb
from stackbert.errors import UserError
from stackbert.files import sha256
from stackbert.recipes import _Loader
from tiny_encoders import edit_config
from tiny_runs import Child, checkpoints, tiny_recipe

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "examples").rglob("*.py")])
ASKED = {"src/stackbert/corpus/text.py"}  # by --dataset
FETCHES = r"load_dataset|hf_hub_download|snapshot_download|urlopen|urlretrieve"
WRONG = re.compile(
    r"""(import|from)\ .*\b(pickle|dill|cloudpickle|joblib|shelve|marshal)\b
    | (eval|exec|compile|torch\.load|torch\.save|os\.system|os\.popen)\(
    | [\w.]*\.(read_pickle|to_pickle|extractall|unpack_archive|\w*_object_list|all_gather_object)\(
    | [\w.]*\.from_pretrained\((?!.*local_files_only=True)
    | yaml\.(?!safe_|load\(text,\ Loader=_Loader)\w+\(
    | .*(trust_remote_code|allow_pickle|shell)=(?!False)""",
    re.VERBOSE | re.DOTALL,
)
"""Of an import or a call: what unpickles, runs what it reads, or may look a name up on the hub."""


def offences(source: str, path: str = "x.py") -> list[str]:
    """What a module does that none should."""
    kinds = ast.Import | ast.ImportFrom | ast.Call
    nodes = [ast.unparse(n) for n in ast.walk(ast.parse(source)) if isinstance(n, kinds)]
    fetches = rf"[\w.]*\b({FETCHES})\(" if path not in ASKED else "$^"
    return [text for text in nodes if WRONG.match(text) or re.match(fetches, text)]


def test_no_module_unpickles_runs_or_fetches_what_it_reads() -> None:
    names = [path.relative_to(ROOT).as_posix() for path in SOURCES]
    found = [each for name in names for each in offences((ROOT / name).read_text("utf-8"), name)]
    assert found == []
    assert issubclass(_Loader, yaml.SafeLoader)
    for snippet in """import os, pickle
from joblib import load
torch.load(path, weights_only=True)
eval(text)
yaml.load(text, yaml.Loader)
np.load(path, allow_pickle=may)
AutoModel.from_pretrained(folder, **options)
AutoModel.from_pretrained(x, local_files_only=True, trust_remote_code=True)
pandas.read_pickle(path)
dist.broadcast_object_list(box)
datasets.load_dataset('glue')""".splitlines():
        assert len(offences(snippet)) == 1, snippet


def pickled(name: str, folder: Path, marker: Path) -> None:
    """A file in the format of pickle that makes a folder when it is read, and no safe weights."""
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(f"cposix\nmkdir\n(S{str(marker)!r}\ntR.".encode())


def own_code(folder: Path, marker: Path) -> None:
    (folder / "mine.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    edit_config(folder, auto_map=dict.fromkeys(("AutoModel", "AutoModelForMaskedLM"), "mine.M"))


ATTACKS: dict[str, Callable[[Path, Path], object]] = {
    "pickle as weights": functools.partial(pickled, "model.safetensors"),
    "pickled weights": functools.partial(pickled, "pytorch_model.bin"),
    "code of its own": own_code,
}


def openers(place: Path) -> list[Callable[[Path], object]]:
    """The commands that open somebody's checkpoint: grow, attention, finetune."""
    words = [f"a text of {n} words" for n in range(40)]
    (place / "words.txt").write_text("\n\n".join(words))
    (place / "words.csv").write_text("text,label\n" + "".join(f"{w},{w[10]}\n" for w in words))
    table, text = place / "words.csv", str(place / "words.txt")
    tune = functools.partial(sb.finetune, task="own", data=table, settings=["max_steps=1"])
    return [
        lambda folder: sb.grow_folder(folder, place / "grown", 4),
        lambda folder: sb.measure_attention(folder, text=text, out=place / "maps", sentences=8),
        lambda folder: tune(folder, out=place / "tuned", seeds=2),
    ]


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_code_in_a_checkpoint_runs_and_each_command_refuses_it(
    attack: str, finished, tiny_corpus, tmp_path
) -> None:
    marker = tmp_path / "marker"
    folder = shutil.copytree(finished(tiny_recipe()) / "model", tmp_path / "theirs")
    ATTACKS[attack](folder, marker)
    for opener in openers(tmp_path):
        with pytest.raises(UserError, match=str(folder)):
            opener(folder)
    # In a run's own checkpoint, with checksums that agree.
    run = shutil.copytree(finished(tiny_recipe()), tmp_path / "run")
    shutil.rmtree(run / "model")
    *_, last = checkpoints(run).values()
    ATTACKS[attack](last, marker)
    state = json.loads((last / "state.json").read_text())
    state["sha256"] = {p.name: sha256(p) for p in last.iterdir() if p.name != "state.json"}
    (last / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=str(last)):
        sb.pretrain(tiny_recipe(), corpus=tiny_corpus, out=run)
    assert not marker.exists()
    if attack != "code of its own":  # the attack is real
        (file,) = (p for p in folder.iterdir() if p.read_bytes().startswith(b"cposix"))
        pickle.loads(file.read_bytes())  # noqa: S301 (our own)
        assert marker.exists()


def test_the_network_is_never_asked(finished, tiny_corpus, tmp_path) -> None:
    model = finished(tiny_recipe()) / "model"

    def listen() -> None:
        def hear(event: str, arguments: tuple[object, ...]) -> None:
            if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
                print("the network was asked:", event, arguments[1:], flush=True)
                os._exit(9)

        sys.addaudithook(hear)

    def work() -> None:
        sb.pretrain(tiny_recipe(), corpus=tiny_corpus, out=tmp_path / "run")
        for opener in openers(tmp_path):
            opener(model)
        sb.report(model.parent, tmp_path / "report.html")

    child = Child(tmp_path / "said.txt", listen, work, HF_HUB_OFFLINE=0)
    assert child.wait() == 0, child.output
    asking = Child(tmp_path / "said.txt", listen, lambda: socket.getaddrinfo("localhost", 9))
    assert asking.wait() == 9, "asking would have been seen"


CASES = {"recipe": 30, "text": 60, "tokenizer": 30, "corpus": 30, "run": 12, "model": 20}
"""Of each reader of the fuzzer, a few; benchmarks/fuzz.py runs as many of all as one likes."""


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(Path(__file__).parents[1] / "benchmarks")])
        return __import__("fuzz")


@pytest.fixture(scope="module")
def material(finished, tiny_corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    run = finished(tiny_recipe())
    shutil.copytree(run, folder / "run")
    shutil.copytree(run / "model", folder / "model")
    shutil.copytree(tiny_corpus.folder, folder / "corpus")
    shutil.copytree(tiny_corpus.tokenizer_folder, folder / "tokenizer")
    (folder / "recipe").mkdir()
    shutil.copy(run / "recipe.yaml", folder / "recipe")
    (folder / "text").mkdir()
    lines = (f'{{"text": "Document {n}.", "n": {n}}}\n' for n in range(20))
    (folder / "text" / "a.jsonl").write_text("".join(lines))
    return folder


@pytest.mark.parametrize("reader", CASES)
def test_a_damaged_file_gives_a_sentence_or_what_it_says(reader: str, fuzz, material) -> None:
    cases = [
        fuzz.run_case(reader, material, random.Random(f"{reader} {number}"))
        for number in range(CASES[reader])
    ]
    assert [said for outcome, said in cases if outcome == "failed"] == []
    assert {outcome for outcome, _ in cases} == {"refused", "accepted"}, "a reader was not tried"
