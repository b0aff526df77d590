"""Names from files are shown in reports as they are, and do nothing there."""

import json
import socket
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from security_helpers import RECIPE, TEXT
from stackbert.recipe_files import parse_recipe

import stackbert as sb

# As a folder's or file's name, which can have no slash; and as any other.
NAME = "\"><script>alert(1)<script><img src=x onerror=alert(2)>'&amp;"
HOSTILE = "</script></style></title>" + NAME


class Structure(HTMLParser):
    """What a browser would make of a page: elements with their attributes' names, and the text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def _replaced(value: Any, old: str, new: str) -> Any:
    """Every text and key of that name another, in JSON."""
    if isinstance(value, dict):
        return {_replaced(k, old, new): _replaced(v, old, new) for k, v in value.items()}
    if isinstance(value, list):
        return [_replaced(each, old, new) for each in value]
    return new if value == old else value


@pytest.mark.parametrize(
    ("kind", "file", "names"),
    [
        ("comparison", "comparison.json", ("cpu",)),
        ("study", "finetune.json", ("base", "RTE", "a note", "no", "wnli", "cpu")),
    ],
)
def test_names_in_results_cannot_break_out_of_the_report(
    kind: str, file: str, names: tuple[str, ...], made
) -> None:
    folder = made(kind)
    plain = Structure(sb.report(folder, folder / "plain.html"))
    true = json.loads((folder / file).read_text(encoding="utf-8"))
    for name in names:
        hostile = _replaced(true, name, HOSTILE)
        (folder / file).write_text(json.dumps(hostile), encoding="utf-8")
        page = Structure(sb.report(folder, folder / "hostile.html"))
        assert page.elements == plain.elements, name
        assert HOSTILE in page.text, name


def test_names_cannot_break_out_of_a_report_on_attention(made, tmp_path: Path) -> None:
    """Those of the model and of the text that was measured; tokens have a test of their own."""
    from stackbert.attention.page import attention_page
    from stackbert.attention.stored import read_attention
    from stackbert.reporting.page import write_page

    result, examples = read_attention(made("attention"))
    model = replace(result.model, name=HOSTILE, type=HOSTILE)
    hostile = replace(result, model=model, text=HOSTILE)
    pages = []
    for each in (result, hostile):
        write_page(attention_page(each, examples), tmp_path / "page.html")
        pages.append(Structure(tmp_path / "page.html"))
    assert pages[1].elements == pages[0].elements
    assert pages[1].text.count(HOSTILE) > 3


@pytest.mark.parametrize("name", [HOSTILE, NAME, "../up", "a/b", ""])
def test_names_of_recipes_and_variants_have_neither_markup_nor_paths(
    name: str, tmp_path: Path
) -> None:
    from stackbert.comparison.variants import load_variants

    with pytest.raises(sb.UserError, match="name"):
        parse_recipe({**RECIPE, "name": name}, "tiny.yaml")
    path = tmp_path / "variants.yaml"
    path.write_text(json.dumps({name: {"seeds": 1}}), encoding="utf-8")
    recipe = parse_recipe(RECIPE, "tiny.yaml")
    with pytest.raises(sb.UserError, match="a name is made of letters, digits"):
        load_variants([str(path)], recipe, seeds=1, fractions=[1.0])


def test_names_of_a_run_cannot_break_out_of_its_report(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its folder, of the recipe's summary and of the corpus' sources; nor is anybody called."""

    def called(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", called)
    monkeypatch.setattr(socket.socket, "connect", called)
    plain = Structure(sb.report(finished, tmp_path / "plain.html"))
    text = tmp_path / f"{NAME}.txt"
    text.write_text(TEXT, encoding="utf-8")
    corpus = sb.build_corpus(tmp_path / "corpus", text=[text], vocab_size=128, validation=0.2)
    recipe = parse_recipe({**RECIPE, "summary": HOSTILE}, "tiny.yaml")
    run = tmp_path / NAME
    sb.pretrain(recipe, corpus=corpus, out=run)
    page = Structure(sb.report(run, tmp_path / "hostile.html"))
    assert page.elements == plain.elements
    assert NAME in page.text
    both = Structure(sb.report([run, finished], tmp_path / "both.html"))
    assert ("img", ("src", "onerror")) not in both.elements
    assert [tag for tag, _ in both.elements].count("script") == 3
