"""What a run leaves opens with transformers alone, and is the model that was trained."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from pretraining_helpers import checkpoints, tiny_recipe
from safetensors.torch import load_file
from stackbert.modelcard import model_card
from stackbert.pretraining.summary import summarise

import stackbert as sb
from stackbert.pretraining import run as run_module
from stackbert.pretraining.checkpoints import checkpoint_name
from stackbert.pretraining.loop import TrainingLoop

RECIPE = tiny_recipe(
    optimizer__name="muon",
    checkpoint__every_steps=1,
    checkpoint__keep=99,
    model__hidden_dropout_prob=0.1,
)
IDS = torch.arange(5, 21).reshape(2, 8)

# Run where no stackbert can be imported.
OPENER = """
import sys, torch
sys.modules["stackbert"] = None
from safetensors.torch import save_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

out, *folders = sys.argv[1:]
ids = torch.arange(5, 21).reshape(2, 8)
logits = {}
for folder in folders:
    model, report = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    assert not model.training
    with torch.no_grad():
        logits[folder] = model(input_ids=ids).logits
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer(" country" * 99, truncation=True).input_ids) == 16
fill = pipeline("fill-mask", model=folders[-1], top_k=3)
for answer in fill(f"The capital of the {fill.tokenizer.mask_token} is the largest city."):
    print(answer["token_str"], answer["score"])
try:
    import stackbert
    sys.exit("stackbert could be imported")
except ImportError:
    pass
save_file(logits, out)
"""


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    training = model.training
    model.train(False)
    with torch.no_grad():
        logits = model(input_ids=IDS).logits
    model.train(training)
    return logits


@pytest.fixture(scope="module")
def saved(corpus, tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A run, and the logits of the model in training whenever it was saved."""
    run = tmp_path_factory.mktemp("saved") / "run"
    seen: dict[str, torch.Tensor] = {}
    true, true_save = run_module.save_model, TrainingLoop._save

    def exporting(model, folder, *rest, **named):
        seen[str(folder).removesuffix(".partial")] = logits_of(model)
        true(model, folder, *rest, **named)

    def saving(loop):  # written on another thread, while the model trains on
        name = checkpoint_name(loop._at.step)
        seen[str(run / "checkpoints" / name)] = logits_of(loop.trainer.model)
        true_save(loop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingLoop, "_save", saving)
        patch.setattr("stackbert.pretraining.run.save_model", exporting)
        sb.pretrain(RECIPE, corpus=corpus, out=run)
    return run, seen


def test_every_checkpoint_opens_without_stackbert_and_gives_the_trainers_logits(
    saved, tmp_path: Path
) -> None:
    """The first one, before and after each growth, the last, and the exported model."""
    run, seen = saved
    steps = (1, 6, 7, 12, 13, 18)
    folders = [str(checkpoints(run)[step]) for step in steps] + [str(run / "model")]
    out = tmp_path / "logits.safetensors"
    done = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", "-c", OPENER, str(out), *folders],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
    opened = load_file(out)
    for folder in folders:
        torch.testing.assert_close(opened[folder], seen[folder], rtol=0, atol=1e-6)
    depths = [
        json.loads((Path(f) / "config.json").read_text())["num_hidden_layers"] for f in folders
    ]
    assert depths == [1, 1, 2, 2, 4, 4, 4]
    # The comparison tells one step from the next.
    assert not torch.allclose(opened[folders[0]], opened[folders[1]], atol=1e-4)


def test_every_step_was_saved_and_each_differs(saved) -> None:
    run, seen = saved
    assert list(checkpoints(run)) == list(range(1, 19))
    assert len(seen) == 19
    assert torch.equal(seen[str(run / "model")], seen[str(checkpoints(run)[18])])


def test_the_model_cards_header_parses_and_its_text_says_how_it_was_trained(saved, corpus) -> None:
    run, _ = saved
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    _, header, text = card.split("---\n", 2)
    fields = yaml.safe_load(header)
    assert fields["library_name"] == "transformers"
    assert fields["pipeline_tag"] == "fill-mask"
    assert "stackbert" in fields["tags"]
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert cells == [["depth", "steps"], ["1", "6"], ["2", "6"], ["4", "6"]]
    assert f"{summarise(run).loss:.3f} nats" in text
    assert corpus.manifest.fingerprint in text
    recipe = text.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(recipe) == yaml.safe_load(RECIPE.to_yaml())


def test_the_model_cards_header_stands_whatever_the_names(corpus, undisturbed) -> None:
    """Sources come from the file system; none can break out of its line into the header."""
    sources = tuple(
        replace(corpus.manifest.sources[0], name=name)
        for name in ("---\ntags: [x]\n---\n", "a`b", "# heading\n\n```", "| pipe |")
    )
    run = undisturbed(tiny_recipe())
    card = model_card(
        tiny_recipe(), replace(corpus.manifest, sources=sources), summarise(run), {"stackbert": "1"}
    )
    assert yaml.safe_load(card.split("---\n", 2)[1])["pipeline_tag"] == "fill-mask"


def test_next_sentence_models_keep_their_second_head(corpus, undisturbed) -> None:
    from transformers import AutoModelForMaskedLM, AutoModelForNextSentencePrediction

    recipe = tiny_recipe(objective__next_sentence=True, batch__sequence_length=24)
    folder = undisturbed(recipe) / "model"
    assert "cls.seq_relationship.weight" in load_file(folder / "model.safetensors")
    for opener in (AutoModelForMaskedLM, AutoModelForNextSentencePrediction):
        _, report = opener.from_pretrained(folder, output_loading_info=True)
        assert not report["missing_keys"], opener
