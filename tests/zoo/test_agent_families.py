"""Agent attention families: the published detection backbones, and checkpoints of another size than the model."""

import pytest
import timm
import torch
from parity import (
    fast_float64_depthwise,
    published_state,
    reference_input,
    reference_state,
    relative_error,
    requires_fixture,
)

import attnzoo

GRIDS = {"agent_pvt_tiny": ((3, 3), (4, 4), (7, 7), (7, 7)), "agent_swin_tiny": ((3, 3), (4, 4), (7, 7), (7, 7))}
# The published detection Swin shifts the windows of its last stage, where one covers the map; the classifier does not.
SAME_STAGES = {"agent_pvt_tiny": 4, "agent_swin_tiny": 3}
FAMILIES = ["agent_deit_tiny", "agent_pvt_tiny", "agent_swin_tiny", "agent_cswin_tiny"]


@pytest.mark.parametrize("name", GRIDS)
def test_detection_backbone(name: str) -> None:
    spec = requires_fixture(name)
    state = published_state(spec) | reference_state(spec["detector"]["state"], spec.get("gain"))
    backbone = attnzoo.zoo.Backbone(name, out_norm=bool(spec["detector"]["state"]), agent_grids=GRIDS[name]).double()
    backbone.eval().load_state_dict(state)
    with torch.no_grad(), fast_float64_depthwise():
        maps = backbone(reference_input(spec["input"]))
    rows = spec["detector"]["features"]
    for row, found in list(zip(rows, maps, strict=True))[: SAME_STAGES[name]]:
        assert list(found.shape) == row["shape"]
        values = found.flatten()[torch.tensor(row["index"])]
        assert relative_error(values, torch.tensor(row["value"], dtype=torch.float64)) < 1e-6


@pytest.mark.parametrize("name", FAMILIES)
def test_a_checkpoint_of_another_size_computes_the_same(name: str) -> None:
    state = published_state(requires_fixture(name))
    small, large, wide = (timm.create_model(name, img_size=n).double().eval() for n in (224, 288, (288, 224)))
    for model in (small, large):
        model.load_state_dict(state)
    wide.load_state_dict(attnzoo.convert_checkpoint(small.state_dict(), wide))
    image = torch.randn(1, 3, 288, 288, dtype=torch.float64)
    with torch.no_grad(), fast_float64_depthwise():
        assert relative_error(large(image), small(image)) < 1e-6
        assert relative_error(wide(image[..., :224]), small(image[..., :224])) < 1e-6


@pytest.mark.parametrize("name", ["agent_pvt_tiny", "agent_swin_tiny", "agent_cswin_tiny"])
def test_more_agents_than_trained(name: str) -> None:
    state = published_state(requires_fixture(name))
    stages = 2 if name == "agent_cswin_tiny" else 4
    grids = ((5, 6), (6, 4), (9, 8), (7, 7))[:stages]
    resized = timm.create_model(name, num_agents=grids).double().eval()
    in_use = timm.create_model(name, agent_grids=grids).double().eval()
    for model in (resized, in_use):
        model.load_state_dict(state)
    image = torch.randn(1, 3, 96, 128, dtype=torch.float64)
    with torch.no_grad(), fast_float64_depthwise():
        found, expected = resized(image), in_use(image)
    assert relative_error(found, expected) < 1e-10
    assert relative_error(timm.create_model(name).double().eval()(image), expected) > 1e-3


def test_an_image_smaller_than_the_patches() -> None:
    model = timm.create_model("agent_pvt_tiny").eval()
    assert model(torch.zeros(1, 3, 32, 40)).shape == (1, 1000)
    with pytest.raises(ValueError, match="an image of 31x40 is too small; images of 32x32 and more work"):
        model(torch.zeros(1, 3, 31, 40))


def test_arguments() -> None:
    with pytest.raises(ValueError, match=r"agent_depths=\(2, 3, 0, 0\) does not fit depths=\(2, 2, 6, 2\)"):
        timm.create_model("agent_swin_tiny", agent_depths=(2, 3, 0, 0))
    with pytest.raises(ValueError, match="num_agents=0"):
        timm.create_model("agent_pvt_tiny", num_agents=(9, 16, 49, 0))
