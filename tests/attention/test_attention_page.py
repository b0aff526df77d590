"""The page on attention: everything that was found, and a figure that answers to clicks."""

import copy
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, sync_playwright

import stackbert as sb
from stackbert.__main__ import main
from stackbert.attention.examples import Examples, collect_examples
from stackbert.attention.maps import attention_maps
from stackbert.attention.measure import measure_attention
from stackbert.attention.page import EXPLORER, attention_page, write_attention_page
from stackbert.attention.result import read_result
from stackbert.attention.statements import statements
from stackbert.recipe_files import parse_recipe
from stackbert.reporting.content import Figure, Table
from stackbert.reporting.page import render

HOSTILE = "</script><img src=x onerror=alert(1)>"
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
RECIPE = {
    "name": "tiny",
    "model": {
        "type": "megatron-bert",
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "initializer_range": 0.2,
    },
    "stages": [{"depth": 2, "steps": 3}, {"depth": 4, "steps": 3}],
    "batch": {"sequences": 4, "sequence_length": 32, "micro_batch": 4},
    "optimizer": {"lr": 5e-3},
    "precision": "fp32",
    "compile": False,
    "evaluation": {"sequences": 4},
}


class Elements(HTMLParser):
    """What a browser would find: the elements' names, and the text of each."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)

    def handle_data(self, data):
        self.texts.append((self.names[-1] if self.names else "", data.strip()))


@pytest.fixture
def result(make_model, tokenizer, sentences):
    return measure_attention(make_model(depth=3), text=sentences, tokenizer=tokenizer)


@pytest.fixture
def examples(make_model, tokenizer, sentences) -> Examples:
    maps = attention_maps(make_model(depth=3), tokenizer, sentences[:4], max_length=24)
    return Examples(tuple(sorted(maps, key=lambda each: each.index)))


def with_token(examples: Examples, token: str) -> Examples:
    """The same with another third token in every sentence."""
    return Examples(
        tuple(
            replace(each, tokens=(*each.tokens[:2], token, *each.tokens[3:]))
            for each in examples.sentences
        )
    )


def test_the_page_has_every_statement_and_measure(result, examples):
    page = attention_page(result, examples)
    assert page.verdict[1:] == statements(result)
    html = Elements(render(page))
    said = [text for _, text in html.texts]
    for sentence in statements(result):
        assert sentence in said
    tables = {part.title: part for part in page.parts if isinstance(part, Table)}
    layers = {row[0]: row for row in tables["Layer by layer"].rows}
    assert list(layers) == ["3", "2", "1", "all", "uniform", "untrained"]
    assert layers["2"][1] == f"{result.measures.within[2, 1].mean():.3f}"
    assert layers["untrained"][5] == f"{result.untrained.measures.first.mean():.3f}"
    classes = [int(row[1]) for row in tables["What the heads are"].rows[:6]]
    assert sum(classes) == result.measures.classes.size
    (row,) = tables["How alike layers are"].rows
    contrast = result.contrast
    assert row[1:4] == tuple(
        f"{value:.3f}" for value in (contrast.matched, contrast.dealt, contrast.untrained)
    )
    assert "Across growth" not in tables
    assert all(len(row) == len(table.columns) for table in tables.values() for row in table.rows)


def test_a_second_model_has_its_figure_and_its_row(make_model, tokenizer, sentences, examples):
    result = measure_attention(
        make_model(depth=3), text=sentences, tokenizer=tokenizer, compare=make_model(depth=2)
    )
    page = attention_page(result, examples)
    tables = {part.title: part for part in page.parts if isinstance(part, Table)}
    assert tables["How alike layers are"].rows[1][1] == f"{result.other.contrast.matched:.3f}"
    (figure,) = (part for part in page.parts if part.title.startswith("How alike layers are: "))
    assert len(figure.spec["datasets"]["layers"]) == 3 * 2
    assert statements(result)[2] in page.verdict


def test_tokens_cannot_break_out_of_the_page(result, examples):
    html = render(attention_page(result, with_token(examples, HOSTILE)))
    elements = Elements(html)
    assert elements.names.count("script") == 3, "the figures' data, the library, the page's own"
    assert "img" not in elements.names
    data = json.loads(next(text for name, text in elements.texts if name == "script"))
    assert HOSTILE in data["figures"][0]["datasets"]["sentences"][0]["tokens"]


def test_the_figures_are_written_but_for_the_one_to_click_in(result, examples, tmp_path):
    page = attention_page(result, examples)
    path = write_attention_page(page, tmp_path / "out")
    assert path == tmp_path / "out" / "attention.html"
    assert EXPLORER in path.read_text(encoding="utf-8")
    names = {each.stem for each in (tmp_path / "out" / "figures").iterdir()}
    assert len(names) == sum(isinstance(part, Figure) for part in page.parts) - 1
    assert "all-heads" in names
    assert not any(name.startswith("any-head") for name in names)


def test_the_page_of_a_large_model_stays_small(result, examples):
    sentence = examples.sentences[0]
    random = np.random.default_rng(0)
    tokens = tuple(f"token{place}" for place in range(32))
    maps = random.dirichlet(np.ones(32), (24, 16, 32)).astype(np.float32)
    large = Examples((replace(sentence, tokens=tokens, maps=maps),) * 8)
    page = attention_page(result, large)
    assert len(render(page).encode()) < 6e6


@pytest.fixture(scope="module")
def run(factbook_corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    recipe = parse_recipe(copy.deepcopy(RECIPE), "tiny.yaml")
    sb.pretrain(recipe, corpus=factbook_corpus, out=folder)
    return folder


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(
        "\n".join(
            f"In the year {year} the river rose over the town and {year - 1700} people left it."
            for year in range(1800, 1812)
        ),
        encoding="utf-8",
    )
    return path


def test_examples_are_of_the_sentences_that_were_measured(run, text):
    result = measure_attention(run, text=text, sentences=5)
    examples = collect_examples(run, text, result, 5)
    assert len(examples.sentences) == 5
    assert [each.index for each in examples.sentences] == list(range(5))
    assert sum(len(each.tokens) for each in examples.sentences) <= result.measures.tokens
    (growth,) = examples.growths
    assert growth.name == "stack"
    assert {name: maps.maps.shape[0] for name, maps in growth.moments.items()} == {
        "shallow": 2,
        "grown": 4,
        "next": 4,
    }
    assert {maps.tokens for maps in growth.moments.values()} == {examples.small.tokens}
    assert growth.moments["next"].maps == pytest.approx(examples.small.maps, abs=1e-5)
    assert growth.moments["grown"].maps[:2] == pytest.approx(growth.moments["shallow"].maps)


@pytest.fixture
def stackbert(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["stackbert", *map(str, arguments)])
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        return (code, *capsys.readouterr())

    return call


def test_the_command_writes_page_and_figures_of_a_run(stackbert, run, text, tmp_path):
    out = tmp_path / "out"
    code, printed, _ = stackbert("attention", run, "--text", text, "--out", out)
    assert code == 0
    assert str(out / "attention.html") in printed
    html = (out / "attention.html").read_text(encoding="utf-8")
    said = [content for _, content in Elements(html).texts]
    for sentence in statements(read_result(out / "attention.json")):
        assert sentence in said
    assert "Growing from 2 to 4 layers by stack" in said
    names = {each.name for each in (out / "figures").iterdir()}
    assert {"growing-from-2-to-4-layers-by-stack.svg", "all-heads.png"} <= names


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = os.environ.get("STACKBERT_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), "")
    if not found:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on PATH, STACKBERT_CHROMIUM unset")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
        yield browser
        browser.close()


class Visit:
    """The page of a result, open in a browser, with everything that it said and asked for."""

    def __init__(self, browser: Browser, path: Path) -> None:
        self.page = browser.new_page(viewport={"width": 1100, "height": 1000})
        self.page.set_default_timeout(20_000)
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("dialog", self._asked)
        self.page.goto(path.as_uri())
        self.page.wait_for_function(
            "() => [...document.querySelectorAll('.chart')].every(c => c.querySelector('svg'))"
        )
        self.figure = self.page.locator("figure").first

    def _heard(self, message) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def _asked(self, dialog) -> None:
        self.errors.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def title(self) -> str:
        found = self.figure.locator("svg text").all_text_contents()
        return next(each for each in found if each.startswith("Layer "))

    def fills(self) -> list[str]:
        """Colours of the map's cells in the order of the document."""
        return (
            self.figure.locator(".mark-rect.role-mark")
            .last.locator("path")
            .evaluate_all("found => found.map(path => path.getAttribute('fill'))")
        )

    def labels(self) -> list[str]:
        return self.figure.locator("svg text").all_text_contents()

    def choose_head(self, layer: int, head: int) -> None:
        self.figure.locator(f"path[aria-label^='head: {head}; layer: {layer};']").click()
        self.wait_for(f"Layer {layer}, head {head} ")

    def choose_sentence(self, nth: int) -> None:
        self.figure.locator(".mark-rect.role-mark").first.locator("path").nth(nth - 1).click()
        self.wait_for(f"on sentence {nth}")

    def wait_for(self, words: str) -> None:
        self.page.wait_for_function(
            "words => [...document.querySelectorAll('figure svg text')]"
            ".some(text => text.textContent.includes(words))",
            arg=words,
        )


@pytest.fixture
def visit(browser, result, examples, tmp_path) -> Iterator[Visit]:
    path = write_attention_page(attention_page(result, examples), tmp_path)
    opened = Visit(browser, path)
    yield opened
    opened.page.close()


def darkness(fills: list[str]) -> list[int]:
    return [-sum(map(int, re.findall(r"\d+", fill))) for fill in fills]


def test_a_click_on_a_head_shows_its_map(visit, examples):
    seen = set()
    for layer, head in ((1, 1), (3, 2), (2, 1)):
        visit.choose_head(layer, head)
        fills = visit.fills()
        weights = np.rint(examples.sentences[0].maps[layer - 1, head - 1].ravel() * 1000)
        assert len(fills) == weights.size
        shades = np.array(darkness(fills))
        assert (np.diff(shades[np.argsort(weights)]) >= 0).all(), "the darker, the more"
        seen.add(tuple(fills))
    assert len(seen) == 3
    assert visit.errors == []
    assert len(visit.requests) == 1


def test_a_click_on_a_sentence_shows_its_tokens(visit, examples):
    before = visit.fills()
    visit.choose_sentence(3)
    assert len(visit.fills()) == len(examples.sentences[2].tokens) ** 2 != len(before)
    assert set(examples.sentences[2].tokens) <= set(visit.labels())
    visit.choose_sentence(1)
    assert visit.fills() == before
    assert visit.errors == []


def test_something_is_chosen_whatever_is_clicked(visit):
    visit.choose_head(2, 2)
    before = visit.fills()
    cell = visit.figure.locator("path[aria-label^='head: 2; layer: 2;']").bounding_box()
    left, middle = cell["x"], cell["y"] + cell["height"] / 2
    for x in (left - 26, left + 60):  # on the axis' numbers, beside the grid
        visit.page.mouse.click(x, middle)
    for times, keys in ((2, []), (1, ["Shift"])):  # what takes a choice back elsewhere
        chosen = visit.figure.locator("path[aria-label^='head: 2; layer: 2;']")
        chosen.click(click_count=times, modifiers=keys)
    visit.page.wait_for_timeout(200)
    assert visit.fills() == before
    assert visit.title().startswith("Layer 2, head 2 ")


def test_the_pointer_shows_both_tokens_and_the_weight(visit, examples):
    visit.choose_head(1, 2)
    sentence = examples.sentences[0]
    size = len(sentence.tokens)
    cells = visit.figure.locator(".mark-rect.role-mark").last.locator("path")
    for query, key in ((1, 4), (5, 0)):
        cells.nth(query * size + key).hover()
        visit.page.wait_for_selector("#vg-tooltip-element.visible")
        found = visit.page.locator("#vg-tooltip-element td").all_inner_texts()
        shown = dict(zip(found[::2], found[1::2], strict=True))
        weight = f"{np.rint(sentence.maps[0, 1, query, key] * 1000) / 1000:.3f}"
        assert list(shown.values()) == [sentence.tokens[query], sentence.tokens[key], weight]
    assert visit.errors == []


def test_hostile_tokens_are_shown_and_not_run(browser, result, examples, tmp_path):
    page = attention_page(result, with_token(examples, HOSTILE))
    opened = Visit(browser, write_attention_page(page, tmp_path))
    size = len(examples.sentences[0].tokens)
    cells = opened.figure.locator(".mark-rect.role-mark").last.locator("path")
    cells.nth(2 * size + 2).hover()
    tooltip = opened.page.wait_for_selector("#vg-tooltip-element.visible")
    assert HOSTILE in tooltip.inner_text()
    assert opened.page.locator("img").count() == 0
    assert opened.errors == []
    assert len(opened.requests) == 1
    opened.page.close()
