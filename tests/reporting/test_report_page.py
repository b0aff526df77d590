"""The report says what the ledger says, in a file that nothing can break out of."""

import base64
import hashlib
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from stackbert.reporting.charts import loss_curves, loss_range
from stackbert.reporting.content import AXES, Curve, Curves, Figure, Page, Point, Table, Text
from stackbert.reporting.figures import save_figures
from stackbert.reporting.page import render
from stackbert.reporting.runs import run_page
from stackbert.reporting.wording import duration, si, slug

import stackbert as sb
from stackbert.__main__ import main

HOSTILE = "</script></style></title><script>alert(1)</script><img src=x onerror=alert(2)>&'\"<!--"


class Elements(HTMLParser):
    """What a browser would find: elements with their attributes, and the text of each kind."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self._open.append(tag)
        self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if self._open:
            self.texts[self._open[-1]][-1] += data

    def count(self, tag):
        return sum(name == tag for name, _ in self.found)

    def meta(self, header):
        return next(a["content"] for _, a in self.found if a.get("http-equiv") == header)


def curve(losses, *, group="a", detail="", main=True, steps=100.0):
    points = [
        Point(n * 60.0, n * 1e12, n * 1e6, n * steps, value) for n, value in enumerate(losses)
    ]
    return Curve(group, detail, tuple(points), main)


def page_of(*parts, **fields):
    return Page(**{"title": "A title", "verdict": ("A verdict.",), "parts": parts, **fields})


def test_no_text_can_break_out_of_its_place():
    page = Page(
        HOSTILE,
        (HOSTILE, HOSTILE),
        (
            Curves(HOSTILE, (curve([9.0, 6.0, 5.0], group=HOSTILE, detail=HOSTILE),), note=HOSTILE),
            Figure(HOSTILE, {"mark": "point", "data": {"values": [{"x": HOSTILE}]}}, HOSTILE),
            Table(HOSTILE, (HOSTILE,), ((HOSTILE,),), HOSTILE),
            Table(HOSTILE, (HOSTILE,), ((HOSTILE,),), HOSTILE, folded=True),
            Text(HOSTILE, (HOSTILE,)),
        ),
        {HOSTILE: HOSTILE},
    )
    html = render(page)
    elements = Elements(html)
    assert elements.count("script") == 3, "the figures' data, the library, the page's own"
    assert elements.count("style") == elements.count("title") == 1
    assert elements.count("img") == 0
    assert elements.texts["title"] == [HOSTILE]
    assert elements.texts["td"] == [HOSTILE] * 2
    assert elements.texts["dd"] == [HOSTILE]
    assert elements.texts["h2"] == [HOSTILE] * 4
    assert elements.texts["p"].count(HOSTILE) == 2 + 2 + 1
    assert not any(name.startswith("on") for _, given in elements.found for name in given)
    data = json.loads(elements.texts["script"][0])
    assert data["figures"][0]["datasets"]["points"][0]["group"] == HOSTILE
    assert data["figures"][1]["specs"][""]["data"]["values"] == [{"x": HOSTILE}]


def test_the_page_names_nothing_outside_itself(run, tmp_path):
    html = sb.report(run, tmp_path / "report.html").read_text(encoding="utf-8")
    elements = Elements(html)
    for tag, given in elements.found:
        for name in ("src", "href", "action", "data", "srcset", "poster", "style"):
            assert given.get(name) in (None, "data:,"), f"{tag} {name}={given.get(name)}"
    css = "".join(elements.texts["style"])
    assert "url(" not in css
    assert "@import" not in css


def test_the_policy_lets_only_the_scripts_in_the_page_run(run, tmp_path):
    html = sb.report(run, tmp_path / "report.html").read_text(encoding="utf-8")
    elements = Elements(html)
    rules = dict(
        rule.split(" ", 1) for rule in elements.meta("Content-Security-Policy").split("; ")
    )
    assert rules["default-src"] == "'none'"
    scripts = elements.texts["script"][1:]
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert rules["script-src"] == " ".join(f"'sha256-{h}'" for h in hashes)
    assert len(scripts) == 2


def test_a_page_without_figures_carries_no_library():
    html = render(page_of(Table("T", ("a",), (("1",),))))
    assert len(html) < 20_000
    assert Elements(html).count("script") == 0


def test_columns_of_numbers_stand_on_the_right():
    rows = (("stack", "1,200", "−0.120", "4.7 ± 0.1", ""), ("scratch", "9", "+0.1", "–", "7 s"))
    elements = Elements(render(page_of(Table("T", tuple("abcde"), rows))))
    cells = [given.get("class") for tag, given in elements.found if tag == "td"]
    assert cells == [None, "number", "number", "number", "number"] * 2


def test_the_verdict_of_a_run_is_its_ledgers(run):
    summary = sb.summarise(run)
    page = run_page([run])
    assert page.verdict[0] == (
        f"8 layers, validation loss {summary.loss:.3f} nats after 48 steps and "
        f"{duration(summary.seconds)} of training."
    )
    assert f"would have taken {duration(summary.scratch_seconds)} at this run's" in page.verdict[1]
    assert "stackbert compare" in page.verdict[1], "equal quality takes a comparison"


def test_the_tables_of_a_run_are_its_ledgers(run):
    tables = {part.title: part for part in run_page([run]).parts if isinstance(part, Table)}
    summary = sb.summarise(run)
    stages = tables["Stages"].rows
    assert [row[0] for row in stages] == ["2", "4", "8"]
    assert [row[1] for row in stages] == ["24", "12", "12"]
    assert [row[-1] for row in stages] == [f"{stage.loss:.3f}" for stage in summary.stages]

    ledger = sb.read_ledger(run)
    grown = [row for row in ledger if row["kind"] == "growth"]
    rows = tables["Growth"].rows
    assert [row[0] for row in rows] == ["2 → 4", "4 → 8"]
    for row, growth in zip(rows, grown, strict=True):
        jump = growth["loss_after"] - growth["loss_before"]
        assert row[6] == f"{jump:+.3f}".replace("-", "−")
        later = [
            e["step"] - growth["step"]
            for e in ledger
            if e["kind"] == "evaluation"
            and e["step"] > growth["step"]
            and e["loss"] < growth["loss_before"]
        ]
        expected = f"{later[0]} steps" if later else "never"
        assert row[7].startswith("no rise" if jump <= 0 else expected)

    shares = [float(row[2].removesuffix(" %")) for row in tables["Where the time went"].rows[:-1]]
    assert sum(shares) == pytest.approx(100, abs=1)
    recipe = next(table for title, table in tables.items() if title.startswith("Recipe"))
    assert recipe.folded
    assert ("growth.operator", "random") in recipe.rows
    assert ("stages.2.depth", "8") in recipe.rows


def test_the_curves_of_a_run_hold_every_evaluation_and_both_sides_of_each_growth(run):
    curves = run_page([run]).parts[0]
    ledger = sb.read_ledger(run)
    losses = [
        row["loss"] if row["kind"] == "evaluation" else row["loss_after"]
        for row in ledger
        if row["kind"] in ("evaluation", "growth")
    ]
    validation, training = curves.curves
    assert [point.loss for point in validation.points] == losses
    assert validation.main
    assert not training.main
    assert len(training.points) == 24
    assert [(band.label, band.start.steps, band.end.steps) for band in curves.bands] == [
        ("2 layers", 0, 24),
        ("4 layers", 24, 36),
        ("8 layers", 36, 48),
    ]


def test_a_run_that_was_stopped_is_reported_as_far_as_it_came(run, stopped_run, tmp_path):
    ledger = sb.read_ledger(run)
    second = next(i for i, row in enumerate(ledger) if row["kind"] == "growth") + 3
    for lines, stages in ((0, 0), (1, 0), (4, 0), (second, 1)):
        folder = stopped_run(lines)
        page = run_page([folder])
        assert page.verdict[0].startswith("Unfinished"), lines
        assert not any("would have taken" in sentence for sentence in page.verdict)
        found = [part for part in page.parts if part.title == "Stages"]
        assert [len(table.rows) for table in found] == ([stages] if stages else [])
        sb.report(folder, tmp_path / f"{lines}.html")
    reached = max(row["step"] for row in ledger[:second] if "tokens" in row)
    assert f"{reached} of 48 steps" in page.verdict[0]
    assert "4 layers" in page.verdict[0]
    assert page.parts[0].bands[-1].end.steps == reached


def test_several_runs_are_named_and_not_judged(run, other_run):
    page = run_page([run, other_run])
    best = min((sb.summarise(folder).loss, folder.name) for folder in (run, other_run))
    assert f"{best[0]:.3f} nats ({best[1]})" in page.verdict[0]
    assert "no verdict" in page.verdict[-1]
    assert [c.group for c in page.parts[0].curves] == ["stacked", "shallow"]
    tables = {part.title: part for part in page.parts if isinstance(part, Table)}
    assert [row[0] for row in tables["Stages"].rows] == ["stacked"] * 3 + ["shallow"]
    assert ("seed", "0", "1") in tables["Where the recipes differ"].rows


def test_losses_on_different_validation_rows_are_not_ranked(run, train):
    page = run_page([run, train("others", "evaluation.mask_rate=0.3", "stages.2.steps=2")])
    assert "do not compare" in page.verdict[0]
    assert "lowest" not in " ".join(page.verdict)


def test_the_first_losses_do_not_squeeze_the_rest():
    curves = Curves("Loss", (curve([9.0, *(6.0 - 0.05 * n for n in range(39))]),))
    low, high = loss_range(curves)
    assert low < 4.1 < 6.0 < high < 7.0, "the frame begins at 5 % of the run"
    assert "Losses above" in render(page_of(curves))
    short = Curves("Loss", (curve([5.0, 4.9]),))
    assert loss_range(short)[1] > 4.9
    assert "Losses above" not in render(page_of(Curves("Loss", (curve([5.0]),))))


def test_a_loss_that_is_not_finite_is_left_out():
    spec = loss_curves(Curves("Loss", (curve([6.0, float("nan"), 5.0]),)), "steps")
    assert [row["loss"] for row in spec["datasets"]["points"]] == [6.0, 5.0]


def test_the_axes_share_their_data():
    curves = Curves("Loss", (curve([9.0, 6.0, 5.0]), curve([8.0, 5.0], group="b", main=False)))
    specs = [loss_curves(curves, axis) for axis in AXES]
    assert all(spec["datasets"] == specs[0]["datasets"] for spec in specs)
    titles = [spec["layer"][0]["encoding"]["x"]["title"] for spec in specs]
    assert titles == ["seconds of training", "FLOPs", "tokens", "steps"]


def test_long_runs_are_shown_in_longer_units():
    curves = Curves("Loss", (curve([9.0 - 0.01 * n for n in range(400)]),))
    spec = loss_curves(curves, "seconds")
    assert spec["layer"][0]["encoding"]["x"]["title"] == "hours of training"
    assert spec["datasets"]["points"][-1]["seconds"] == pytest.approx(399 / 60, rel=1e-4)
    start, end = spec["layer"][0]["encoding"]["x"]["scale"]["domain"]
    assert start == 0
    assert 399 / 60 <= end < 7


def test_numbers_are_worded_as_one_says_them():
    assert [duration(s) for s in (0.421, 41.23, 122, 725, 7199.9, 12_000)] == [
        "0.42 s",
        "41.2 s",
        "2 min 02 s",
        "12 min 05 s",
        "2 h 00 min",
        "3 h 20 min",
    ]
    assert [si(v) for v in (12, 999.6, 5_130_240, 4.0330e13)] == ["12", "1 k", "5.13 M", "40.3 T"]
    assert slug("Loss: by time (8 läyers)") == "loss-by-time-8-layers"
    assert slug("→") == "figure"


def test_figures_are_saved_as_svg_and_png(run, tmp_path):
    point = {"mark": "point", "data": {"values": [{"x": 1}]}, "encoding": {"x": {"field": "x"}}}
    page = page_of(
        *(part for part in run_page([run]).parts if isinstance(part, Curves)),
        Figure("Of one name", point),
        Figure("Of one name", point, "with <a note>"),
        Figure("To choose in", point, still=False),
    )
    saved = save_figures(page, tmp_path / "figures")
    names = ["loss-time", "loss-steps", "of-one-name", "of-one-name-2"]
    expected = [f"{name}.{kind}" for name in names for kind in ("svg", "png")]
    assert [path.name for path in saved] == expected
    for path in saved:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG\r\n")
            continue
        root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
        text = " ".join(root.itertext())
        assert ("Loss" if "loss" in path.name else "Of one name") in text
        assert float(root.get("width")) > 700
    assert "<a note>" in text


@pytest.fixture
def stackbert(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["stackbert", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        return code, "".join(capsys.readouterr())

    return run


def test_the_command_writes_page_and_figures(stackbert, run, tmp_path):
    out = tmp_path / "new" / "report.html"
    code, output = stackbert("report", run, "--out", out, "--figures", tmp_path / "figures")
    assert code == 0
    assert str(out) in output
    assert "Pre-training run stacked" in out.read_text(encoding="utf-8")
    assert (tmp_path / "figures" / "loss-time.svg").is_file()


def test_what_cannot_be_reported_is_a_sentence(stackbert, run, tmp_path):
    comparison, empty = tmp_path / "comparison", tmp_path / "empty"
    comparison.mkdir()
    (comparison / "comparison.json").write_text("{}")
    empty.mkdir()
    out = tmp_path / "report.html"
    for folders, expected in (
        ([tmp_path / "nowhere"], r"no folder \S*nowhere"),
        ([empty], "neither a run directory .* nor a comparison .* nor one of attention"),
        ([run, comparison], "a comparison is reported alone"),
        ([run, empty], "empty is neither"),
    ):
        code, output = stackbert("report", *folders, "--out", out)
        assert code == 2, output
        assert re.search(expected, " ".join(output.split())), output
        assert "Traceback" not in output
    code, output = stackbert("report", run, "--out", empty)
    assert code == 2
    assert "is a folder" in output
    assert not out.exists()
    assert Path(run / "metrics.jsonl").is_file()
