"""What the tests of growth ask of models."""

import pytest
import torch

from tiny_encoders import KINDS


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request):
    return request.param


@pytest.fixture
def token_ids():
    return torch.randint(5, 96, (4, 24), generator=torch.Generator().manual_seed(7))


@pytest.fixture
def logits(token_ids):
    def of(model):
        with torch.no_grad():
            return model.eval()(token_ids).logits

    return of
