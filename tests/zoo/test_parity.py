"""Every published variant against what its reference implementation computes, in float64 with strict loading."""

import numpy as np
import pytest
import timm
import torch
from parity import (
    fast_float64_depthwise,
    index,
    load_arrays,
    load_spec,
    published_state,
    reference_input,
    relative_error,
    requires_fixture,
)

import attnzoo

TOLERANCE = 1e-6
MODELS = index()["models"]


def _reference_state(spec: dict, device: str = "cpu") -> dict[str, torch.Tensor]:
    """All that a published file of this variant holds, integer buffers and constants included."""
    state = published_state(spec, device=device)
    assert state, "the fixture lists no state"
    return state


def _check_maps(expected: list[dict], maps: list[torch.Tensor]) -> None:
    for i, row in enumerate(expected):
        assert list(maps[i].shape) == row["shape"], f"map {i}"
        found = maps[i].flatten()[torch.tensor(row["index"])]
        wanted = torch.tensor(row["value"], dtype=torch.float64)
        assert relative_error(found, wanted) < TOLERANCE, f"map {i} ({row['point']})"
        assert abs(maps[i].mean().item() - row["mean"]) < TOLERANCE * row["std"], f"map {i}: mean"
        # One group of fixtures records the population's deviation, the other the sample's.
        deviations = [maps[i].std(unbiased=unbiased).item() for unbiased in (False, True)]
        assert min(abs(found - row["std"]) for found in deviations) < TOLERANCE * row["std"], f"map {i}: deviation"


@pytest.mark.parametrize("fixture", sorted(MODELS))
def test_model_computes_what_the_reference_computes(fixture: str, parity_results: dict[str, float | None]) -> None:
    spec = requires_fixture(fixture)
    entry = MODELS[fixture]
    arrays = load_arrays(fixture)
    device = "cpu" if arrays else "meta"
    with torch.device(device):
        model = timm.create_model(entry["model"], num_classes=1000, **entry.get("kwargs", {})).double().eval()
    assert sum(p.numel() for p in model.parameters()) == spec["num_params"]
    state = attnzoo.convert_checkpoint({"model": _reference_state(spec, device)}, model)
    own = model.state_dict()
    assert set(state) == set(own)
    assert {key: value.shape for key, value in state.items()} == {key: value.shape for key, value in own.items()}
    if not arrays:
        parity_results.setdefault(entry["model"], None)
        return
    model.load_state_dict(state, strict=True)
    if noise := spec.get("noise"):
        draws = np.random.RandomState(noise["seed"])
        model.set_noise(lambda rows, columns: torch.from_numpy(draws.random_sample((rows, columns))))
    with torch.no_grad(), fast_float64_depthwise():
        features, maps = model.forward_intermediates(reference_input(spec["input"]))
        logits = model.forward_head(features)
    error = relative_error(logits, arrays["logits"])
    parity_results[entry["model"]] = max(error, parity_results.get(entry["model"]) or 0.0)
    assert error < TOLERANCE
    if expected := spec.get("features"):
        if len(expected) > len(maps):
            # OverLoCK's also hold maps from inside its third stage, which its own tests compare.
            shapes = [list(each.shape) for each in maps]
            expected = [row for row in expected if row["shape"] in shapes]
            assert len(expected) == len(maps)
        _check_maps(expected, maps[-len(expected) :])


def test_every_fixture_of_a_model_has_a_test() -> None:
    unknown = [name for name, entry in MODELS.items() if not timm.is_model(entry["model"])]
    assert not unknown, f"no model for {unknown}"


@pytest.mark.parametrize("size", [(97, 131), (256, 320)])
def test_published_names_and_own_names_load_alike(size: tuple[int, int]) -> None:
    spec = load_spec("nat_mini")
    first, second = (timm.create_model("nat_mini").eval() for _ in range(2))
    first.load_state_dict(_reference_state(spec))
    second.load_state_dict(first.state_dict())
    image = torch.randn(1, 3, *size)
    with torch.no_grad():
        assert torch.equal(first(image), second(image))
