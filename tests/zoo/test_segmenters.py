"""Segmenters: every decoder on several backbones, learning one photograph, export, and the cost of the linear one."""

from pathlib import Path

import pytest
import timm
import torch
from heads_data import photograph
from safetensors.torch import save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import attnzoo
from attnzoo.zoo.segmentation import ATTENTIONS, LinearAttentionDecoder, Segmenter, segmentation_loss

KINDS = ("semantic_fpn", "upernet", "fcn", "agent", "mala", "flow")
MODELS = ("dinat_nano", "biformer_nano", "van_b0", "resnet10t")


def _segmenter(kind: str, backbone: str | nn.Module, num_classes: int = 3, **kwargs) -> Segmenter:
    """A narrow one; the linear decoder by its attention's name."""
    if kind in ATTENTIONS:
        return attnzoo.create_segmenter(
            "linear", backbone, num_classes, attention=kind, channels=32, num_heads=2, **kwargs
        )
    if kind == "semantic_fpn":
        kwargs["fpn_channels"] = 32
    return attnzoo.create_segmenter(kind, backbone, num_classes, channels=32, **kwargs)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_any_size_and_every_parameter_trains(kind: str, model: str) -> None:
    torch.manual_seed(0)
    segmenter = _segmenter(kind, model)
    logits = segmenter(torch.randn(2, 3, 61, 90))
    assert logits.shape == (2, 3, 61, 90) and logits.dtype == torch.float32
    segmentation_loss(logits, torch.randint(0, 3, (2, 61, 90))).backward()
    gradients = {name: p.grad for name, p in segmenter.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()] == []
    first = next(name for name, p in segmenter.named_parameters() if p.ndim > 1)
    assert first.startswith("backbone.") and gradients[first].abs().sum() > 0
    with torch.no_grad():
        for size in ((33, 7), (64, 96)):
            assert segmenter.eval()(torch.randn(1, 3, *size)).shape == (1, 3, *size)


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_round_trip(kind: str) -> None:
    torch.manual_seed(0)
    segmenter, other = (_segmenter(kind, "biformer_nano", auxiliary=True).eval() for _ in range(2))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.equal(segmenter(image), other(image))
        other.load_state_dict(segmenter.state_dict(), strict=True)
        assert torch.equal(segmenter(image), other(image))


@pytest.mark.parametrize(("kind", "model"), [*((kind, "resnet10t") for kind in KINDS), ("fcn", "dinat_nano")])
def test_exports_with_any_batch(kind: str, model: str) -> None:
    torch.manual_seed(0)
    segmenter = _segmenter(kind, model).eval()
    batch = torch.export.Dim("batch", min=1, max=16)
    exported = torch.export.export(segmenter, (torch.randn(2, 3, 61, 90),), dynamic_shapes=({0: batch},)).module()
    images = torch.randn(3, 3, 61, 90)
    with torch.no_grad():
        torch.testing.assert_close(exported(images), segmenter(images))


@pytest.mark.parametrize(
    ("kind", "model"), [("upernet", "biformer_nano"), ("agent", "biformer_nano"), ("mala", "dinat_nano")]
)
def test_learns_one_photograph(kind: str, model: str) -> None:
    torch.manual_seed(0)
    segmenter = _segmenter(kind, model, num_classes=2)
    image, mask = photograph()
    image = ((image - 0.5) / 0.25)[None]
    optimizer = torch.optim.AdamW(segmenter.parameters(), lr=2e-3)
    history = []
    for _ in range(40):
        loss = segmentation_loss(segmenter(image), mask[None].long())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(segmenter.parameters(), 1.0)
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.3 * history[0]
    with torch.no_grad():
        assert (segmenter.eval()(image).argmax(1) == mask).float().mean() > 0.95


class _Largest(TorchDispatchMode):
    """The most elements that any intermediate has."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [each.numel() for each in tree_leaves(out) if isinstance(each, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return out


@pytest.mark.parametrize("fusion_stride", [4, 8])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_the_linear_decoder_is_linear_in_the_pixels(attention: str, fusion_stride: int) -> None:
    channels, strides = (8, 16, 32, 64), (4, 8, 16, 32)
    decoder = LinearAttentionDecoder(
        channels, strides, 3, attention=attention, channels=32, num_heads=2, fusion_stride=fusion_stride
    )
    largest = []
    for side in (256, 512):
        maps = [torch.randn(1, c, side // s, side // s) for c, s in zip(channels, strides, strict=True)]
        with _Largest() as count:
            decoder(maps).sum().backward()
        largest.append(count.elements)
    # A matrix of all pairs of tokens would be the largest of the second run, and sixteen times that of the first.
    assert largest[1] <= 4.1 * largest[0]


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_the_linear_decoder_sees_the_whole_image(attention: str) -> None:
    torch.manual_seed(0)
    decoder = LinearAttentionDecoder((8, 16), (4, 8), 3, attention=attention, channels=32, num_heads=2, dropout=0.0)
    maps = [torch.randn(1, 8, 64, 64, requires_grad=True), torch.randn(1, 16, 32, 32, requires_grad=True)]
    decoder(maps)[0, :, 0, 0].sum().backward()
    assert maps[1].grad[0, :, -1, -1].abs().sum() > 0


def test_auxiliary_head_is_for_training_only() -> None:
    segmenter = _segmenter("upernet", "dinat_nano", auxiliary=True)
    image, target = torch.randn(1, 3, 50, 70), torch.randint(0, 3, (1, 50, 70))
    logits = segmenter.train()(image)
    assert [each.shape for each in logits] == [(1, 3, 50, 70)] * 2
    expected = nn.functional.cross_entropy(logits[0], target) + 0.4 * nn.functional.cross_entropy(logits[1], target)
    torch.testing.assert_close(segmentation_loss(logits, target), expected)
    assert segmenter.eval()(image).shape == (1, 3, 50, 70)


def test_loss_of_labelled_pixels_only() -> None:
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    target, weight = torch.randint(0, 3, (2, 4, 5)), torch.tensor([1.0, 2.0, 0.5])
    target[0] = 255
    for weights in (None, weight):
        expected = nn.functional.cross_entropy(logits, target, weights, ignore_index=255)
        torch.testing.assert_close(segmentation_loss(logits, target.to(torch.uint8), weight=weights), expected)
        nothing = segmentation_loss(logits, torch.full_like(target, 255), weight=weights)
        (gradient,) = torch.autograd.grad(nothing, logits)
        assert nothing == 0 and torch.equal(gradient, torch.zeros_like(gradient))
    with pytest.raises(ValueError, match=r"logits \(2, 3, 4, 5\) need a target \[B, H, W\], got \(2, 5, 4\)"):
        segmentation_loss(logits, target.mT)


def test_padding_leaves_the_image_where_it_was() -> None:
    torch.manual_seed(0)
    segmenter = _segmenter("fcn", "dinat_nano").eval()
    image = torch.zeros(1, 3, 64, 96)
    image[..., :40, :70] = torch.randn(1, 3, 40, 70)
    with torch.no_grad():
        torch.testing.assert_close(segmenter(image[..., :40, :70]), segmenter(image)[..., :40, :70])


def test_backbones_that_are_modules_and_dilated_ones() -> None:
    image = torch.randn(1, 3, 40, 72)
    for backbone in (attnzoo.Backbone("dinat_nano", out_indices=(1, 3)), attnzoo.Backbone("van_b0", out_norm=True)):
        assert _segmenter("upernet", backbone)(image).shape == (1, 3, 40, 72)
    dilated = _segmenter("semantic_fpn", "resnet10t", output_stride=8)
    assert dilated.multiple == 8 and dilated(image).shape == (1, 3, 40, 72)
    gray = _segmenter("agent", "dinat_nano", in_chans=1, drop_path_rate=0.1)
    assert gray(image[:, :1]).shape == (1, 3, 40, 72)


def test_trained_weights_reach_the_backbone(tmp_path: Path) -> None:
    classifier = timm.create_model("dinat_nano.digits", pretrained=True).state_dict()
    save_file(classifier, tmp_path / "classifier.safetensors")
    for name, kwargs in (
        ("dinat_nano.digits", {"pretrained": True}),
        ("dinat_nano", {"checkpoint": str(tmp_path / "classifier.safetensors")}),
    ):
        body = _segmenter("fcn", name, **kwargs).backbone.body.state_dict()
        assert len(body) > 100 and all(torch.equal(classifier[key], value) for key, value in body.items())


@pytest.mark.parametrize(
    ("arguments", "kwargs", "message"),
    [
        (("upnet", "dinat_nano", 3), {}, r"unknown kind 'upnet'; did you mean upernet"),
        (("upernet", "vann_b0", 3), {}, r"'vann_b0'; did you mean van_b0"),
        (("upernet", "nat_isotropic_small", 3), {}, r"strides \(16, 16, 16, 16\), no pyramid.*biformer_tiny"),
        (("upernet", "dinat_nano", 0), {}, r"num_classes=0 is below 1"),
        (("linear", "dinat_nano", 3), {"attention": "malla"}, r"unknown attention 'malla'; did you mean mala"),
        (("linear", "dinat_nano", 3), {"fusion_stride": 6}, r"fusion_stride=6 is none .* \(4, 8, 16, 32\)"),
        (("linear", "dinat_nano", 3), {"depth": 0}, r"depth=0 is below 1"),
        (("linear", "dinat_nano", 3), {"num_heads": 7}, r"num_heads=7 does not divide dim=256"),
        (("fcn", "dinat_nano", 3), {"level": 4}, r"level=4: the backbone has maps 0 to 3"),
        (("upernet", "dinat_nano", 3), {"attention": "mala"}, r"attention is an argument of LinearAttentionDecoder"),
    ],
)
def test_wrong_arguments(arguments: tuple, kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        attnzoo.create_segmenter(*arguments, **kwargs)
    assert "\n" not in str(caught.value)
