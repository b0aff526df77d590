"""The benchmarks run on tiny shapes. Their figures are not judged here."""

import functools
import json
import math
import random
import re

import pandas as pd
import pytest

from stackbert.recipes import load_recipe


@pytest.fixture
def load(monkeypatch):
    """Imports a benchmark, as the scripts import each other."""
    monkeypatch.syspath_prepend("benchmarks")
    return __import__


def test_both_trainers_take_the_same_steps_and_the_ratio_is_of_one_round(load, tmp_path) -> None:
    throughput = load("throughput")
    job = {"tokens": 128, "shapes": [[2, 64, 32]], "vocab_size": 1000, "warmup": 1, "steps": 2}
    job |= {"device": "cpu", "results": str(tmp_path / "results.jsonl")}
    rows = []
    for setup in ("trainer", "stackbert-eager"):
        (tmp_path / "job.json").write_text(json.dumps(job | {"setup": setup}), "utf-8")
        throughput.child(tmp_path / "job.json")
        result = json.loads((tmp_path / "results.jsonl").read_text("utf-8").splitlines()[-1])
        assert len(result["seconds"]) == 2
        # A fresh model knows nothing: it guesses evenly among the 1,000 tokens.
        assert result["loss"] == pytest.approx(math.log(1000), rel=0.1)
        rows += [{"setup": setup, "round": turn, **result} for turn in (1, 2)]
    for row, seconds in zip(rows, ([4.0, 4.0], [9.0, 9.0], [2.0, 2.0], [3.0, 3.0]), strict=True):
        row["seconds"] = seconds
    table = throughput.summary(pd.DataFrame(rows), tokens=128)
    assert table["its time ÷ StackBERT's"].tolist() == ["2.50 (2.00–3.00)", ""]
    assert table["tokens/s"].tolist() == pytest.approx([128 / 6.5, 128 / 2.5])


def test_every_part_of_the_gpu_benchmark_runs_on_a_cpu(load, tiny_corpus, capsys) -> None:
    gpu = load("gpu")
    gpu.main(["--cpu", "--tiny", "--corpus", str(tiny_corpus.folder)])
    said = capsys.readouterr().out
    assert "FAILED" not in said
    assert "no time is left" not in said
    assert re.findall(r"== (\w+)", said) == list(gpu.PARTS)
    assert ": the same" in said
    assert "two runs equal" in said


def test_a_build_and_bare_encoding_give_the_same_tokens(load, tmp_path, capsys) -> None:
    pipeline = load("pipeline")
    words = ("karu", "losen", "mitor", "lotor", "misen")
    lines = [" ".join(words[i // 5**k % 5] for k in range(4)) + "." for i in range(100)]
    (tmp_path / "text.txt").write_text("\n\n".join([*lines, *lines[:10]]), "utf-8")
    for way in pipeline.WAYS:
        pipeline.child(way, tmp_path, None, [str(tmp_path / "text.txt")])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len({(each["documents"], each["tokens"]) for each in found}) == 1
    assert found[0]["documents"] == 100, "the others are duplicates"


def test_the_fuzzer_counts_what_is_not_a_sentence(load, tmp_path, monkeypatch) -> None:
    fuzz = load("fuzz")
    (tmp_path / "recipe").mkdir()
    recipe = tmp_path / "recipe" / "recipe.yaml"
    recipe.write_text(load_recipe("demo").to_yaml(), "utf-8")
    run = functools.partial(fuzz.run_case, "recipe", tmp_path)
    assert run(draw=None)[0] == "accepted"
    assert {run(draw=random.Random(seed))[0] for seed in range(20)} <= {"accepted", "refused"}
    monkeypatch.setattr(fuzz, "read", lambda *_: 1 / 0)
    outcome, said = run(draw=random.Random(0))
    assert outcome == "failed"
    assert "ZeroDivisionError" in said
    monkeypatch.setattr(fuzz, "read", lambda _, folder, *__: (folder / "other").touch())
    assert run(draw=random.Random(0))[0] == "failed"


def test_a_type_starts_grows_and_opens_or_is_refused(load, factbook_corpus, tmp_path) -> None:
    start_from = load("start_from")
    assert start_from.row("bert", factbook_corpus, tmp_path)["result"] == "opens with 4 layers"
    assert "one list of layers" in start_from.row("albert", factbook_corpus, tmp_path)["result"]
