"""Set-up for every test: one thread, and one copy of the package."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

import attnzoo

# They take manifest.entries as it is when they are first imported, which must not be a test's own.
import attnzoo.tools.benchmarks.accuracies
import attnzoo.tools.table
import attnzoo.tools.weights
import attnzoo.weights.match

# The repository's root is a package, which pytest would import a second time under the folder's name.
sys.modules.setdefault(Path(attnzoo.__file__).parent.name, attnzoo)

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """A test draws the same numbers in every run, in whatever order and process."""
    torch.manual_seed(0)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--parity-results", metavar="FILE", help="write the relative error of every model's logits here")
    parser.addoption("--faults-results", metavar="FILE", help="write which faults of tests/faults are survived here")
    parser.addoption("--fuzz-results", metavar="FILE", help="write what a long run of tests/fuzz found here")


@pytest.fixture(scope="session")
def parity_results(request: pytest.FixtureRequest) -> Iterator[dict[str, float | None]]:
    """Collects, by model, the worst error of its fixtures; None where only names and shapes were compared.

    The file given by ``--parity-results`` is renewed for the models that were compared.
    """
    errors: dict[str, float | None] = {}
    yield errors
    if name := request.config.getoption("--parity-results"):
        file = Path(name)
        file.parent.mkdir(exist_ok=True)
        known = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(dict(sorted((known | errors).items())), indent=1) + "\n")
