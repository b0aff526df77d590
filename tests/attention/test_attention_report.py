"""The page on attention: heads chosen by a rule, figures of the maps that were measured."""

import json

import numpy as np
import pandas as pd

from stackbert.attention.statements import growth_groups, statements
from stackbert.reports.attention import attention_page
from stackbert.reports.heatmaps import default_heads, explorer, growth_maps, head_maps
from stackbert.reports.page import Chart, Table


def rows_of(spec, marker="weights"):
    """The rows of a figure's data that hold maps."""
    (rows,) = [rows for rows in spec["datasets"].values() if marker in rows[0]]
    return rows


def test_heads_are_chosen_from_low_middle_and_high_layers():
    layer, head = np.indices((6, 2)).reshape(2, -1) + 1
    near, first = np.zeros(12), np.zeros(12)
    near[[3, 4, 11]] = 0.9  # (2, 2), (3, 1), (6, 2)
    first[[0, 7, 8]] = 0.9  # (1, 1), (4, 2), (5, 1)
    heads = pd.DataFrame({"layer": layer, "head": head, "near_4": near, "first": first})
    chosen = default_heads(heads)
    assert chosen == [(2, 2), (3, 1), (6, 2), (1, 1), (4, 2), (5, 1)]
    assert len(default_heads(heads[heads["layer"] == 1])) == 2


def test_a_figure_has_the_weights_that_were_measured(found):
    (row,) = rows_of(head_maps(found, [(3, 2)]))
    number = found.shortest
    assert row["tokens"] == list(found.examples[number])
    weights = found.arrays[f"maps_{number}"][2, 1].astype(np.float32)
    assert np.allclose(np.array(row["weights"]) / 1000, weights.ravel(), atol=6e-4)
    assert len(rows_of(explorer(found, (1, 1)))) == 3 * 4 * 2


def test_growths_are_drawn_moment_by_moment(found):
    first, second = (rows_of(growth_maps(found, group)) for group in growth_groups(found))
    moments = list(dict.fromkeys(row["moment"] for row in first))
    names = ("shallow", "right after growing", "end of next stage")
    assert moments[:3] == [f"stack: {name}" for name in names]
    assert len(moments) == 3 * 3
    for row in second:
        run, source = row["moment"].split(":")[0], int(row["panel"].split()[3].rstrip(","))
        # Where the highest copy of a layer is; a fresh layer stands for stacking's copy.
        layer = {"stack": source + 2, "identity-noise": source + 2, "interleave": 2 * source}[run]
        shown = source if row["moment"].endswith("shallow") else layer
        assert row["drawn"].startswith(f"layer {shown},")


def test_the_page_says_what_was_found_and_draws_it(found, tmp_path):
    found.save(tmp_path)
    page = attention_page(tmp_path)
    assert page.parts[0].sentences == tuple(statements(found))
    charts = [part for part in page.parts if isinstance(part, Chart)]
    assert len(charts) == 6
    json.dumps([chart.spec for chart in charts])
    tables = {part.title: part.frame for part in page.parts if isinstance(part, Table)}
    classes = tables["What the heads are"]
    assert classes["heads"][:6].sum() == 8
    assert classes["share"][:6].sum() == 1
    growths = tables["Across growth"]
    assert growths["growth"].unique().tolist() == [
        f"{change}, {run}"
        for change in ("1 → 2", "2 → 4")
        for run in ("stack", "identity-noise", "interleave")
    ]
    assert growths["from the source"].isna().sum() == 6  # of the shallow models
