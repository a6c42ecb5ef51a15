"""The dense backbone against the published detection and segmentation backbones, in float64 with strict loading."""

import pytest
import torch
from parity import (
    fast_float64_depthwise,
    index,
    load_spec,
    published_state,
    reference_input,
    relative_error,
    requires_fixture,
)

import attnzoo

TOLERANCE = 1e-6
FIXTURES = index()
DETECTORS = {
    name: FIXTURES["models"][name]["model"]
    for name in FIXTURES["models"]
    if (spec := load_spec(name)) is not None and spec.get("detector")
}

# The published dense AgentSwin shifts its windows also where one window covers the map, unlike the classifier.
SHIFTED_LAST_STAGE = "agent_swin"


def _check(maps: list[torch.Tensor], rows: list[dict], skip_last: bool = False) -> None:
    assert len(maps) == len(rows)
    for i, (found, row) in enumerate(zip(maps, rows, strict=True)):
        if skip_last and i == len(rows) - 1:
            continue
        assert list(found.shape) == row["shape"]
        values = found.flatten()[torch.tensor(row["index"])]
        assert relative_error(values, torch.tensor(row["value"], dtype=torch.float64)) < TOLERANCE, f"map {i}"


def _maps(backbone: attnzoo.Backbone, spec: dict, state: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    backbone = backbone.double().eval()
    backbone.load_state_dict(attnzoo.convert_checkpoint({"state_dict": state}, backbone), strict=True)
    with torch.no_grad(), fast_float64_depthwise():
        return backbone(reference_input(spec["input"]))


@pytest.mark.parametrize("fixture", sorted(FIXTURES["dense"]))
def test_dense_fixture(fixture: str) -> None:
    spec = requires_fixture(fixture)
    entry = FIXTURES["dense"][fixture]
    settings = {"dilations": spec["arguments"]["dilations"]} if "dilations" in spec["arguments"] else {}
    backbone = attnzoo.Backbone(entry["model"], out_norm=True, **entry.get("kwargs", {}), **settings)
    assert sum(p.numel() for p in backbone.parameters()) == spec["num_params"]
    _check(_maps(backbone, spec, published_state(spec)), spec["features"])


@pytest.mark.parametrize("fixture", sorted(DETECTORS))
def test_detector_of_a_classifier(fixture: str) -> None:
    spec = requires_fixture(fixture)
    detector = spec["detector"]
    backbone = attnzoo.Backbone(DETECTORS[fixture], out_norm=bool(detector["state"]))
    state = published_state(spec) | published_state({"state": detector["state"], "gain": spec.get("gain")})
    _check(_maps(backbone, spec, state), detector["features"], fixture.startswith(SHIFTED_LAST_STAGE))


def test_arguments_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"out_indices=\(0, 5\)"):
        attnzoo.Backbone("dinat_nano", out_indices=(0, 5))
    with pytest.raises(ValueError, match="frozen_stages=7"):
        attnzoo.Backbone("dinat_nano", frozen_stages=7)


def test_freezing_survives_train() -> None:
    backbone = attnzoo.Backbone("biformer_nano", out_indices=(1, 2), frozen_stages=0, norm_eval=True).train()
    assert not any(p.requires_grad for p in backbone.body.stem.parameters())
    assert not any(p.requires_grad for p in backbone.body.stages[0].parameters())
    assert all(p.requires_grad for p in backbone.body.stages[1].parameters())
    norms = [m for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and not any(m.training for m in norms)
    maps = backbone(torch.randn(2, 3, 64, 96))
    assert [m.shape[1] for m in maps] == backbone.out_channels
    assert len(backbone.body.stages) == 3
