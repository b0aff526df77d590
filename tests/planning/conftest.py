"""Plans are made on one thread of the CPU."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _on_one_thread_of_the_cpu(monkeypatch):
    # Threads of steps so small wait for one another more than they work.
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
