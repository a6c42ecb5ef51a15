"""Whole models on fused kernels: what layers hand to them, and the gradients that come back."""

import pytest
import timm
import torch
from interp.cases import DEVICE
from parity import relative_error

import attnzoo  # noqa: F401  registers the models
from attnzoo.kernels import use_backend

# The interpreter takes minutes for the larger ones.
SMALL = ("biformer_nano", "dinat_nano")
FAMILIES = (*SMALL, "flowformer", "l2vit_tiny", "mavit_tiny", "overlock_xt")


def results(model: torch.nn.Module, images: torch.Tensor, backend: str) -> list[torch.Tensor]:
    """Logits, and the gradients of the images and of every parameter that has one."""
    images = images.detach().requires_grad_()
    parameters = [x for x in model.parameters() if x.requires_grad]
    # Convolutions of TF32, which PyTorch allows, would cover what is looked for.
    with use_backend(backend), torch.backends.cudnn.flags(allow_tf32=False):
        logits = model(images)
        gradients = torch.autograd.grad(logits.square().sum(), [images, *parameters], allow_unused=True)
    return [logits.detach(), *(x for x in gradients if x is not None)]


@pytest.mark.parametrize("name", FAMILIES if DEVICE == "cuda" else SMALL)
def test_model_and_its_gradients(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).eval().to(DEVICE)
    images = torch.randn(2, 3, 64, 32, device=DEVICE)
    found, usual = (results(model, images, backend) for backend in ("triton", "torch"))
    truth = results(model.double(), images.double(), "reference")
    assert len(found) == len(truth)
    for right, plain, fused in zip(truth, usual, found, strict=True):
        assert relative_error(fused, right) <= 2 * relative_error(plain, right) + 1e-6
