"""What was found goes to a folder and from there into a report, whole or with a clear sentence."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import stackbert as sb
from stackbert.attention.examples import collect_examples
from stackbert.attention.page import EXPLORER, attention_page
from stackbert.attention.result import read_result
from stackbert.attention.statements import statements
from stackbert.attention.stored import read_attention
from stackbert.cli import app
from stackbert.errors import UserError
from stackbert.files import sha256_of
from stackbert.reporting.content import Figure, Page, Text
from stackbert.reporting.page import render
from stackbert.reporting.report import _page as report_page

YEARS = "\n".join(
    f"In the year {year} the river rose over the town and {year - 1700} people left it."
    for year in range(1800, 1812)
)


@pytest.fixture(scope="module")
def command(make_run, tmp_path_factory) -> tuple[Path, Result]:
    """What the command writes of a run and one beside it, and what it says."""
    out = tmp_path_factory.mktemp("attention")
    (out / "years.txt").write_text(YEARS, encoding="utf-8")
    words = ["attention", make_run("stack"), "--beside", make_run("identity"), "--sentences", 5]
    words += ["--text", out / "years.txt", "--out", out]
    return out, CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)


@pytest.fixture
def folder(command) -> Path:
    return command[0]


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def titles(parts) -> list[str]:
    return [part.title for part in parts]


@pytest.fixture(scope="module")
def page(command) -> Page:
    return attention_page(*read_attention(command[0]))


def test_a_page_from_the_folder_draws_the_maps_that_were_measured(folder, page, make_run):
    run, other = make_run("stack"), make_run("identity")
    result, stored = read_attention(folder)
    examples = collect_examples(run, folder / "years.txt", result, 5, [other])
    for one, again in zip(examples.sentences, stored.sentences, strict=True):
        assert (again.index, again.tokens) == (one.index, one.tokens)
        assert again.separators == one.separators
        assert again.maps.dtype == np.float32
        assert again.maps == pytest.approx(one.maps, abs=0.000501)
    assert attention_page(result, examples).parts == page.parts


def test_the_folder_alone_is_a_report(folder, page, tmp_path):
    path = sb.report(folder, tmp_path / "report.html")
    assert path.read_text(encoding="utf-8") == render(page)


def test_a_report_of_the_run_has_attention_as_parts_of_its_own(folder, page, make_run):
    run = make_run("stack")
    alone, together = report_page([run]), report_page([folder, run])
    assert together.verdict == alone.verdict, "the run's headline first, and no wall of sentences"
    assert together.title == alone.title
    *before, recipe = alone.parts
    assert recipe.folded
    text = together.parts[len(before)]
    assert isinstance(text, Text)
    assert text.sentences == page.verdict
    assert titles(together.parts) == titles([*before, text, *page.parts, recipe])
    assert alone.facts.items() <= together.facts.items()


def test_a_measurement_written_into_the_run_is_in_its_report(folder, make_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(make_run("stack"), run)
    for name in ("attention.json", "examples.json"):
        shutil.copy(folder / name, run)
    assert {"Loss", EXPLORER} <= set(titles(report_page([run]).parts))


def test_maps_of_all_runs_are_drawn_beside_each_other(page):
    figures = {part.title: part for part in page.parts if isinstance(part, Figure)}
    first = figures["Growing from 1 to 2 layers: stack, identity"]
    second = figures["Growing from 2 to 4 layers: stack, identity"]
    assert "drawn once" in first.note
    assert len(first.spec["vconcat"]) == 3
    assert "do not have the same weights" in second.note
    assert len(second.spec["vconcat"]) == 2
    assert page.facts["Growths of"] == "stack, identity"


def change(path: Path, edit) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    edit(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def other_depth(value) -> None:
    """A sentence's maps without those of the top layer."""
    sentence = value["sentences"][0]
    layers, heads = sentence["shape"]
    sentence["shape"] = [layers - 1, heads]
    sentence["weights"] = sentence["weights"][: -heads * len(sentence["tokens"]) ** 2]


def another_weight(value) -> None:
    value["measures"]["first"][0][0] = 0.5


DAMAGES = {
    "cut": ("attention.json", lambda path: path.write_bytes(path.read_bytes()[:999]), "not JSON"),
    "no text": ("attention.json", lambda path: path.write_bytes(b"\x93\xff\x00"), "not JSON"),
    "foreign": ("attention.json", lambda path: path.write_text("[1]"), "no result of stackbert"),
    "older": ("attention.json", lambda p: p.write_text('{"format": 1}'), "another version"),
    "field gone": (
        "attention.json",
        lambda path: change(path, lambda value: value.pop("measures")),
        "no result of stackbert attention, or a damaged one",
    ),
    "words": (
        "attention.json",
        lambda path: change(path, lambda value: value["model"].update(depth="deep")),
        "model.depth is not a whole number",
    ),
    "changed": ("attention.json", lambda path: change(path, another_weight), "does not belong"),
    "maps gone": ("examples.json", Path.unlink, "no examples.json"),
    "maps cut": ("examples.json", lambda p: p.write_bytes(p.read_bytes()[:999]), "not JSON"),
    "maps foreign": ("examples.json", lambda path: path.write_text("{}"), "is damaged"),
    "maps of later": (
        "examples.json",
        lambda path: change(path, lambda value: value.update(format=99)),
        "another version",
    ),
    "a weight too many": (
        "examples.json",
        lambda path: change(path, lambda value: value["sentences"][0]["weights"].append(0)),
        "is damaged",
    ),
    "weight above one": (
        "examples.json",
        lambda path: change(
            path, lambda value: value["sentences"][1]["weights"].__setitem__(0, 1001)
        ),
        "a weight is not between 0 and 1",
    ),
    "a layer too few": ("examples.json", lambda path: change(path, other_depth), "is damaged"),
    "no sentence": (
        "examples.json",
        lambda path: change(path, lambda value: value.update(sentences=[])),
        "is damaged",
    ),
    "a weight that no integer can be": (
        "examples.json",
        lambda path: change(
            path, lambda value: value["sentences"][0].update(weights=[10**30, float("inf")])
        ),
        "is damaged",
    ),
    "a growth too few": (
        "examples.json",
        lambda path: change(path, lambda value: value["growths"].pop()),
        "is damaged",
    ),
    "growths swapped": (
        "examples.json",
        lambda path: change(path, lambda value: value["growths"].reverse()),
        "another growth",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_one_clear_sentence(damage, copy, stackbert, tmp_path):
    name, break_it, sentence = DAMAGES[damage]
    break_it(copy / name)
    out = tmp_path / "report.html"
    code, _, said = stackbert("report", copy, "--out", out)
    said = " ".join(said.split())
    assert code == 2
    assert sentence in said
    assert str(copy) in said
    assert "Traceback" not in said
    assert not out.exists()


def test_maps_of_an_older_measurement_are_not_drawn_with_a_new_one(copy):
    result = read_result(copy / "attention.json")
    before = sha256_of(copy / "attention.json")
    replace(result, seed=7).write(copy / "attention.json")
    assert sha256_of(copy / "attention.json") != before
    with pytest.raises(UserError, match="does not belong"):
        read_attention(copy)


def test_what_cannot_be_reported_together_is_a_sentence(folder, copy, stackbert, tmp_path):
    empty, comparison = tmp_path / "empty", tmp_path / "comparison"
    for each in (empty, comparison):
        each.mkdir()
    (comparison / "comparison.json").write_text("{}")
    for folders, sentence in (
        ([folder, copy], "both measurements of attention"),
        ([folder, empty], "neither a run directory"),
        ([folder, comparison], f"{comparison / 'comparison.json'}"),
    ):
        code, _, said = stackbert("report", *folders, "--out", tmp_path / "report.html")
        assert code == 2
        assert sentence in " ".join(said.split())


def test_the_command_takes_runs_beside_the_run(
    command, stackbert, make_run, make_model, save, tmp_path
):
    out, said = command
    assert said.exit_code == 0
    assert f"the growths of identity ({make_run('identity')})" in said.stderr
    result, examples = read_attention(out)
    assert [growth.run for growth in result.growths] == ["stack"] * 2 + ["identity"] * 2
    assert len(examples.growths) == 4
    for sentence in statements(result):
        assert sentence in said.stdout
    assert str(out / "attention.html") in said.stdout
    names = {each.stem for each in (out / "figures").iterdir()}
    assert {"growing-from-2-to-4-layers-stack-identity", "all-heads"} <= names
    assert not any(name.startswith("any-head") for name in names)
    words = ("--text", out / "years.txt", "--out", tmp_path, "--beside", make_run("stack"))
    code, _, heard = stackbert("attention", save(make_model()), *words)
    assert code == 2
    assert "must be a run directory" in heard


def test_the_report_draws_run_and_attention_and_says_nothing(visit, folder, make_run, tmp_path):
    path = sb.report([make_run("stack"), folder], tmp_path / "report.html")
    page = visit.open(path)
    text = page.locator("main").inner_text()
    assert text.index("validation loss") < text.index("look at their neighbours or at [CLS].")
    assert page.locator("figure").count() == page.locator(".chart svg").count() == 8
    visit.count_drawings()
    page.locator("figure").nth(1).get_by_role("combobox", name="Layer").select_option("3")
    page.wait_for_function(
        "() => [...document.querySelectorAll('figure svg text')]"
        ".some(text => text.textContent.startsWith('Layer 3, '))"
    )
    page.get_by_label("steps", exact=True).check()
    page.wait_for_selector("[aria-label^=\"X-axis titled 'steps'\"]")
    assert visit.drawings() == 1, "the switch draws its own figure anew, a list none"
    assert visit.errors == []
    assert visit.requests == [path.as_uri()]
