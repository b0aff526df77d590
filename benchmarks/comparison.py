"""From measurements to tables: speeds relative to StackBERT's, and a line through the depths."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from reporting import Table, milliseconds
from turns import Figures


def comparison(figures: list[Figures]) -> tuple[Table, list[dict[str, Any]]]:
    """The table of contenders, and their speeds relative to StackBERT's."""
    rows, ratios = [], []
    for each in figures:
        shape = each.shape
        of_shape = [other for other in figures if other.shape == shape and other.rounds]
        ours = next((other for other in of_shape if other.contender.kind == "stackbert"), None)
        name = f"{shape.depth} × {shape.hidden}, sequence {shape.sequence}"
        who = f"({each.contender.letter}) {each.contender.title}"
        if not each.rounds:
            rows.append((name, who, each.error or "not measured", "", "", "", "", ""))
            continue
        seconds, last = each.seconds, each.rounds[-1]
        parts = last.get("accumulation", 1)
        who += f", batch in {parts} parts" if parts > 1 else ""
        if each.contender.kind == "stackbert":
            how = "compiled" if last["compiled"] else "not compiled"
            who += f", {last['precision']}, {how}, {last['micro_batch']} rows at once"
        ratio = ""
        if ours is not None and each.contender.kind != "stackbert":
            by_round = _ratios(each, ours)
            value = each.median / ours.median
            ratios.append(
                {
                    "of": each.contender.letter,
                    "to": ours.contender.letter,
                    **asdict(shape),
                    "ratio": value,
                    "range_over_rounds": [min(by_round), max(by_round)] if by_round else None,
                }
            )
            ratio = f"{value:.2f}"
            if len(by_round) > 1:
                ratio += f" ({min(by_round):.2f}–{max(by_round):.2f})"
        rows.append(
            (
                name,
                who,
                f"{milliseconds(each.median)} ({milliseconds(min(seconds))}–"
                f"{milliseconds(max(seconds))})",
                f"{shape.rows * shape.sequence / each.median:,.0f}",
                ratio,
                "" if each.mfu is None else f"{each.mfu:.0%}",
                f"{max(r['peak_memory'] for r in each.rounds) / 1e9:.2f}",
                f"{statistics.median(r['first_step'] for r in each.rounds):.1f}",
            )
        )
    columns = (
        "model",
        "contender",
        "ms a step: median (range)",
        "tokens/s",
        "its time ÷ StackBERT's (range over rounds)",
        "MFU",
        "peak memory, GB",
        "first step, s",
    )
    return Table("Steps", columns, tuple(rows)), ratios


def _ratios(theirs: Figures, ours: Figures) -> list[float]:
    mine = {each["round"]: each["seconds"] for each in ours.rounds}
    return [
        statistics.median(each["seconds"]) / statistics.median(mine[each["round"]])
        for each in theirs.rounds
        if each["round"] in mine
    ]


def straight_line(depths: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Intercept and slope of the line with the least squared deviations."""
    mean_depth, mean_seconds = statistics.fmean(depths), statistics.fmean(seconds)
    spread = sum((depth - mean_depth) ** 2 for depth in depths)
    together = sum(
        (depth - mean_depth) * (second - mean_seconds)
        for depth, second in zip(depths, seconds, strict=True)
    )
    slope = together / spread
    return mean_seconds - slope * mean_depth, slope


def lines(figures: list[Figures]) -> tuple[list[Table], list[dict[str, Any]], list[str]]:
    """A straight line through the depths of every width and sequence: tables, values, sentences."""
    tables, fits, notes = [], [], []
    groups: dict[tuple[str, int, int], list[Figures]] = {}
    for each in figures:
        if each.rounds:
            key = (each.contender.letter, each.shape.hidden, each.shape.sequence)
            groups.setdefault(key, []).append(each)
    for (letter, hidden, sequence), members in groups.items():
        depths, medians = [m.shape.depth for m in members], [m.median for m in members]
        if len(set(depths)) < 3:
            notes.append(f"Width {hidden}, sequence {sequence}: too few depths for a line.")
            continue
        intercept, slope = straight_line(depths, medians)
        off = [
            second / (intercept + slope * depth) - 1.0
            for depth, second in zip(depths, medians, strict=True)
        ]
        largest = max(abs(share) for share in off)
        rows = tuple(
            (
                str(m.shape.depth),
                f"{milliseconds(m.median)} ({milliseconds(min(m.seconds))}–"
                f"{milliseconds(max(m.seconds))})",
                milliseconds(intercept + slope * m.shape.depth),
                f"{share:+.1%}",
                "" if m.mfu is None else f"{m.mfu:.0%}",
            )
            for m, share in zip(members, off, strict=True)
        )
        columns = ("depth", "ms a step: median (range)", "the line, ms", "off the line", "MFU")
        title = f"({letter}) width {hidden}, sequence {sequence}"
        tables.append(Table(title, columns, rows))
        notes.append(
            f"{title}: {milliseconds(slope)} ms a layer, intercept {1000 * intercept:.1f} ms "
            "(embeddings, head, their optimiser, the batch, less what the last layer spares by "
            f"looking at masked positions only), largest deviation from the line {largest:.1%}."
        )
        fits.append(
            {
                "contender": letter,
                "hidden": hidden,
                "sequence": sequence,
                "intercept_ms": 1000 * intercept,
                "ms_a_layer": 1000 * slope,
                "largest_deviation_percent": 100 * largest,
            }
        )
    return tables, fits, notes


def notes(probe: dict[str, Any], figures: list[Figures], *, text: str, backend: str) -> list[str]:
    """What a reader of the table must know.

    Args:
        probe: the machine, from `Processes.probe`.
        figures: all of them.
        text: what the contenders read.
        backend: of torch_compile.
    """
    fp32, bf16 = (probe["rates"][name] / 1e9 for name in ("fp32", "bf16"))
    said = [
        f"Device: {probe['device_name']}, {probe['threads']} threads. A matrix product runs at "
        f"{fp32:,.1f} GFLOP/s in fp32 and {bf16:,.1f} in bf16. Text: {text}.",
        "A step's time is from the end of a step to the end of the next, its batch included.",
    ]
    kinds = {each.contender.kind for each in figures}
    if len(kinds) > 1:
        said.append("StackBERT has no dropout by default; (a) and (b) have BERT's 0.1.")
        said.append(
            "StackBERT's process keeps freed memory (`keep_memory`), as `pretrain` does; its "
            "embedding is padded to a multiple of 64 rows; on a GPU its batches are made ahead on "
            "a thread."
        )
    if any(each.contender.letter.startswith("b") for each in figures) and bf16 <= fp32:
        said.append(
            "(b) runs in fp32: this processor has no bf16 instructions and emulates them, so that "
            "with bf16 it would not finish in sensible time."
        )
    if "stackbert" in kinds:
        said.append(
            "MFU: the arithmetic that StackBERT's step needs (`training_flops`) a second, as a "
            "share of the rate of a large matrix product in the same precision, measured in the "
            "same process."
        )
    said.append(
        "First step: settling and compilation included; torch.compile keeps its kernels on the "
        "disk, so they are made anew in the first round at most."
    )
    if probe["device"] == "cpu":
        said.append("Peak memory: of the whole process, Python's libraries and settling included.")
    if backend != "inductor" and any(each.contender.letter == "b" for each in figures):
        said.append(f"torch_compile with the backend '{backend}', which makes no kernels.")
    failed = sorted({each.error for each in figures if each.error})
    said += [f"What the table lacks: {error}." for error in failed]
    most = max(len(each.rounds) for each in figures)
    said += [
        f"({each.contender.letter}) at {each.shape.depth} × {each.shape.hidden}, sequence "
        f"{each.shape.sequence}: {len(each.rounds)} of {most} rounds."
        for each in figures
        if 0 < len(each.rounds) < most
    ]
    return said
