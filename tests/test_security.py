"""Nothing that comes from a file is run, no path leads out of its folder, nobody is called."""

import ast
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import stackbert as sb
from stackbert.__main__ import main
from stackbert.recipe_files import parse_recipe

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
SOURCES = sorted([*(ROOT / "src").rglob("*.py"), *BENCHMARKS.rglob("*.py")])

# Modules that unpickle, or run what they read.
_UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
_UNSAFE_CALLS = {
    *("torch.load", "torch.save", "torch.jit.load", "torch.hub.load"),
    *("yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all", "yaml.full_load_all"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
}
_UNSAFE_METHODS = {
    *("read_pickle", "to_pickle", "extractall", "unpack_archive"),
    # These of torch.distributed pickle what they send.
    *("broadcast_object_list", "all_gather_object", "gather_object", "scatter_object_list"),
    *("send_object_list", "recv_object_list"),
}
_MUST_BE = {"trust_remote_code": False, "allow_pickle": False, "shell": False}
_SAFE_LOADERS = {"yaml.SafeLoader", "yaml.CSafeLoader"}
# What asks the network, and the modules whose user has asked for that: --dataset, a task's data.
_NETWORK = {"load_dataset", "hf_hub_download", "snapshot_download", "urlopen", "urlretrieve"}
_ASKED = {"src/stackbert/corpus/dataset.py", "src/stackbert/finetuning/glue_dataset.py"}
_TRACKER = "src/stackbert/pretraining/tracking.py"


def offences(source: str, path: str = "src/x.py") -> list[str]:
    """What a module does that none should, with the line."""
    tree = ast.parse(source)
    safe = _SAFE_LOADERS | {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(base) in _SAFE_LOADERS for base in node.bases)
    }
    found = []
    for node in ast.walk(tree):
        for what in _of_node(node, path, safe):
            found.append(f"{path}:{getattr(node, 'lineno', '?')}: {what}")
    return found


def _of_node(node: ast.AST, path: str, safe: set[str]) -> Iterator[str]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = [alias.name for alias in node.names]
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else names
        for module in modules:
            if module.split(".")[0] in _UNSAFE_MODULES:
                yield f"imports {module}"
            if module == "wandb" and path != _TRACKER:
                yield "imports wandb"
        if isinstance(node, ast.ImportFrom):
            called = {f"{node.module}.{name}" for name in names}
            yield from (f"imports {name}" for name in sorted(called & _UNSAFE_CALLS))
    if isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            name = key.value if isinstance(key, ast.Constant) else None
            if name in _MUST_BE and not _is(value, _MUST_BE[name]):
                yield f"{name} is not {_MUST_BE[name]}"
    if isinstance(node, ast.Call):
        yield from _of_call(node, path, safe)


def _of_call(call: ast.Call, path: str, safe: set[str]) -> Iterator[str]:
    name = _dotted(call.func)
    last = name.rpartition(".")[2]
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if name in ("eval", "exec", "compile", "builtins.eval", "builtins.exec"):
        yield f"calls {name}"
    if name in _UNSAFE_CALLS or last in _UNSAFE_METHODS:
        yield f"calls {name}"
    if name in ("yaml.load", "yaml.load_all"):
        loader = given.get("Loader", call.args[1] if len(call.args) > 1 else None)
        if loader is None or ast.unparse(loader) not in safe:
            yield f"calls {name} with another loader than a safe one"
    for argument, value in _MUST_BE.items():
        if argument in given and not _is(given[argument], value):
            yield f"{argument} is not {value}"
    if last == "from_pretrained" and not _is(given.get("local_files_only"), True):
        yield "from_pretrained without local_files_only=True"
    if last in _NETWORK and path not in _ASKED:
        yield f"calls {name}"


def _dotted(node: ast.AST) -> str:
    """ "a.b" of such a name; of a method of something else ".b"."""
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _is(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_module_unpickles_runs_or_fetches_what_it_reads(path: Path) -> None:
    found = offences(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())
    assert not found


@pytest.mark.parametrize(
    "snippet",
    [
        "import pickle",
        "from pickle import loads",
        "import os, joblib",
        "import shelve as harmless",
        "from marshal import load",
        "def f():\n    import dill",
        "eval('1')",
        "exec(text)",
        "compile(text, 'x', 'exec')",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=True)",
        "from torch import load",
        "torch.save(model, path)",
        "yaml.load(text)",
        "yaml.load(text, yaml.Loader)",
        "yaml.load(text, Loader=yaml.FullLoader)",
        "class Mine(yaml.Loader):\n    pass\nyaml.load(text, Loader=Mine)",
        "yaml.unsafe_load(text)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=may)",
        "AutoModel.from_pretrained(x, local_files_only=True, trust_remote_code=True)",
        "AutoModel.from_pretrained(x, local_files_only=True, trust_remote_code=wanted)",
        "options = {'trust_remote_code': True}",
        "AutoModel.from_pretrained(folder)",
        "AutoModel.from_pretrained(folder, local_files_only=False)",
        "AutoModel.from_pretrained(folder, **options)",
        "subprocess.run(command, shell=True)",
        "subprocess.Popen(command, shell=some)",
        "os.system('ls')",
        "os.popen('ls')",
        "tarfile.open(path).extractall(folder)",
        "shutil.unpack_archive(path)",
        "pandas.read_pickle(path)",
        "dist.broadcast_object_list(box)",
        "datasets.load_dataset('glue')",
        "urllib.request.urlopen(address)",
        "import wandb",
    ],
)
def test_the_search_finds(snippet: str) -> None:
    assert len(offences(snippet)) == 1


def test_the_search_lets_pass_what_is_safe() -> None:
    assert not offences(
        "class Mine(yaml.SafeLoader):\n    pass\n"
        "yaml.load(text, Loader=Mine)\nyaml.safe_load(text)\nmodel.eval()\nre.compile('x')\n"
        "np.load(path)\nload_file(path)\nsubprocess.run(['ls'], shell=False)\n"
        "AutoModel.from_pretrained(x, local_files_only=True, trust_remote_code=False)\n"
    )


def test_html_is_marked_as_such_in_one_place() -> None:
    """Its template escapes by itself; only our own style, scripts and escaped JSON go in as is."""
    marked = []
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        names = [ast.unparse(node) for node in calls if _dotted(node.func).endswith("Markup")]
        marked += [(path.name, name) for name in names]
    assert sorted(marked) == [
        ("page.py", "Markup(_json_for_script(data))"),
        ("page.py", "Markup(_own('page.css'))"),
        ("page.py", "Markup(script)"),
    ]
    reporting = ROOT / "src" / "stackbert" / "reporting"
    assert [path.name for path in (ROOT / "src").rglob("*.j2")] == ["page.html.j2"]
    template = (reporting / "page.html.j2").read_text(encoding="utf-8")
    assert "safe" not in template
    assert "autoescape" not in template
    script = (reporting / "page.js").read_text(encoding="utf-8")
    assert not [
        word
        for word in ("innerHTML", "outerHTML", "insertAdjacent", "eval(", "write(")
        if word in script
    ]


# A run, whose checkpoint an enemy gets hold of.
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "model": {
        "type": "bert",
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    },
    "stages": [{"depth": 1, "steps": 2}, {"depth": 2, "steps": 2}],
    "batch": {"sequences": 4, "sequence_length": 16, "micro_batch": 4},
    "precision": "fp32",
    "compile": False,
    "evaluation": {"sequences": 4, "every_steps": 2},
    "checkpoint": {"every_steps": 1, "every_minutes": None, "keep": 9},
}
TOPICS = ("river", "harbour", "mountain", "library", "railway", "market")
TEXT = "\n\n".join(
    f"The {topic} of town {n} was opened in {1800 + n}. People came from {n} villages to see it."
    for n, topic in enumerate(TOPICS * 8)
)

TABLE = "text,label\n" + "".join(f"a {t} of {n},{n % 2}\n" for n, t in enumerate(TOPICS * 5))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> sb.Corpus:
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    return sb.build_corpus(
        folder / "corpus", text=[folder / "text.txt"], vocab_size=128, validation=0.2
    )


@pytest.fixture(scope="module")
def finished(corpus: sb.Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Never changed."""
    run = tmp_path_factory.mktemp("finished") / "run"
    sb.pretrain(parse_recipe(RECIPE, "tiny.yaml"), corpus=corpus, out=run)
    return run


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


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Folders of each kind as the fuzzer's readers prepare them."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    results: ModuleType = __import__("fuzz_results")
    kinds = {
        "comparison": results.Comparison,
        "attention": results.Attention,
        "study": results.Study,
    }

    def prepare(kind: str) -> Path:
        kinds[kind]().prepare(tmp_path)
        return tmp_path / kind

    return prepare


def _edit(path: Path, change: Callable[[Any], None]) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


OUTSIDE = ("../outside", "/etc/hostname", "..", "a/b", "x\0y", "")


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_comparison_s_keys_stay_in_its_folder(name: str, made) -> None:
    folder = made("comparison")
    _edit(folder / "comparison.json", lambda v: v["entries"][0].update(key=name))
    with pytest.raises(sb.UserError, match=r"comparison\.json is damaged"):
        sb.report(folder, folder / "report.html")


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("what", ["member", "task"])
def test_a_fine_tuning_record_s_names_stay_in_its_folder(what: str, name: str, made) -> None:
    folder = made("study")

    def change(value: dict[str, Any]) -> None:
        if what == "member":
            value["contenders"][0]["members"][0]["key"] = name
        else:
            value["tasks"] = {name: {**value["tasks"]["rte"], "name": name}}

    _edit(folder / "finetune.json", change)
    with pytest.raises(sb.UserError, match=r"finetune\.json is damaged"):
        sb.report(folder, folder / "report.html")


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_s_weights_stay_in_its_folder(name: str, finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished / "model", tmp_path / "theirs")
    (folder / "model.safetensors").rename(tmp_path / "outside")
    name = f"{name}.safetensors" if name == "a/b" else name
    index = {"metadata": {}, "weight_map": {"bert.embeddings.word_embeddings.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(sb.UserError, match=r"index\.json is damaged: .* is no file of this folder"):
        _grow(folder)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_state_s_checksums_are_of_its_own_folder(
    name: str, finished: Path, tmp_path: Path
) -> None:
    """With a checksum of its own that agrees: the file outside is not even read."""
    from stackbert.pretraining import checkpoints

    folder = shutil.copytree(finished / "checkpoints" / "step-00000004", tmp_path / "step-00000004")
    path = folder / checkpoints.STATE
    value = json.loads(path.read_text(encoding="utf-8"))
    del value["own_sha256"]
    value["sha256"][name] = "0" * 64
    value["own_sha256"] = checkpoints._digest(value)
    path.write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(checkpoints.DamagedCheckpointError, match="no file of its folder"):
        checkpoints.read_state(folder)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_manifest_s_shards_stay_in_their_folder(
    name: str, corpus: sb.Corpus, tmp_path: Path
) -> None:
    folder = shutil.copytree(corpus.folder, tmp_path / "corpus")

    def change(value: dict[str, Any]) -> None:
        sums = value["train"]["shards"][0]["sha256"]
        sums[name] = sums.pop("tokens-00000.npy")

    _edit(folder / "manifest.json", change)
    with pytest.raises(sb.UserError, match=r"manifest\.json is damaged"):
        sb.open_corpus(folder)


def test_a_link_in_a_checkpoint_or_a_corpus_brings_nothing_from_elsewhere(
    finished: Path, corpus: sb.Corpus, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("secret")
    model = shutil.copytree(finished / "model", tmp_path / "theirs")
    (model / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(sb.UserError, match=r"notes\.txt is a symbolic link to"):
        _grow(model)
    assert not (tmp_path / "grown").exists()
    text = shutil.copytree(corpus.folder, tmp_path / "corpus")
    (text / "tokenizer" / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(sb.UserError, match=r"notes\.txt is a symbolic link to"):
        sb.open_corpus(text)


def test_a_run_s_ledger_that_is_a_link_is_not_written_through(
    corpus: sb.Corpus, tmp_path: Path
) -> None:
    run, victim = tmp_path / "run", tmp_path / "victim"
    recipe = parse_recipe(RECIPE, "tiny.yaml")
    sb.pretrain(recipe, corpus=corpus, out=run)
    shutil.rmtree(run / "model")
    (run / "metrics.jsonl").rename(victim)
    (run / "metrics.jsonl").symlink_to(victim)
    before = victim.read_bytes()
    with pytest.raises(sb.UserError, match=r"metrics\.jsonl is a symbolic link"):
        sb.pretrain(recipe, corpus=corpus, out=run)
    assert victim.read_bytes() == before


# As a folder's or file's name, which can have no slash; and as any other.
NAME = "\"><script>alert(1)<script><img src=x onerror=alert(2)>'&amp;"
HOSTILE = "</script></style></title>" + NAME


class Structure(HTMLParser):
    """What a browser would make of a page: elements with their attributes' names, and the text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def _replaced(value: Any, old: str, new: str) -> Any:
    """Every text and key of that name another, in JSON."""
    if isinstance(value, dict):
        return {_replaced(k, old, new): _replaced(v, old, new) for k, v in value.items()}
    if isinstance(value, list):
        return [_replaced(each, old, new) for each in value]
    return new if value == old else value


@pytest.mark.parametrize(
    ("kind", "file", "names"),
    [
        ("comparison", "comparison.json", ("cpu",)),
        ("study", "finetune.json", ("base", "RTE", "a note", "no", "wnli", "cpu")),
    ],
)
def test_names_in_results_cannot_break_out_of_the_report(
    kind: str, file: str, names: tuple[str, ...], made
) -> None:
    folder = made(kind)
    plain = Structure(sb.report(folder, folder / "plain.html"))
    true = json.loads((folder / file).read_text(encoding="utf-8"))
    for name in names:
        hostile = _replaced(true, name, HOSTILE)
        (folder / file).write_text(json.dumps(hostile), encoding="utf-8")
        page = Structure(sb.report(folder, folder / "hostile.html"))
        assert page.elements == plain.elements, name
        assert HOSTILE in page.text, name


def test_names_cannot_break_out_of_a_report_on_attention(made, tmp_path: Path) -> None:
    """Those of the model and of the text that was measured; tokens have a test of their own."""
    from stackbert.attention.page import attention_page
    from stackbert.attention.stored import read_attention
    from stackbert.reporting.page import write_page

    result, examples = read_attention(made("attention"))
    model = replace(result.model, name=HOSTILE, type=HOSTILE)
    hostile = replace(result, model=model, text=HOSTILE)
    pages = []
    for each in (result, hostile):
        write_page(attention_page(each, examples), tmp_path / "page.html")
        pages.append(Structure(tmp_path / "page.html"))
    assert pages[1].elements == pages[0].elements
    assert pages[1].text.count(HOSTILE) > 3


@pytest.mark.parametrize("name", [HOSTILE, NAME, "../up", "a/b", ""])
def test_names_of_recipes_and_variants_have_neither_markup_nor_paths(
    name: str, tmp_path: Path
) -> None:
    from stackbert.comparison.variants import load_variants

    with pytest.raises(sb.UserError, match="name"):
        parse_recipe({**RECIPE, "name": name}, "tiny.yaml")
    path = tmp_path / "variants.yaml"
    path.write_text(json.dumps({name: {"seeds": 1}}), encoding="utf-8")
    recipe = parse_recipe(RECIPE, "tiny.yaml")
    with pytest.raises(sb.UserError, match="a name is made of letters, digits"):
        load_variants([str(path)], recipe, seeds=1, fractions=[1.0])


def test_names_of_a_run_cannot_break_out_of_its_report(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its folder, of the recipe's summary and of the corpus' sources; nor is anybody called."""

    def called(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", called)
    monkeypatch.setattr(socket.socket, "connect", called)
    plain = Structure(sb.report(finished, tmp_path / "plain.html"))
    text = tmp_path / f"{NAME}.txt"
    text.write_text(TEXT, encoding="utf-8")
    corpus = sb.build_corpus(tmp_path / "corpus", text=[text], vocab_size=128, validation=0.2)
    recipe = parse_recipe({**RECIPE, "summary": HOSTILE}, "tiny.yaml")
    run = tmp_path / NAME
    sb.pretrain(recipe, corpus=corpus, out=run)
    page = Structure(sb.report(run, tmp_path / "hostile.html"))
    assert page.elements == plain.elements
    assert NAME in page.text
    both = Structure(sb.report([run, finished], tmp_path / "both.html"))
    assert ("img", ("src", "onerror")) not in both.elements
    assert [tag for tag, _ in both.elements].count("script") == 3


NO_NETWORK = """
import os, sys

os.environ.pop("HF_HUB_OFFLINE", None)
os.environ.pop("TRANSFORMERS_OFFLINE", None)
asked = []


def hear(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        asked.append(f"{event} {arguments[1:]}")
        raise OSError("the network was asked")


sys.addaudithook(hear)
try:
    WORK
finally:
    if asked:
        sys.exit("\\n".join(asked))
"""
WORK = """
    import stackbert as sb
    from stackbert.recipe_files import parse_recipe

    recipe = parse_recipe(RECIPE, "tiny.yaml")
    corpus = sb.build_corpus("corpus", text=["text.txt"], vocab_size=128, validation=0.2)
    sb.pretrain(recipe, corpus="corpus", out="run")
    sb.grow_folder("run/model", "grown", depth=4)
    sb.measure_attention("grown", text="text.txt", compare="run/model")
    sb.plan(recipe, corpus="corpus", device="H100")
    own = sb.OwnData("own.csv", text="text", label="label")
    sb.finetune("grown", task=own, out="finetuned", seeds=1, settings=SETTINGS)
    print("done")
"""


def _without_network(work: str, folder: Path) -> subprocess.CompletedProcess[str]:
    script = NO_NETWORK.replace("    WORK", work.replace("RECIPE", repr(RECIPE)))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS"))}
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "hf")},
        capture_output=True,
        text=True,
    )


def test_the_network_is_never_asked(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "own.csv").write_text(TABLE)
    settings = repr(["max_steps=2", "precision=fp32"])
    done = _without_network(WORK.replace("SETTINGS", settings), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("done\n")


@pytest.mark.parametrize(
    "work",
    [
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')",
        "import socket; socket.create_connection(('localhost', 9))",
        # What a library might do: ask, and go on if nobody answers.
        "import contextlib, socket\n    with contextlib.suppress(OSError): "
        "socket.getaddrinfo('huggingface.co', 443)",
    ],
)
def test_asking_the_network_would_be_seen(work: str, tmp_path: Path) -> None:
    done = _without_network(f"    {work}", tmp_path)
    assert done.returncode == 1
    assert "socket." in done.stderr
