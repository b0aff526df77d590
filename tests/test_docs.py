"""What the README and docs show works as shown."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main
from stackbert.finetuning.settings import check_overrides

import stackbert as sb
from stackbert.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

# The README's example takes half an hour as printed. Run here on a little text, with these changes.
SHORTER = {
    '["seed=1"]': '["seed=1", "model.hidden_size=32", "model.num_attention_heads=2", '
    '"model.intermediate_size=64", "batch.sequences=4", "precision=fp32", '
    '"evaluation.sequences=16"]',
    'budget="30m"': "steps=6",
    "seeds=3, jobs=2": 'seeds=1, budget="6steps"',
    "vocab_size=8192": "vocab_size=192, validation=0.2",
    'out="finetuned")': 'out="finetuned", seeds=2, settings=["max_steps=2", "precision=fp32"])',
    'out="along")': 'out="along", seeds=1, settings=["max_steps=2", "precision=fp32"])',
}
TOPICS = ("river", "harbour", "mountain", "library", "railway", "market", "garden", "bridge")
ARTICLES = "\n\n".join(
    f"The {topic} of town {n} was opened in {1800 + n}. People came from {n} villages to see it.\n"
    f"A second {topic} followed {n} years later. It was larger and cost more."
    for n, topic in enumerate(TOPICS * 8)
)
REVIEWS = "review,stars\n" + "".join(
    f'"The {topic}, seen {n} times",{1 + n % 2}\n' for n, topic in enumerate(TOPICS * 4)
)


def blocks(language: str) -> list[tuple[str, str]]:
    return [
        (str(page.relative_to(ROOT)), block)
        for page in PAGES
        for block in re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    ]


@pytest.mark.parametrize(("page", "block"), blocks("python"))
def test_python_blocks_run(page, block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stackbert.comparison.calibration.ROUNDS", 1)
    (tmp_path / "my_articles").mkdir()
    (tmp_path / "my_articles" / "articles.txt").write_text(ARTICLES, encoding="utf-8")
    (tmp_path / "reviews.csv").write_text(REVIEWS, encoding="utf-8")
    for printed, shorter in SHORTER.items():
        block = block.replace(printed, shorter)
    exec(compile(block, page, "exec"), {"__name__": "__main__"})


def test_shell_blocks_name_commands_and_options_that_exist():
    group = typer.main.get_command(app)
    lines = [
        line.split("#")[0].strip()
        for page in PAGES
        for line in page.read_text("utf-8").replace("\\\n", " ").splitlines()
        if line.strip().startswith("stackbert ")
    ]
    assert len(lines) >= 8
    for line in lines:
        name, *arguments = shlex.split(line)[1:]
        command = group.commands[name]
        command.make_context(name, arguments)


def test_every_field_that_is_set_exists():
    text = "".join(page.read_text("utf-8") for page in PAGES)
    overrides = set(re.findall(r"--set ([\w.]+=[^\s`]+)", text))
    assert len(overrides) >= 6
    for override in overrides:
        try:
            sb.load_recipe("small-cpu", [override])
        except sb.UserError:
            check_overrides([override], ["rte"])  # a setting of `stackbert finetune`


def test_every_relative_link_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page}: {target}"
