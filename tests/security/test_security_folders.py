"""No name in a file, and no link, leads out of its folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from security_helpers import RECIPE
from stackbert.recipe_files import parse_recipe

import stackbert as sb


def _edit(path: Path, change: Callable[[Any], None]) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


OUTSIDE = ("../outside", "/etc/hostname", "..", "a/b", "x\0y", "")


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_comparison_s_keys_stay_in_its_folder(name: str, made) -> None:
    folder = made("comparison")
    _edit(folder / "comparison.json", lambda v: v["entries"][0].update(key=name))
    with pytest.raises(sb.UserError, match=r"comparison\.json is damaged"):
        sb.report(folder, folder / "report.html")


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("what", ["member", "task"])
def test_a_fine_tuning_record_s_names_stay_in_its_folder(what: str, name: str, made) -> None:
    folder = made("study")

    def change(value: dict[str, Any]) -> None:
        if what == "member":
            value["contenders"][0]["members"][0]["key"] = name
        else:
            value["tasks"] = {name: {**value["tasks"]["rte"], "name": name}}

    _edit(folder / "finetune.json", change)
    with pytest.raises(sb.UserError, match=r"finetune\.json is damaged"):
        sb.report(folder, folder / "report.html")


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_s_weights_stay_in_its_folder(name: str, finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished / "model", tmp_path / "theirs")
    (folder / "model.safetensors").rename(tmp_path / "outside")
    name = f"{name}.safetensors" if name == "a/b" else name
    index = {"metadata": {}, "weight_map": {"bert.embeddings.word_embeddings.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(sb.UserError, match=r"index\.json is damaged: .* is no file of this folder"):
        sb.grow_folder(folder, tmp_path / "grown", depth=4)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_state_s_checksums_are_of_its_own_folder(
    name: str, finished: Path, tmp_path: Path
) -> None:
    """With a checksum of its own that agrees: the file outside is not even read."""
    from stackbert.pretraining import checkpoints

    folder = shutil.copytree(finished / "checkpoints" / "step-00000004", tmp_path / "step-00000004")
    path = folder / checkpoints.STATE
    value = json.loads(path.read_text(encoding="utf-8"))
    del value["own_sha256"]
    value["sha256"][name] = "0" * 64
    value["own_sha256"] = checkpoints._digest(value)
    path.write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(checkpoints.DamagedCheckpointError, match="no file of its folder"):
        checkpoints.read_state(folder)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_manifest_s_shards_stay_in_their_folder(
    name: str, corpus: sb.Corpus, tmp_path: Path
) -> None:
    folder = shutil.copytree(corpus.folder, tmp_path / "corpus")

    def change(value: dict[str, Any]) -> None:
        sums = value["train"]["shards"][0]["sha256"]
        sums[name] = sums.pop("tokens-00000.npy")

    _edit(folder / "manifest.json", change)
    with pytest.raises(sb.UserError, match=r"manifest\.json is damaged"):
        sb.open_corpus(folder)


def test_a_link_in_a_checkpoint_or_a_corpus_brings_nothing_from_elsewhere(
    finished: Path, corpus: sb.Corpus, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("secret")
    model = shutil.copytree(finished / "model", tmp_path / "theirs")
    (model / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(sb.UserError, match=r"notes\.txt is a symbolic link to"):
        sb.grow_folder(model, tmp_path / "grown", depth=4)
    assert not (tmp_path / "grown").exists()
    text = shutil.copytree(corpus.folder, tmp_path / "corpus")
    (text / "tokenizer" / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(sb.UserError, match=r"notes\.txt is a symbolic link to"):
        sb.open_corpus(text)


def test_a_run_s_ledger_that_is_a_link_is_not_written_through(
    corpus: sb.Corpus, tmp_path: Path
) -> None:
    run, victim = tmp_path / "run", tmp_path / "victim"
    recipe = parse_recipe(RECIPE, "tiny.yaml")
    sb.pretrain(recipe, corpus=corpus, out=run)
    shutil.rmtree(run / "model")
    (run / "metrics.jsonl").rename(victim)
    (run / "metrics.jsonl").symlink_to(victim)
    before = victim.read_bytes()
    with pytest.raises(sb.UserError, match=r"metrics\.jsonl is a symbolic link"):
        sb.pretrain(recipe, corpus=corpus, out=run)
    assert victim.read_bytes() == before
