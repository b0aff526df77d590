"""Imports run one way, and importing the package costs nothing."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "stackbert"
LAYERS = """
errors, units, files, progress, tables, intervals, growth.operators, recipe, recipes, corpus,
batches, model_files, encoder, growth, model, machine, devices, pretraining, planner, comparison,
attention, evaluation, finetuning, reports, demo, cli, __main__, __init__
""".replace(",", " ").split()
"""From the bottom up. A module imports from its own package and from layers below it."""


def imports() -> dict[str, set[str]]:
    """Which modules of the package each one imports, inside functions and for types too."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        targets = set()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                targets |= {node.module}
        # `import stackbert` would be the face, which imports everything.
        found[name] = {
            t.removeprefix("stackbert").lstrip(".") or "__init__"
            for t in targets
            if t.split(".")[0] == "stackbert"
        }
    return found


def layer(module: str) -> int:
    names = (module, module.removesuffix(".__init__"), module.split(".")[0])
    return next(LAYERS.index(name) for name in names if name in LAYERS)


def test_imports_run_one_way_and_in_no_circle():
    wrong = [
        f"{module} imports {target}"
        for module, targets in imports().items()
        for target in targets
        if layer(target) > layer(module)
    ]
    assert wrong == []
    names = {name.removesuffix(".__init__"): targets for name, targets in imports().items()}
    list(graphlib.TopologicalSorter(names).static_order())  # raises CycleError


def test_importing_the_package_and_its_command_line_loads_no_heavy_library():
    heavy = ["torch", "transformers", "pandas", "pyarrow", "scipy", "altair", "datasets", "numpy"]
    imported = "import stackbert.cli, stackbert.recipes, sys"
    code = f"{imported}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_loads():
    import stackbert as sb

    assert len(sb.__all__) <= 17
    assert all(getattr(sb, name) is not None for name in (*sb.__all__, "__version__"))
