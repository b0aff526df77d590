"""Plans are made on one thread; the command line is run as a shell would."""

import sys
from types import SimpleNamespace

import pytest
import torch

from stackbert.__main__ import main


@pytest.fixture(autouse=True)
def _on_one_thread_of_the_cpu(monkeypatch):
    # Threads of steps so small wait for one another more than they work.
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def stackbert(monkeypatch, capsys):
    """Runs the command line as a shell would; gives exit code, output and errors."""

    def run(*arguments: object) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["stackbert", *map(str, arguments)])
        code: object = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run
