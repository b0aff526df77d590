"""What a plan prints, and what it refuses."""

import subprocess
import sys

import pytest
from planning_helpers import small
from stackbert.planning.devices import DEVICES, find_device
from stackbert.planning.table import duration, plan_table

import stackbert as sb


@pytest.mark.parametrize("name", [*(device.name for device in DEVICES), "rtx4090", "RTX-4090"])
def test_devices_are_found_by_name(name) -> None:
    assert find_device(name).name.lower().replace(" ", "") == name.lower().replace(" ", "").replace(
        "-", ""
    )


def test_an_unknown_device_is_a_sentence_with_the_names(stackbert) -> None:
    done = stackbert("plan", "demo", "--device", "TPU")
    assert done.code == 2
    assert "There is no device 'TPU'" in done.err
    for name in ("A100", "H100", "H200", "L4", "RTX 4090", "cpu", "here"):
        assert name in done.err
    assert "Traceback" not in done.err


def test_an_unknown_recipe_is_a_sentence(stackbert) -> None:
    done = stackbert("plan", "bert-bass", "--device", "H100")
    assert done.code == 2
    assert "There is no recipe 'bert-bass'" in done.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": "1h", "steps": 9}, "not both"),
        ({"corpus": "here", "vocab_size": 99}, "Give a corpus"),
        ({"mfu": 0.0}, "above 0 and at most 1"),
        ({"mfu": 1.5}, "above 0 and at most 1"),
        ({"mfu": 0.5, "device": "here"}, "no MFU to assume"),
        ({"price": -1.0}, "USD an hour"),
        ({"price": float("nan")}, "USD an hour"),
        ({"vocab_size": 3}, "too small"),
        ({"budget": "soon"}, "not a duration"),
        ({"corpus": "/nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be_planned_is_a_sentence(options, message) -> None:
    with pytest.raises(sb.UserError, match=message):
        sb.plan(small(), **{"device": "A100", **options})


def test_a_rate_that_the_table_lacks_is_a_sentence() -> None:
    with pytest.raises(sb.UserError, match="precision=fp32"):
        sb.plan(small("precision=bf16"), device="cpu")


def test_the_command_prints_the_plan(stackbert) -> None:
    done = stackbert("plan", "demo", "--device", "H200", "--price", "3", "--mfu", "0.3")
    assert done.code == 0, done.err
    planned = sb.plan(sb.load_recipe("demo"), device="H200", price=3.0, mfu=0.3)
    assert done.out.rstrip("\n") == plan_table(planned)
    assert "Plan of demo on H200, bf16, at an assumed MFU of 0.3" in done.out
    assert f"stacking saves {planned.saving:.0%}" in done.out
    assert f"{planned.cost:,.2f} USD stacked" in done.out
    assert "Peak 989 TFLOP/s" in done.out
    assert "Vocabulary 32,768 (the paper's" in done.out
    assert all(len(line) < 120 for line in done.out.splitlines())


def test_help_has_an_example_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, stackbert.cli; from typer.testing import CliRunner; "
        "result = CliRunner().invoke(stackbert.cli.app, ['plan', '--help']); "
        "assert 'Example: stackbert plan' in ' '.join(result.output.split()), result.output; "
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules); "
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (99.4, "99 s"), (100, "1.7 min"), (5999, "100.0 min"), (4.5e6, "1,250.0 h")],
)
def test_durations_in_a_readers_unit(seconds, text) -> None:
    assert duration(seconds) == text
