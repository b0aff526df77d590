"""The page on attention: everything that was found, and nothing that breaks out of it."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from stackbert.attention.examples import Examples, collect_examples
from stackbert.attention.measure import measure_attention
from stackbert.attention.page import EXPLORER, attention_page, write_attention_page
from stackbert.attention.statements import statements
from stackbert.reporting.content import Figure, Table
from stackbert.reporting.page import render

HOSTILE = "</script><img src=x onerror=alert(1)>"


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


def test_tokens_cannot_break_out_of_the_page(result, hostile):
    html = render(attention_page(result, hostile))
    elements = Elements(html)
    assert elements.names.count("script") == 3, "the figures' data, the library, the page's own"
    assert "img" not in elements.names
    data = json.loads(next(text for name, text in elements.texts if name == "script"))
    token = hostile.sentences[0].tokens[2]
    assert "</script>" in token
    assert token in data["figures"][0]["datasets"]["sentences"][0]["tokens"]


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


def test_examples_are_of_the_sentences_that_were_measured(make_run, years):
    run = make_run("stack")
    result = measure_attention(run, text=years, sentences=5)
    examples = collect_examples(run, years, result, 5)
    assert len(examples.sentences) == 5
    assert [each.index for each in examples.sentences] == list(range(5))
    assert sum(len(each.tokens) for each in examples.sentences) <= result.measures.tokens
    first, growth = examples.growths
    assert first.name == growth.name == "stack"
    assert first.weights != growth.weights
    assert {name: maps.maps.shape[0] for name, maps in growth.moments.items()} == {
        "shallow": 2,
        "grown": 4,
        "next": 4,
    }
    assert {maps.tokens for maps in growth.moments.values()} == {examples.small.tokens}
    assert growth.moments["next"].maps == pytest.approx(examples.small.maps, abs=1e-5)
    assert growth.moments["grown"].maps[:2] == pytest.approx(growth.moments["shallow"].maps)


def test_growths_are_not_drawn_with_the_maps_of_others(make_run, years):
    run = make_run("stack")
    result = measure_attention(run, text=years, sentences=5)
    examples = collect_examples(run, years, result, 5)
    titles = [part.title for part in attention_page(result, examples).parts]
    assert titles.count("Growing from 1 to 2 layers by stack") == 1
    without = attention_page(result, replace(examples, growths=())).parts
    assert not any(part.title.startswith("Growing") for part in without)
    with pytest.raises(ValueError, match="zip"):
        attention_page(result, replace(examples, growths=examples.growths[:1]))
