"""No line of the source unpickles, runs or fetches what it reads; pages escape what they show."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
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
