"""What the README and docs show works as shown."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main

import stackbert as sb
from stackbert.cli import app
from stackbert.comparison import calibration, compare
from stackbert.finetuning.tasks import settings_for
from stackbert.growth.operators import OPERATORS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXT = "".join(page.read_text("utf-8") for page in PAGES)

# As printed, the examples take hours. They run here on a little text, with these changes.
SHORTER = {
    '["seed=1"]': '["seed=1", "model.hidden_size=16", "model.num_attention_heads=2", '
    '"model.intermediate_size=32", "batch.sequences=4", "batch.sequence_length=32", '
    '"precision=fp32", "compile=false", "evaluation.sequences=8"]',
    'budget="30m"': "steps=3",
    'vocabulary="bytes", vocab_size=8192': 'vocabulary="bytes", vocab_size=320, validation=0.2',
    "seeds=3, jobs=2": 'seeds=1, budget="3steps"',
    "vocab_size=8192": "vocab_size=192, validation=0.2",
    'out="finetuned")': 'out="finetuned", seeds=2, settings=["max_steps=1", "precision=fp32"])',
    'out="attention")': 'out="attention", sentences=8)',
    'plan(sb.load_recipe("bert-base")': 'plan(sb.load_recipe("demo")',
}
ARTICLES = "\n\n".join(
    f"The {topic} of town {n} was opened in {1800 + n}. People came from {n} villages to see it.\n"
    f"A second {topic} followed {n} years later. It was larger and cost more."
    for n, topic in enumerate(("river", "harbour", "library", "market") * 16)
)
NOTES = "".join(f'{{"body": "{text}"}}\n' for text in ARTICLES.replace("\n", " ").split("  "))
GERMAN = "\n\n".join(
    f"{n} Jahre nach der {place} wurde das Gebäude größer. Süßwasser und Öl fließen, {people} üben."
    for n, place in enumerate(("Brücke", "Prüfung", "Überschwemmung", "Häuserzeile") * 16)
    for people in ("Jungen", "Kaufleute", "Fischer", "Nachbarn")
)
REVIEWS = "review,stars\n" + "".join(f'"Seen {n} times",{1 + n % 2}\n' for n in range(32))
BLOCKS = [
    pytest.param(block, id=page.stem)
    for page in PAGES
    for block in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
]


@pytest.fixture
def in_this_process(monkeypatch):
    """A comparison measures and trains here; each process of its own would load torch again."""

    def train_all(runs, corpus, **_):
        for run in runs:
            sb.pretrain(sb.load_recipe(f"{run}.yaml"), corpus=corpus, out=run)
            yield run, 0.0, ""

    monkeypatch.setattr(compare, "train_all", train_all)
    ask = calibration._answer
    monkeypatch.setattr(calibration, "_ask", lambda what, request, *_: [ask(what, request)])
    monkeypatch.setattr(calibration, "PATIENCE", 0.0)


@pytest.mark.parametrize("block", BLOCKS)
def test_python_blocks_run(block, in_this_process, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = {"my_articles/a.txt": ARTICLES, "notes/a.jsonl": NOTES, "texte/a.txt": GERMAN}
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "reviews.csv").write_text(REVIEWS, encoding="utf-8")
    for printed, shorter in SHORTER.items():
        block = block.replace(printed, shorter)
    exec(compile(block, "block", "exec"), {"__name__": "__main__"})


def test_shell_blocks_name_commands_and_options_that_exist():
    commands = typer.main.get_command(app).commands
    lines = re.findall(r"^ *(?:torchrun .* -m )?stackbert (.*)$", TEXT.replace("\\\n", " "), re.M)
    assert len(lines) >= 8
    for line in lines:
        name, *arguments = shlex.split(line, comments=True)
        commands[name].make_context(name, arguments)


def test_every_field_that_is_set_exists():
    overrides = set(re.findall(r"--set ([\w.]+=[^\s`]+)", TEXT))
    assert len(overrides) >= 6
    for override in overrides:
        try:
            sb.load_recipe("small-cpu", [override])
        except sb.UserError:
            settings_for("rte", [override], ["rte"])  # of `stackbert finetune`


def test_every_growth_operator_has_its_card():
    cards = re.findall(r"^## (\S+)$", (ROOT / "docs" / "operators.md").read_text("utf-8"), re.M)
    assert set(cards) == set(OPERATORS)


def test_every_relative_link_leads_somewhere():
    for page in (*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "LOG.md"):
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page}: {target}"
