"""The figure to choose in: it answers to clicks and to the keyboard, and shows what was chosen."""

import re
from dataclasses import replace

import numpy as np
import pytest

from browser_helpers import Visit
from stackbert.attention.page import attention_page
from stackbert.reporting.page import write_page


class Explorer:
    """The first figure of a page that is open."""

    def __init__(self, visit: Visit) -> None:
        self.visit = visit
        self.page = visit.page
        self.figure = visit.page.locator("figure").first

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
        self.figure.locator(".mark-text.role-mark").first.locator("text").nth(nth - 1).click()
        self.wait_for(f"on sentence {nth}")

    def wait_for(self, words: str) -> None:
        self.page.wait_for_function(
            "words => [...document.querySelectorAll('figure svg text')]"
            ".some(text => text.textContent.includes(words))",
            arg=words,
        )

    def chosen(self) -> list[str]:
        """What the lists stand at: sentence, layer, head."""
        return [self.list_of(name).input_value() for name in ("Sentence", "Layer", "Head")]

    def list_of(self, name: str):
        return self.figure.get_by_role("combobox", name=name)

    def press(self, key: str, words: str) -> None:
        self.page.keyboard.press(key)
        self.wait_for(words)


@pytest.fixture
def explorer(visit, result, examples, tmp_path) -> Explorer:
    return explore(visit, result, examples, tmp_path)


def explore(visit, result, examples, folder) -> Explorer:
    path = folder / "page.html"
    page = attention_page(result, examples)
    write_page(replace(page, parts=page.parts[:1]), path)  # the others take long to draw
    visit.open(path)
    return Explorer(visit)


def darkness(fills: list[str]) -> list[int]:
    return [-sum(map(int, re.findall(r"\d+", fill))) for fill in fills]


def test_a_click_on_a_head_shows_its_map(explorer, examples):
    seen = set()
    for layer, head in ((1, 1), (3, 2), (2, 1)):
        explorer.choose_head(layer, head)
        fills = explorer.fills()
        weights = np.rint(examples.sentences[0].maps[layer - 1, head - 1].ravel() * 1000)
        assert len(fills) == weights.size
        shades = np.array(darkness(fills))
        assert (np.diff(shades[np.argsort(weights)]) >= 0).all(), "the darker, the more"
        seen.add(tuple(fills))
    assert len(seen) == 3
    assert explorer.chosen() == ["1", "2", "1"], "the lists follow"
    assert explorer.visit.errors == []
    assert len(explorer.visit.requests) == 1


def test_a_click_on_a_sentence_shows_its_tokens(explorer, examples):
    before = explorer.fills()
    explorer.choose_sentence(3)
    assert len(explorer.fills()) == len(examples.sentences[2].tokens) ** 2 != len(before)
    assert set(examples.sentences[2].tokens) <= set(explorer.labels())
    line = explorer.figure.locator(".mark-rect.role-mark").first.locator("path").first
    line.click(position={"x": line.bounding_box()["width"] - 5, "y": 12})  # behind the words
    explorer.wait_for("on sentence 1")
    assert explorer.fills() == before
    assert explorer.visit.errors == []


def test_something_is_chosen_whatever_is_clicked(explorer):
    explorer.choose_head(2, 2)
    before = explorer.fills()
    cell = explorer.figure.locator("path[aria-label^='head: 2; layer: 2;']").bounding_box()
    left, middle = cell["x"], cell["y"] + cell["height"] / 2
    for x in (left - 26, left + 60):  # on the axis' numbers, beside the grid
        explorer.page.mouse.click(x, middle)
    for times, keys in ((2, []), (1, ["Shift"])):  # what takes a choice back elsewhere
        chosen = explorer.figure.locator("path[aria-label^='head: 2; layer: 2;']")
        chosen.click(click_count=times, modifiers=keys)
    explorer.page.wait_for_timeout(200)
    assert explorer.fills() == before
    assert explorer.title().startswith("Layer 2, head 2 ")


def test_the_pointer_shows_both_tokens_and_the_weight(explorer, examples):
    explorer.choose_head(1, 2)
    sentence = examples.sentences[0]
    size = len(sentence.tokens)
    cells = explorer.figure.locator(".mark-rect.role-mark").last.locator("path")
    for query, key in ((1, 4), (5, 0)):
        cells.nth(query * size + key).hover()
        explorer.page.wait_for_selector("#vg-tooltip-element.visible")
        found = explorer.page.locator("#vg-tooltip-element td").all_inner_texts()
        shown = dict(zip(found[::2], found[1::2], strict=True))
        weight = f"{np.rint(sentence.maps[0, 1, query, key] * 1000) / 1000:.3f}"
        assert list(shown.values()) == [sentence.tokens[query], sentence.tokens[key], weight]
    assert explorer.visit.errors == []


def test_sentence_layer_and_head_are_chosen_by_keyboard(explorer, examples):
    explorer.visit.count_drawings()
    first = explorer.chosen()
    assert first[0] == "1"
    assert explorer.title() == f"Layer {first[1]}, head {first[2]} on sentence 1"
    explorer.page.keyboard.press("Tab")
    explorer.press("ArrowDown", "on sentence 2")
    explorer.press("ArrowDown", "on sentence 3")
    explorer.page.keyboard.press("Tab")
    explorer.press("3", "Layer 3, ")
    explorer.press("ArrowUp", "Layer 2, ")
    explorer.page.keyboard.press("Tab")
    explorer.press("2", "head 2 on sentence 3")
    explorer.press("ArrowUp", "Layer 2, head 1 on sentence 3")
    weights = np.rint(examples.sentences[2].maps[1, 0].ravel() * 1000)
    shades = np.array(darkness(explorer.fills()))
    assert (np.diff(shades[np.argsort(weights)]) >= 0).all()
    assert explorer.visit.drawings() == 0
    assert explorer.visit.errors == []
    assert len(explorer.visit.requests) == 1


def test_what_chose_last_counts(explorer):
    explorer.choose_head(1, 1)
    for _ in range(2):
        explorer.list_of("Layer").select_option("3")
        explorer.wait_for("Layer 3, head 1 ")
        explorer.choose_head(1, 1)
    explorer.choose_sentence(2)
    assert explorer.chosen() == ["2", "1", "1"]
    assert explorer.visit.errors == []


def test_a_figure_drawn_anew_has_its_lists_once(explorer):
    explorer.visit.count_drawings()
    explorer.page.emulate_media(color_scheme="dark")
    explorer.page.wait_for_function("() => window.drawings === 1")
    explorer.page.wait_for_timeout(300)
    assert explorer.page.get_by_role("combobox").count() == 3
    explorer.list_of("Layer").select_option("3")
    explorer.wait_for("Layer 3, ")
    explorer.choose_head(1, 2)
    assert explorer.chosen()[1:] == ["1", "2"]
    assert explorer.visit.errors == []


def test_the_lists_fit_a_phone(browser, result, examples, tmp_path):
    context = browser.new_context(viewport={"width": 360, "height": 740}, is_mobile=True)
    explorer = explore(Visit(context.new_page()), result, examples, tmp_path)
    for name in ("Sentence", "Layer", "Head"):
        box = explorer.list_of(name).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
    context.close()


def test_hostile_tokens_are_shown_and_not_run(visit, result, hostile, tmp_path):
    explorer = explore(visit, result, hostile, tmp_path)
    token = hostile.sentences[0].tokens[2]
    size = len(hostile.sentences[0].tokens)
    explorer.figure.locator(".mark-rect.role-mark").last.locator("path").nth(2 * size + 2).hover()
    tooltip = explorer.page.wait_for_selector("#vg-tooltip-element.visible")
    assert token in tooltip.inner_text()
    assert token in explorer.list_of("Sentence").locator("option").first.inner_text()
    assert explorer.page.locator("img").count() == 0
    assert visit.errors == []
    assert visit.dialogs == []
    assert len(visit.requests) == 1
