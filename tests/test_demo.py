"""The demo: its text, and the way from text to filled masks."""

import re

from stackbert import demo
from stackbert.progress import Progress
from tiny_runs import tiny_recipe


def test_the_factbook_is_256_documents_of_plain_sentences(tmp_path) -> None:
    assert demo.write_factbook(tmp_path / "all.txt") == 256
    text = (tmp_path / "all.txt").read_text("utf-8")
    assert len(set(text.strip("\n").split("\n\n"))) > 250
    assert not re.search(r"</?[a-z]+[^>]*>|&(amp|nbsp|lt|gt|quot|#\d+);|  ", text), "HTML"
    lengths = sorted(map(len, text.splitlines()))
    assert lengths[len(lengths) // 2] >= demo.SHORTEST, "figures, not sentences"


def test_text_becomes_a_model_that_fills_masks_and_is_used_again(tmp_path, monkeypatch) -> None:
    def shorter(path) -> int:
        count = write_factbook(path)
        articles = path.read_text("utf-8").split("\n\n")[:16]
        path.write_text("\n\n".join(article[:2000] for article in articles), "utf-8")
        return count

    write_factbook = demo.write_factbook
    monkeypatch.setattr(demo, "write_factbook", shorter)
    stages = [{"depth": depth, "steps": 4} for depth in (1, 2, 4)]
    recipe = tiny_recipe(stages=stages, batch__sequence_length=32)
    monkeypatch.setattr(demo, "load_recipe", lambda name: recipe)
    monkeypatch.setattr(demo, "VOCABULARY", 512)
    monkeypatch.setattr(demo, "HELD_OUT", 0.2)
    said: list[str] = []
    first = demo.run_demo(tmp_path, say=said.append, progress=Progress())
    text = "\n".join(said)
    assert "Training: 1 → 2 → 4 layers, 12 steps." in text
    filled = [line for line in said if "[…]" in line]
    assert len(filled) == len(demo.SENTENCES)
    assert all(len(re.findall(r"\S+ \d+%", line)) == 3 for line in filled)
    assert (tmp_path / "report.html").exists()

    said.clear()
    again = demo.run_demo(tmp_path, say=said.append, progress=Progress())
    assert again.loss == first.loss
    assert said[0].startswith("Corpus:"), "the text is not written again"
