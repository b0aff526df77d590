"""A plan as text."""

import io

from rich import box
from rich.console import Console
from rich.table import Table

from stackbert.planning.devices import GIB
from stackbert.planning.result import Plan, StagePlan


def plan_table(plan: Plan) -> str:
    """A table of the stages, stacked and from scratch, and what was assumed."""
    if plan.mfu is not None:
        how = f"at an assumed MFU of {plan.mfu:g}"
    else:
        how = "compiled, measured here" if plan.recipe.compile is True else "measured here"
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"Plan of {plan.recipe.name} on {_machine(plan)}, {plan.precision}, {how}",
        title_justify="left",
        pad_edge=False,
    )
    table.add_column("depth")
    for heading in (
        "parameters",
        "steps",
        "FLOPs",
        "micro-batch",
        "memory",
        "step",
        "training",
        "evaluation",
        "share",
    ):
        table.add_column(heading, justify="right")
    for stage in plan.stages:
        _add(table, str(stage.depth), stage, f"{stage.seconds / plan.seconds:.0%}")
    table.add_section()
    table.add_row(
        "stacked",
        "",
        f"{plan.recipe.total_steps:,}",
        f"{plan.flops:.2e}",
        "",
        _gib(plan.memory),
        "",
        duration(plan.training_seconds),
        duration(plan.seconds - plan.training_seconds),
        "100%",
    )
    _add(table, f"scratch {plan.scratch.depth}", plan.scratch, "")
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(table)
    text = console.file.getvalue() if isinstance(console.file, io.StringIO) else ""
    return "\n".join([*(line.rstrip() for line in text.splitlines()), *_sentences(plan)])


def _machine(plan: Plan) -> str:
    return plan.device.name if plan.devices == 1 else f"{plan.devices:,} × {plan.device.name}"


def _add(table: Table, name: str, stage: StagePlan, share: str) -> None:
    table.add_row(
        name,
        _millions(stage.parameters),
        f"{stage.steps:,}",
        f"{stage.flops:.2e}",
        f"{stage.micro_batch:,}",
        _gib(stage.memory.total),
        _step(stage.step_seconds),
        duration(stage.training_seconds),
        duration(stage.evaluating_seconds),
        share,
    )


def _sentences(plan: Plan) -> list[str]:
    saving = f"saves {plan.saving:.0%}" if plan.saving >= 0 else f"costs {-plan.saving:.0%} more"
    lines = [
        f"Stacked {duration(plan.seconds)}, from scratch at depth {plan.scratch.depth} "
        f"{duration(plan.scratch.seconds)} for as many steps: stacking {saving}."
    ]
    each = " and device" if plan.devices > 1 else ""
    if plan.cost is not None and plan.scratch_cost is not None:
        lines.append(
            f"At {plan.price:,.2f} USD an hour{each}: {plan.cost:,.2f} USD stacked, "
            f"{plan.scratch_cost:,.2f} USD from scratch."
        )
    rate = plan.device.rates[plan.precision]
    if plan.mfu is None:
        reached = ", ".join(f"{stage.flops_per_second / rate:.0%}" for stage in plan.stages)
        lines.append(
            f"Matrix products run at {_rate(rate)} here, in {plan.precision}; steps reach "
            f"{reached} of it."
        )
    else:
        lines.append(
            f"Peak {_rate(rate)} in {plan.precision} as published; the MFU is a target and not a "
            f"measurement (--mfu)."
        )
    lines.append(
        f"Vocabulary {plan.vocabulary_size:,} ({plan.vocabulary_source}). Not counted: start-up, "
        f"tuning, growth, checkpoints."
    )
    return [*lines, *plan.notes]


def duration(seconds: float) -> str:
    """Seconds in the unit a reader would choose: 45 s, 28.4 min, 131.0 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:,.1f} h"


def _step(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 10 else f"{seconds:,.0f} s"


def _gib(count: int) -> str:
    return f"{count / GIB:.2f} GiB"


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f} M"


def _rate(rate: float) -> str:
    return f"{rate / 1e12:,.0f} TFLOP/s" if rate >= 1e13 else f"{rate / 1e9:,.0f} GFLOP/s"
