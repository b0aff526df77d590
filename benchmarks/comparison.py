"""From measurements to tables: speeds relative to StackBERT's, and a line through the depths."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from reporting import Table, milliseconds
from turns import Figures

STEP = "ms a step: median (range)"


def comparison(figures: list[Figures]) -> tuple[Table, list[dict[str, Any]]]:
    """The table of contenders, and their speeds relative to StackBERT's."""
    rows, ratios = [], []
    ours = {each.shape: each for each in figures if each.contender.kind == "stackbert"}
    for each in figures:
        shape, contender = each.shape, each.contender
        name = f"{shape.depth} × {shape.hidden}, sequence {shape.sequence}"
        who = f"({contender.letter}) {contender.title}"
        if not each.rounds:
            rows.append((name, who, each.error or "not measured", "", "", "", "", ""))
            continue
        last, ratio, own = each.rounds[-1], "", ours.get(shape)
        if contender.kind == "stackbert":
            how = "compiled" if last["compiled"] else "not compiled"
            who += f", {last['precision']}, {how}, {last['micro_batch']} rows at once"
        elif own is not None and own.rounds:
            medians = {r["round"]: statistics.median(r["seconds"]) for r in own.rounds}
            found = [
                statistics.median(r["seconds"]) / medians[r["round"]]
                for r in each.rounds
                if r["round"] in medians
            ]
            value = each.median / own.median
            to = {"of": contender.letter, "to": own.contender.letter, **asdict(shape)}
            spread = [min(found), max(found)] if found else None
            ratios.append({**to, "ratio": value, "range_over_rounds": spread})
            ratio = f"{value:.2f}"
            ratio += f" ({min(found):.2f}–{max(found):.2f})" if len(found) > 1 else ""
        if (parts := last.get("accumulation", 1)) > 1:
            who += f", batch in {parts} parts"
        tokens = f"{shape.rows * shape.sequence / each.median:,.0f}"
        mfu = "" if each.mfu is None else f"{each.mfu:.0%}"
        memory = f"{max(r['peak_memory'] for r in each.rounds) / 1e9:.2f}"
        first = f"{statistics.median(r['first_step'] for r in each.rounds):.1f}"
        rows.append((name, who, _range(each), tokens, ratio, mfu, memory, first))
    ratio = "its time ÷ StackBERT's (range over rounds)"
    columns = ("model", "contender", STEP, "tokens/s", ratio, "MFU", "peak memory, GB")
    return Table("Steps", (*columns, "first step, s"), tuple(rows)), ratios


def _range(each: Figures) -> str:
    low, high = milliseconds(min(each.seconds)), milliseconds(max(each.seconds))
    return f"{milliseconds(each.median)} ({low}–{high})"


def straight_line(depths: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Intercept and slope of the line with the least squared deviations."""
    slope, intercept = np.polyfit(depths, seconds, 1)
    return float(intercept), float(slope)


def lines(figures: list[Figures]) -> tuple[list[Table], list[dict[str, Any]], list[str]]:
    """A straight line through the depths of every width and sequence: tables, values, sentences."""
    tables, fits, notes = [], [], []
    groups: dict[tuple[str, int, int], list[Figures]] = {}
    for each in figures:
        if each.rounds:
            key = (each.contender.letter, each.shape.hidden, each.shape.sequence)
            groups.setdefault(key, []).append(each)
    for (letter, hidden, sequence), members in groups.items():
        title = f"({letter}) width {hidden}, sequence {sequence}"
        depths = [each.shape.depth for each in members]
        if len(set(depths)) < 3:
            notes.append(f"{title}: too few depths for a line.")
            continue
        intercept, slope = straight_line(depths, [each.median for each in members])
        rows, off = [], []
        for each in members:
            fitted = intercept + slope * each.shape.depth
            off.append(each.median / fitted - 1.0)
            mfu = "" if each.mfu is None else f"{each.mfu:.0%}"
            cells = (_range(each), milliseconds(fitted), f"{off[-1]:+.1%}", mfu)
            rows.append((str(each.shape.depth), *cells))
        columns = ("depth", STEP, "the line, ms", "off the line", "MFU")
        tables.append(Table(title, columns, tuple(rows)))
        largest = max(map(abs, off))
        notes.append(
            f"{title}: {milliseconds(slope)} ms a layer, intercept {1000 * intercept:.1f} ms "
            "(embeddings, head, their optimiser, the batch, less what the last layer saves by "
            f"looking at masked positions only), largest deviation from the line {largest:.1%}."
        )
        fits.append(
            {
                **{"contender": letter, "hidden": hidden, "sequence": sequence},
                **{"intercept_ms": 1000 * intercept, "ms_a_layer": 1000 * slope},
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
    letters = {each.contender.letter for each in figures}
    ours = any(each.contender.kind == "stackbert" for each in figures)
    most = max(len(each.rounds) for each in figures)
    lacking = sorted({each.error for each in figures if each.error})
    said = {
        f"Device: {probe['device_name']}, {probe['threads']} threads. A matrix product runs at "
        f"{fp32:,.1f} GFLOP/s in fp32 and {bf16:,.1f} in bf16. Text: {text}.": True,
        "A step is timed from its end to the end of the next, its batch included. The first step "
        "includes autotuning and compilation.": True,
        "StackBERT has no dropout by default; (a) and (b) have BERT's 0.1. StackBERT keeps freed "
        "memory (`keep_memory`), as `pretrain` does, and its embedding is padded to a multiple of "
        "64 rows; on a GPU a thread makes its batches ahead.": ours and len(letters) > 1,
        "(b) runs in fp32, because this processor only emulates bf16.": any(
            letter.startswith("b") for letter in letters
        )
        and bf16 <= fp32,
        "MFU: the FLOPs of StackBERT's step (`training_flops`) a second, as a share of the rate "
        "of a large matrix product in the same precision, measured in the same process.": ours,
        "Peak memory is of the whole process, libraries included.": probe["device"] == "cpu",
        f"torch_compile with the backend '{backend}', which makes no kernels.": "b" in letters
        and backend != "inductor",
    }
    said |= {f"Not in the table: {error}.": True for error in lacking}
    for each in figures:
        shape, rounds = each.shape, f"{len(each.rounds)} of {most} rounds"
        place = f"{shape.depth} × {shape.hidden}, sequence {shape.sequence}"
        said[f"({each.contender.letter}) at {place}: {rounds}."] = 0 < len(each.rounds) < most
    return [sentence for sentence, holds in said.items() if holds]
