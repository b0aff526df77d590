"""The page on attention: figures of the maps that were measured, and what the result says."""

import json

import numpy as np

from stackbert.attention.statements import statements
from stackbert.reports.attention import attention_page
from stackbert.reports.heatmaps import explorer, growth_maps
from stackbert.reports.page import Chart, Table


def rows_of(spec):
    """The rows of a figure's data that hold maps."""
    (rows,) = [rows for rows in spec["datasets"].values() if "weights" in rows[0]]
    return rows


def test_a_figure_has_the_weights_that_were_measured(found):
    rows = rows_of(explorer(found))
    assert len(rows) == len(found.examples) * 4 * 2
    (row,) = [row for row in rows if (row["sentence"], row["layer"], row["head"]) == (1, 3, 2)]
    assert row["tokens"] == list(found.examples[1])
    weights = found.arrays["maps_1"][2, 1].astype(np.float32)
    assert np.allclose(np.array(row["weights"]) / 1000, weights.ravel(), atol=6e-4)


def test_growths_are_drawn_moment_by_moment(found):
    rows = rows_of(growth_maps(found, [1, 3, 5]))
    moments = list(dict.fromkeys(row["row"] for row in rows))
    names = ("shallow", "right after growing", "end of next stage")
    assert moments[:3] == [f"stack: {name}" for name in names]
    assert len(moments) == 3 * 3
    for row in rows:
        run, source = row["row"].split(":")[0], int(row["column"].split()[3].rstrip(","))
        # Where the highest copy of a layer is; a fresh layer stands for stacking's copy.
        layer = {"stack": source + 2, "identity-noise": source + 2, "interleave": 2 * source}[run]
        assert row["layer"] == (source if row["row"].endswith("shallow") else layer)


def test_the_page_says_what_was_found_and_draws_it(found, tmp_path):
    found.save(tmp_path)
    page = attention_page(tmp_path)
    assert page.verdict[1:] == tuple(statements(found))
    charts = [part for part in page.parts if isinstance(part, Chart)]
    assert len(charts) == 5
    json.dumps([chart.spec for chart in charts])
    tables = {part.title: part.frame for part in page.parts if isinstance(part, Table)}
    assert len(tables["Across growth"]) == 18
    assert tables["Across growth"]["moment"][1] == "right after growing"
