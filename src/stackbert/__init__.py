"""StackBERT: pre-train BERT-like encoders for less, by progressive stacking.

    import stackbert as sb
    sb.build_corpus("corpus", text=["my_text/"])
    result = sb.pretrain(sb.load_recipe("small-cpu"), corpus="corpus", out="run")
    deeper = sb.grow(model, depth=12)

Names load when they are first used, so that importing the package costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stackbert.attention.measure import measure_attention
    from stackbert.comparison.compare import compare
    from stackbert.corpus.build import build_corpus
    from stackbert.corpus.store import open_corpus
    from stackbert.errors import UserError
    from stackbert.evaluation.evaluate import evaluate
    from stackbert.finetuning.study import finetune
    from stackbert.growth.callback import GrowthCallback
    from stackbert.growth.folder import grow_folder
    from stackbert.growth.grow import grow
    from stackbert.growth.operators import register_operator
    from stackbert.planner import plan
    from stackbert.pretraining.run import extend, pretrain
    from stackbert.recipe import Recipe
    from stackbert.recipes import load_recipe
    from stackbert.reports.report import report

_HOMES = {
    "GrowthCallback": "growth.callback",
    "Recipe": "recipe",
    "UserError": "errors",
    "build_corpus": "corpus.build",
    "compare": "comparison.compare",
    "evaluate": "evaluation.evaluate",
    "extend": "pretraining.run",
    "finetune": "finetuning.study",
    "grow": "growth.grow",
    "grow_folder": "growth.folder",
    "load_recipe": "recipes",
    "measure_attention": "attention.measure",
    "open_corpus": "corpus.store",
    "plan": "planner",
    "pretrain": "pretraining.run",
    "register_operator": "growth.operators",
    "report": "reports.report",
}

__all__ = [
    "GrowthCallback",
    "Recipe",
    "UserError",
    "build_corpus",
    "compare",
    "evaluate",
    "extend",
    "finetune",
    "grow",
    "grow_folder",
    "load_recipe",
    "measure_attention",
    "open_corpus",
    "plan",
    "pretrain",
    "register_operator",
    "report",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 (a function or a class)
    from importlib import import_module, metadata

    if name == "__version__":
        return metadata.version("stackbert")
    if name not in _HOMES:
        raise AttributeError(f"module 'stackbert' has no attribute '{name}'")
    return getattr(import_module(f"stackbert.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
