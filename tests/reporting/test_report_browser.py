"""The report in a real browser: it draws, switches, answers the pointer, and asks for nothing."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page
from stackbert.reporting.content import Curve, Curves, Figure, Point
from stackbert.reporting.content import Page as Report
from stackbert.reporting.page import render

import stackbert as sb
from browser_helpers import Visit


def x_titles(page: Page) -> list[str]:
    """The titles of the x axes, as a screen reader would read them."""
    labels = page.locator("[aria-label^='X-axis titled']").evaluate_all(
        "found => found.map(axis => axis.getAttribute('aria-label'))"
    )
    return [re.match("X-axis titled '([^']*)'", label).group(1) for label in labels]


@pytest.fixture(scope="module")
def report(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sb.report(run, tmp_path_factory.mktemp("report") / "report.html")


def test_the_report_draws_itself_and_asks_for_nothing(visit, report):
    page = visit.open(report)
    assert page.locator(".chart svg").count() == page.locator("figure").count() == 1
    assert visit.errors == []
    assert visit.requests == [report.as_uri()]
    first = page.locator(".verdict")
    assert first.inner_text().startswith("8 layers, validation loss")
    labels = page.locator(".chart svg text").all_text_contents()
    assert {"2 layers", "4 layers", "8 layers", "validation loss"} <= set(labels)


def test_the_switch_changes_the_axis(visit, report):
    page = visit.open(report)
    assert x_titles(page) == ["seconds of training"]
    for name, title in (("FLOPs", "FLOPs"), ("tokens", "tokens"), ("steps", "steps")):
        page.get_by_label(name, exact=True).check()
        page.wait_for_selector(f"[aria-label^=\"X-axis titled '{title}'\"]")
        assert x_titles(page) == [title]
        assert page.locator("input:checked").count() == 1
        assert page.locator(".chart svg").count() == 1
    assert visit.errors == []


def test_the_switch_answers_to_the_keyboard(visit, report):
    page = visit.open(report)
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("[aria-label^=\"X-axis titled 'FLOPs'\"]")
    assert page.locator("input:checked").get_attribute("value") == "flops"


def test_the_pointer_shows_the_values_of_the_point_it_is_near(visit, report, run):
    page = visit.open(report)
    rows = sb.read_ledger(run)
    losses = [r["loss"] for r in rows if r["kind"] in ("evaluation", "step")]
    losses += [r["loss_after"] for r in rows if r["kind"] == "growth"]
    box = page.locator(".chart svg").bounding_box()
    seen = set()
    for share in (0.3, 0.5, 0.7, 0.9):
        page.mouse.move(box["x"] + box["width"] * share, box["y"] + box["height"] * 0.7)
        page.wait_for_selector("#vg-tooltip-element.visible")
        cells = page.locator("#vg-tooltip-element td").all_inner_texts()
        shown = {
            name.rstrip(":"): value for name, value in zip(cells[::2], cells[1::2], strict=True)
        }
        assert list(shown) == ["run", "loss", "steps", "time", "FLOPs", "tokens"]
        seen.add(shown["loss"])
    assert len(seen) > 1, "it follows the pointer"
    assert seen <= {f"{loss:.3f}" for loss in losses}
    assert visit.errors == []


def test_nothing_is_wider_than_a_phone(browser, report):
    context = browser.new_context(viewport={"width": 360, "height": 740}, is_mobile=True)
    visit = Visit(context.new_page())
    page = visit.open(report)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    width = page.locator(".chart svg").bounding_box()["width"]
    assert 300 < width <= 330
    table = page.locator(".scroll").first
    assert table.evaluate("t => t.scrollWidth > t.clientWidth"), "the wide table scrolls by itself"
    context.close()


def test_a_dark_system_gets_a_dark_report(browser, report):
    grounds = {}
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme)
        visit = Visit(context.new_page())
        page = visit.open(report)
        body = page.evaluate("getComputedStyle(document.body).backgroundColor")
        chart = page.evaluate(
            "getComputedStyle(document.querySelector('.chart svg .background, .chart svg')).fill"
        )
        grounds[scheme] = (body, page.locator(".chart svg").get_attribute("style"), chart)
        assert visit.errors == []
        context.close()
    assert grounds["light"][0] == "rgb(255, 255, 255)"
    assert grounds["dark"][0] == "rgb(21, 24, 28)"
    assert grounds["light"][1:] != grounds["dark"][1:]


def test_a_figure_can_be_saved_from_the_page(visit, report):
    page = visit.open(report)
    for kind, begins in (("SVG", b"<svg"), ("PNG", b"\x89PNG")):
        with page.expect_download() as download:
            page.get_by_role("button", name=kind).click()
        assert download.value.suggested_filename == f"loss-seconds.{kind.lower()}"
        assert download.value.path().read_bytes().startswith(begins)
    assert visit.errors == []


def test_hostile_names_are_shown_and_not_run(visit, tmp_path):
    hostile = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"
    points = tuple(Point(n, n * 1e12, n * 1e6, n, 6.0 - n) for n in range(4))
    spec = {
        "mark": "point",
        "width": "container",
        "data": {"values": [{"x": 1, "name": hostile}]},
        "encoding": {
            "x": {"field": "x", "type": "quantitative", "title": hostile},
            "tooltip": {"field": "name", "type": "nominal"},
        },
    }
    curves = Curves(hostile, (Curve(hostile, hostile, points), Curve("b", "", points[1:])))
    path = tmp_path / "report.html"
    page = Report(hostile, (hostile,), (curves, Figure(hostile, spec)))
    path.write_text(render(page), encoding="utf-8")
    opened = visit.open(path)
    assert opened.locator(".chart svg").count() == 2
    box = opened.locator(".chart svg").first.bounding_box()
    opened.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.6)
    tooltip = opened.wait_for_selector("#vg-tooltip-element.visible")
    assert hostile in tooltip.inner_text() or "\nb" in "\n" + tooltip.inner_text()
    assert opened.locator(".verdict").inner_text() == hostile
    assert opened.locator("img").count() == 0
    assert visit.dialogs == []
    assert visit.errors == []
    assert visit.requests == [path.as_uri()]


def test_the_policy_stops_what_does_not_belong_to_the_page(visit, report, tmp_path):
    foreign = "<script>window.foreign = 1</script><img src='data:,' onerror='window.foreign = 2'>"
    path = tmp_path / "report.html"
    html, end, rest = report.read_text(encoding="utf-8").rpartition("</body>")
    path.write_text(html + foreign + end + rest, encoding="utf-8")
    page = visit.open(path)
    assert page.evaluate("window.foreign") is None
    assert any("Content Security Policy" in error for error in visit.errors)


def test_a_figure_that_cannot_be_drawn_says_so(visit, tmp_path):
    path = tmp_path / "report.html"
    page = Report("A", ("B",), (Figure("C", {"mark": "no such mark"}),))
    path.write_text(render(page), encoding="utf-8")
    visit.page.goto(path.as_uri())
    visit.page.wait_for_function(
        "() => document.querySelector('.chart').textContent.includes('could not be drawn')"
    )
