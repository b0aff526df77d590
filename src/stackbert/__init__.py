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
    from stackbert.attention.result import AttentionResult
    from stackbert.comparison.compare import compare
    from stackbert.comparison.results import Results, read_results
    from stackbert.comparison.switching import Switch, compare_switches
    from stackbert.comparison.verdict import Verdict, judge
    from stackbert.corpus.build import build_corpus
    from stackbert.corpus.store import Corpus, open_corpus
    from stackbert.errors import Interrupted, RunError, StackBertError, UserError
    from stackbert.finetuning.folder import Contender
    from stackbert.finetuning.gather import OwnData
    from stackbert.finetuning.results import (
        Difference,
        FinetuneResults,
        Measure,
        Score,
        read_finetune,
    )
    from stackbert.finetuning.study import finetune
    from stackbert.growth.folder import grow_folder
    from stackbert.growth.model import grow
    from stackbert.planning.planner import plan
    from stackbert.planning.result import Plan, StagePlan
    from stackbert.pretraining.ledger import read_ledger
    from stackbert.pretraining.run import RunResult, pretrain
    from stackbert.pretraining.summary import summarise
    from stackbert.recipe import Recipe
    from stackbert.recipe_files import load_recipe, shipped_recipes
    from stackbert.reporting.report import report

__version__ = "0.1.0"

_HOMES = {
    "measure_attention": "attention.measure",
    "AttentionResult": "attention.result",
    "compare": "comparison.compare",
    "Results": "comparison.results",
    "read_results": "comparison.results",
    "Switch": "comparison.switching",
    "compare_switches": "comparison.switching",
    "Verdict": "comparison.verdict",
    "judge": "comparison.verdict",
    "report": "reporting.report",
    "build_corpus": "corpus.build",
    "Corpus": "corpus.store",
    "open_corpus": "corpus.store",
    "Interrupted": "errors",
    "RunError": "errors",
    "StackBertError": "errors",
    "UserError": "errors",
    "Contender": "finetuning.folder",
    "OwnData": "finetuning.gather",
    "Difference": "finetuning.results",
    "FinetuneResults": "finetuning.results",
    "Measure": "finetuning.results",
    "Score": "finetuning.results",
    "read_finetune": "finetuning.results",
    "finetune": "finetuning.study",
    "grow": "growth.model",
    "grow_folder": "growth.folder",
    "Plan": "planning.result",
    "StagePlan": "planning.result",
    "plan": "planning.planner",
    "read_ledger": "pretraining.ledger",
    "RunResult": "pretraining.run",
    "pretrain": "pretraining.run",
    "summarise": "pretraining.summary",
    "Recipe": "recipe",
    "load_recipe": "recipe_files",
    "shipped_recipes": "recipe_files",
}

__all__ = [
    "AttentionResult",
    "Contender",
    "Corpus",
    "Difference",
    "FinetuneResults",
    "Interrupted",
    "Measure",
    "OwnData",
    "Plan",
    "Recipe",
    "Results",
    "RunError",
    "RunResult",
    "Score",
    "StackBertError",
    "StagePlan",
    "Switch",
    "UserError",
    "Verdict",
    "build_corpus",
    "compare",
    "compare_switches",
    "finetune",
    "grow",
    "grow_folder",
    "judge",
    "load_recipe",
    "measure_attention",
    "open_corpus",
    "plan",
    "pretrain",
    "read_finetune",
    "read_ledger",
    "read_results",
    "report",
    "shipped_recipes",
    "summarise",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 (a function or a class)
    if name not in _HOMES:
        raise AttributeError(f"module 'stackbert' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"stackbert.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
