"""What the published implementations compute, for tests: the fixtures, and the weights and inputs they belong to.

The fixtures lie in ATTNZOO_PARITY, else in ../shared/parity beside the repository; where there are none, a small set
of them is in tests/fixtures.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from float64_depthwise import fast_float64_depthwise
from recipe import reference_input, reference_state, reference_tensor, state_rows

__all__ = [
    "PARITY",
    "fast_float64_depthwise",
    "index",
    "load_arrays",
    "load_spec",
    "published_state",
    "reference_input",
    "reference_state",
    "reference_tensor",
    "relative_error",
    "requires_fixture",
    "state_rows",
]

_TESTS = Path(__file__).parent


def _folder() -> Path:
    if given := os.environ.get("ATTNZOO_PARITY"):
        if not Path(given).is_dir():
            raise FileNotFoundError(f"ATTNZOO_PARITY is {given!r}, which is no folder")
        return Path(given)
    beside = _TESTS.parent / "../shared/parity"
    return beside.resolve() if beside.is_dir() else _TESTS / "fixtures"


PARITY = _folder()


def index() -> dict:
    """Which model of the project each fixture belongs to: "models", "dense", "ops" and "other"."""
    file = PARITY / "index.json"
    if file.is_file():
        return json.loads(file.read_text())
    ops = sorted(path.stem for path in PARITY.glob("op_*.json"))
    return {"models": {}, "dense": {}, "ops": ops, "other": {}}


def load_spec(name: str) -> dict | None:
    """The fixture's description, or None where it is not there."""
    file = PARITY / f"{name}.json"
    return json.loads(file.read_text()) if file.is_file() else None


def load_arrays(name: str) -> dict[str, torch.Tensor]:
    """The fixture's stored outputs as float64, float32 when they were stored; empty where it has none."""
    file = PARITY / f"{name}.npz"
    if not file.is_file():
        return {}
    with np.load(file, allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key].astype(np.float64)) for key in arrays.files}


def requires_fixture(name: str) -> dict:
    """The fixture's description; skips the test where it is not there."""
    spec = load_spec(name)
    if spec is None:
        pytest.skip(f"no fixture {name}.json; set ATTNZOO_PARITY to the folder of the fixtures")
    return spec


def published_state(spec: dict, device: str = "cpu") -> dict[str, torch.Tensor]:
    """A state dictionary as the published file has it: also what no conversion may read, integer buffers and
    constants, which are zeros. On ``meta`` no values are drawn."""
    rows = state_rows(spec)
    if device == "meta":
        state = {key: torch.empty(shape, dtype=torch.float64, device="meta") for key, shape in rows}
    else:
        state = reference_state(rows, spec.get("gain"))
    for key, shape in spec.get("constants", ()):
        state[key] = torch.zeros(shape, dtype=torch.float64, device=device)
    integers = spec.get("integers", ())
    if "*.num_batches_tracked" in integers:
        norms = [key.removesuffix(".running_var") for key, _ in rows if key.endswith(".running_var")]
        integers = [key for key in integers if "*" not in key] + [f"{norm}.num_batches_tracked" for norm in norms]
    for key in integers:
        state[key] = torch.zeros((), dtype=torch.int64, device=device)
    return state


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """``|found - expected| / |expected|`` (Frobenius, in float64); infinite where a value is not finite."""
    if found.shape != expected.shape:
        raise AssertionError(f"shape {tuple(found.shape)}, expected {tuple(expected.shape)}")
    found, expected = (x.detach().double().cpu() for x in (found, expected))
    error = (found - expected).norm() / expected.norm().clamp(min=1e-300)
    return error.item() if torch.isfinite(found).all() else float("inf")
