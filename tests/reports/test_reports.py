"""A report is one file that says what the ledgers say, asks for nothing, runs no user's text."""

import json
import re

import pandas as pd
import pytest

from stackbert.errors import UserError
from stackbert.pretraining.layers import layer_table
from stackbert.pretraining.ledger import read_ledger, stage_table
from stackbert.pretraining.record import read_run
from stackbert.reports.charts import loss_curves
from stackbert.reports.page import Chart, Page, Table, render
from stackbert.reports.report import report, report_pages
from stackbert.reports.runs import stage_bands, validation_points

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&\"'"


def points(**columns) -> pd.DataFrame:
    frame = {"group": "a", "run": "a", "detail": "", "main": True, "loss": [9.0, 5.0, 4.0]}
    axes = {name: [0.0, 10.0, 20.0] for name in ("seconds", "flops", "tokens", "steps")}
    return pd.DataFrame(frame | axes | columns)


def data_of(html: str) -> dict:
    return json.loads(re.search(r'id="figures">(.*?)</script>', html, re.DOTALL).group(1))


def test_no_text_of_a_users_gets_out_of_its_place():
    frame = pd.DataFrame({EVIL: [EVIL], "number": [1.5]})
    chart = Chart(EVIL, loss_curves(points(group=EVIL)), EVIL)
    html = render([Page(EVIL, (EVIL,), (chart, Table(EVIL, frame, EVIL)), {EVIL: EVIL})])
    assert html.count("<script") == 3  # the figures' data, the library, our own
    assert "<img" not in html.split("</style>")[1].split("<script")[0]
    rows = max(data_of(html)["figures"][0]["datasets"].values(), key=len)
    assert rows[0]["group"] == EVIL


def test_a_page_allows_its_own_scripts_alone_and_needs_no_library_without_figures():
    policy = re.search(r'Policy" content="([^"]*)"', render([Page("a", (), (Chart("b", {}),))]))
    assert "default-src &#39;none&#39;" in policy.group(1)
    assert policy.group(1).count("sha256-") == 2
    bare = render([Page("a", ("b",), ())])
    assert "<script" not in bare
    assert len(bare) < 20_000


def test_a_table_shows_numbers_as_asked_and_nothing_for_what_is_missing():
    frame = pd.DataFrame({"who": ["a", "b"], "loss": [1.23456, None], "steps": [1000, 2]})
    tables = (Table("x", frame, formats={"loss": "{:.2f}"}), Table("left out", frame[:0]))
    html = render([Page("t", (), tables)])
    assert "left out" not in html
    cells = re.findall(r"<td[^>]*>(.*?)</td>", html)
    assert cells == ["a", "1.23", "1,000", "b", "", "2"]
    assert html.count('<td class="number">') == 4


def test_a_runs_page_says_what_its_ledger_says(run):
    (page,) = report_pages([run])
    ledger, stages = read_ledger(run), stage_table(run)
    last = ledger[ledger.kind == "evaluation"].iloc[-1]
    said = f"8 layers, validation loss {last.loss:.3f} nats after 28 steps and "
    assert page.verdict[0].startswith(said)
    assert "stackbert compare" in page.verdict[-2]
    assert "word frequencies" in page.verdict[-1]
    tables = {part.title: part.frame for part in page.parts if isinstance(part, Table)}
    assert list(tables["Stages"]["loss"]) == list(stages.loss)
    growths = ledger[ledger.kind == "growth"]
    assert list(tables["Growth"]["jump"]) == list(growths.loss_after - growths.loss_before)
    assert tables["Where the time went"]["share"].sum() == pytest.approx(1.0, abs=0.01)
    (layers,) = [part.spec for part in page.parts if part.title == "Layer by layer"]
    (rows,) = layers["datasets"].values()
    assert len(rows) == 2 * len(layer_table(run))
    assert "stages.0.steps" in set(tables["Recipe, as run"]["field"])
    assert str(run.parent) not in render([page])


def test_a_growth_is_a_vertical_piece_and_stages_are_bands(run):
    ledger = read_ledger(run)
    found = validation_points(ledger)
    assert found.loc[found.steps == 12, "seconds"].nunique() == 1
    assert len(found[found.steps == 12]) == 2
    assert found.flops.notna().all()
    bands = stage_bands(read_run(run).recipe, found)
    assert list(bands.label) == ["2 layers", "4 layers", "8 layers"]
    assert list(bands.end_steps) == [12, 20, 28]


def test_an_unfinished_run_is_shown_as_far_as_it_came(stopped):
    (page,) = report_pages([stopped])
    assert page.verdict[0].startswith("Unfinished after 14 steps and ")
    tables = {part.title: part.frame for part in page.parts if isinstance(part, Table)}
    assert len(tables["Stages"]) == 1


def test_several_runs_are_drawn_together_without_a_verdict(run, stopped):
    (page,) = report_pages([run, stopped])
    assert page.title == "2 pre-training runs"
    assert page.parts[1].frame["finished"].tolist() == [True, False]
    assert "no verdict" in page.verdict[-1]


def test_a_report_replaces_only_a_report(run, tmp_path):
    out = report(run, tmp_path / "deep" / "report.html", tmp_path / "figures")
    assert report(run, out) == out
    names = {"loss.png", "loss.svg", "layer-by-layer.png", "layer-by-layer.svg"}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == names
    ledger = (run / "metrics.jsonl").read_bytes()
    for path in (run / "metrics.jsonl", run):
        with pytest.raises(UserError, match="is not a report"):
            report(run, path)
    assert (run / "metrics.jsonl").read_bytes() == ledger


def test_what_cannot_be_reported_is_said(run, tmp_path):
    with pytest.raises(UserError, match="holds no result to report"):
        report(tmp_path, tmp_path / "a.html")
    with pytest.raises(UserError, match="An empty list"):
        report([], tmp_path / "a.html")


def test_in_a_browser_a_report_draws_switches_answers_and_asks_for_nothing(visit, run, tmp_path):
    path = report(run, tmp_path / "report.html")
    page = visit.open(path)
    assert visit.errors == []
    assert visit.requests == [path.as_uri()]
    labels = page.locator(".chart svg text").all_text_contents()
    assert {"2 layers", "8 layers", "validation loss", "seconds of training"} <= set(labels)
    page.get_by_role("radio", name="tokens").check()
    page.wait_for_function(
        "() => [...document.querySelectorAll('.chart svg text')].some("
        "text => text.textContent === 'tokens')"
    )
    assert page.locator(".chart details .vega-actions a").count() == 2 * 2
    assert visit.errors == []
