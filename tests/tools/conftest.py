from collections.abc import Iterator

import pytest
from evaluation_data import signals


@pytest.fixture
def no_signals() -> Iterator[None]:
    """What a test asked the probe to be sent is forgotten."""
    signals.clear()
    yield
    signals.clear()
