"""One thread of the CPU for every run, so that all of them round in the same way."""

from collections.abc import Generator
from typing import Any

import pytest
import torch


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, Any, Any]:
    """Session-wide fixtures included; children have one thread, too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setattr("torch.cuda.is_available", lambda: False)
        result = yield
    torch.set_num_threads(threads)
    return result
