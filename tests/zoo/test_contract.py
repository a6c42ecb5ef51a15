"""timm's model contract over every name of the zoo: structure on the meta device, numbers on each family's smallest."""

import copy

import pytest
import timm
import torch
from timm.models import group_parameters

import attnzoo

NAMES = attnzoo.zoo.list_models()


def _family(name: str) -> str:
    return timm.model_entrypoint(name).__module__


def _parameters(name: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in timm.create_model(name).parameters())


def _smallest() -> list[str]:
    """One name a family file, the smallest of those that take images of ImageNet's size."""
    best: dict[str, tuple[int, str]] = {}
    for name in NAMES:
        if timm.get_pretrained_cfg(name).input_size[-1] >= 224:
            best[_family(name)] = min(best.get(_family(name), (10**12, "")), (_parameters(name), name))
    return sorted(name for _, name in best.values())


SMALLEST = _smallest()
PYRAMIDS = [name for name in SMALLEST if isinstance(timm.create_model(name), attnzoo.zoo.Pyramid)]


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(2, 3, 128, 160, generator=torch.Generator().manual_seed(0))


def build(name: str, **kwargs) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs)


@pytest.mark.parametrize("name", NAMES)
def test_structure(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name).eval()
        cfg = model.pretrained_cfg
        assert model(torch.randn(1, *cfg["input_size"])).shape == (1, cfg["num_classes"])
    names = set(model.state_dict())
    modules = [cfg[key] if isinstance(cfg[key], tuple) else (cfg[key],) for key in ("first_conv", "classifier")]
    assert {f"{module}.weight" for group in modules for module in group} <= names
    parameters = {key for key, _ in model.named_parameters()}
    assert set(model.no_weight_decay()) <= parameters
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse=coarse))
        assert sorted(key for keys in groups.values() for key in keys) == sorted(parameters)


@pytest.mark.parametrize("name", SMALLEST)
def test_heads(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name).eval()
        image = torch.randn(1, 3, 96, 128)
        features = model.forward_features(image)
        assert model.num_features == (features.shape[1] if model.output_fmt == "NCHW" else features.shape[-1])
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (1, model.head_hidden_size)
        model.reset_classifier(0)
        assert model(image).shape == pooled.shape
        model.reset_classifier(7)
        assert model(image).shape == (1, 7)
        grey = timm.create_model(name, in_chans=1, num_classes=5)
        assert grey(torch.randn(2, 1, 96, 128)).shape == (2, 5)
        assert timm.create_model(name, num_classes=0, global_pool="").eval()(image).ndim == features.ndim


@pytest.mark.parametrize("name", SMALLEST)
@pytest.mark.parametrize("size", [(97, 131), (256, 320)])
def test_any_size(name: str, size: tuple[int, int]) -> None:
    model = build(name, features_only=True).eval()
    with torch.no_grad():
        maps = model(torch.randn(1, 3, *size))
    for found, channels, stride in zip(
        maps, model.feature_info.channels(), model.feature_info.reduction(), strict=True
    ):
        assert found.shape[1] == channels
        assert all(abs(n - side / stride) < 1.0 for n, side in zip(found.shape[2:], size, strict=True))
        assert found.isfinite().all()


@pytest.mark.parametrize("name", SMALLEST)
def test_intermediates_and_pruning(name: str, image: torch.Tensor) -> None:
    model = build(name).eval()
    with torch.no_grad():
        features, maps = model.forward_intermediates(image)
        torch.testing.assert_close(features, model.forward_features(image))
        chosen = [len(maps) - 2, len(maps) - 1]
        for options in ({"stop_early": True}, {}):
            some = model.forward_intermediates(image, chosen[:1], intermediates_only=True, **options)
            torch.testing.assert_close(some[0], maps[chosen[0]])
        nhwc = model.forward_intermediates(image, chosen, output_fmt="NHWC", intermediates_only=True)
        torch.testing.assert_close(nhwc[-1].permute(0, 3, 1, 2), maps[-1])
        pruned = copy.deepcopy(model)
        assert pruned.prune_intermediate_layers(chosen[:1]) == chosen[:1]
        torch.testing.assert_close(pruned.forward_intermediates(image, intermediates_only=True)[-1], maps[chosen[0]])
    with pytest.raises(ValueError, match="output_fmt"):
        model.forward_intermediates(image, output_fmt="CHW")


@pytest.mark.parametrize("name", SMALLEST)
def test_gradients_with_and_without_checkpointing(name: str, image: torch.Tensor) -> None:
    model = build(name, num_classes=10).train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.0
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(0)
        model(image).square().mean().backward()
        missing = [key for key, p in model.named_parameters() if p.grad is None]
        assert not missing, f"no gradient: {missing[:5]}"
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", SMALLEST)
def test_batch_of_none_and_memory_format(name: str, image: torch.Tensor) -> None:
    model = build(name, num_classes=10).eval()
    with torch.no_grad():
        assert model(image[:0]).shape == (0, 10)
        wanted = model(image)
        found = model.to(memory_format=torch.channels_last)(image.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SMALLEST)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(name: str, image: torch.Tensor, dtype: torch.dtype) -> None:
    model = build(name, num_classes=10).eval()
    with torch.no_grad():
        wanted = model(image)
        with torch.autocast("cpu", dtype):
            found = model(image)
    assert found.isfinite().all()
    bound = 5e-2 if dtype == torch.bfloat16 else 1e-2
    assert (found.float() - wanted).norm() < bound * wanted.norm()


@pytest.mark.compiles
@pytest.mark.parametrize("name", SMALLEST)
def test_compiles_without_a_graph_break(name: str, image: torch.Tensor) -> None:
    model = build(name, num_classes=10).eval()
    torch._dynamo.reset()
    with torch.no_grad():
        found = torch.compile(model, fullgraph=True, backend="aot_eager")(image)
        torch.testing.assert_close(found, model(image), rtol=1e-4, atol=1e-5)


@pytest.mark.compiles
@pytest.mark.parametrize("name", SMALLEST)
def test_exports_with_a_dynamic_batch(name: str, image: torch.Tensor) -> None:
    model = build(name, num_classes=10).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad():
        program = torch.export.export(model, (image,), dynamic_shapes={"x": {0: batch}})
        three = torch.cat([image, image[:1]])
        torch.testing.assert_close(program.module()(three), model(three), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALLEST)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_reduces_the_loss(name: str, dtype: torch.dtype) -> None:
    model = build(name, num_classes=10).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    images, labels = torch.randn(4, 3, 64, 64), torch.arange(4)
    losses = []
    for _ in range(6):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = torch.nn.functional.cross_entropy(model(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0], losses


@pytest.mark.parametrize("name", SMALLEST)
def test_state_survives_copy_save_and_dtype(name: str, image: torch.Tensor, tmp_path) -> None:
    model = build(name, num_classes=10).eval()
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other = timm.create_model(name, num_classes=10, checkpoint_path=str(tmp_path / "state.pt")).eval()
    with torch.no_grad():
        wanted = model(image)
        assert torch.equal(other(image), wanted)
        assert torch.equal(copy.deepcopy(model)(image), wanted)
        assert model.to(torch.bfloat16)(image.to(torch.bfloat16)).dtype == torch.bfloat16
