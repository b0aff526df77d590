"""Nobody is called: no network unless it is asked for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from security_helpers import RECIPE, TABLE, TEXT

NO_NETWORK = """
import os, sys

os.environ.pop("HF_HUB_OFFLINE", None)
os.environ.pop("TRANSFORMERS_OFFLINE", None)
asked = []


def hear(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        asked.append(f"{event} {arguments[1:]}")
        raise OSError("the network was asked")


sys.addaudithook(hear)
try:
    WORK
finally:
    if asked:
        sys.exit("\\n".join(asked))
"""
WORK = """
    import stackbert as sb
    from stackbert.recipe_files import parse_recipe

    recipe = parse_recipe(RECIPE, "tiny.yaml")
    corpus = sb.build_corpus("corpus", text=["text.txt"], vocab_size=128, validation=0.2)
    sb.pretrain(recipe, corpus="corpus", out="run")
    sb.grow_folder("run/model", "grown", depth=4)
    sb.measure_attention("grown", text="text.txt", compare="run/model")
    sb.plan(recipe, corpus="corpus", device="H100")
    own = sb.OwnData("own.csv", text="text", label="label")
    sb.finetune("grown", task=own, out="finetuned", seeds=1, settings=SETTINGS)
    print("done")
"""


def _without_network(work: str, folder: Path) -> subprocess.CompletedProcess[str]:
    script = NO_NETWORK.replace("    WORK", work.replace("RECIPE", repr(RECIPE)))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS"))}
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "hf")},
        capture_output=True,
        text=True,
    )


def test_the_network_is_never_asked(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "own.csv").write_text(TABLE)
    settings = repr(["max_steps=2", "precision=fp32"])
    done = _without_network(WORK.replace("SETTINGS", settings), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("done\n")


@pytest.mark.parametrize(
    "work",
    [
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')",
        "import socket; socket.create_connection(('localhost', 9))",
        # What a library might do: ask, and go on if nobody answers.
        "import contextlib, socket\n    with contextlib.suppress(OSError): "
        "socket.getaddrinfo('huggingface.co', 443)",
    ],
)
def test_asking_the_network_would_be_seen(work: str, tmp_path: Path) -> None:
    done = _without_network(f"    {work}", tmp_path)
    assert done.returncode == 1
    assert "socket." in done.stderr
