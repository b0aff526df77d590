"""examples/glue_submission.py: the zip that GLUE's server takes."""

import sys
import zipfile
from pathlib import Path

import pytest
from finetuning_helpers import FAST

from stackbert.finetuning.study import finetune

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return __import__("glue_submission")


def test_the_zip_holds_what_the_server_takes(example, models, glue, tmp_path, monkeypatch, capsys):
    call = {"data": glue, "out": tmp_path / "out", "seeds": 2, "settings": [*FAST, "epochs=6"]}
    result = finetune(models[0], task="sst-2", test=True, **call)
    monkeypatch.setattr(sys, "argv", ["glue_submission.py", str(call["out"]), "--fill"])
    monkeypatch.setitem(example.FILES, "QQP.tsv", ("qqp", "test", 12))  # 390,965 take long
    example.main()
    (path,) = (call["out"] / "submission").glob("*.zip")
    assert "SST-2.tsv has 4 rows; the server expects 1,821." in capsys.readouterr().out
    first = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        texts = {name: archive.read(name).decode().splitlines() for name in archive.namelist()}
    assert texts.keys() == example.FILES.keys()
    assert texts["SST-2.tsv"] == ["index\tprediction", *(f"{n}\t1" for n in range(4))]
    for name, (_, _, size) in example.FILES.items():
        if name != "SST-2.tsv":
            assert [line.split("\t")[0] for line in texts[name][1:]] == list(map(str, range(size)))
    assert texts["MNLI-mm.tsv"][1] == "0\tentailment"
    _, notes = example.write_submission(call["out"], result, result.models[0], fill=False)
    assert "AX.tsv has no predictions." in notes
    example.main()
    assert path.read_bytes() == first  # the same bytes from the same predictions


def test_rows_come_in_the_order_of_the_index_and_similarities_are_clipped(example):
    rows = [{"key": "10", "prediction": 5.2}, {"key": "2", "prediction": -0.01}]
    assert example.table("sts-b", rows) == "index\tprediction\n2\t0.000\n10\t5.000\n"
