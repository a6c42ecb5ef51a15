"""Layers that use a submodule's weights directly call it where its calls are watched or changed."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from parity import relative_error
from torch import nn
from torch.nn.utils import parametrize, prune

from attnzoo.layers import ContMix, DilatedReparamConv, LargeKernelAttention, SparsifinerAttention

Run = Callable[[nn.Module], torch.Tensor]


def _maps(*shapes: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


def _case(name: str) -> tuple[nn.Module, Run, list[str]]:
    torch.manual_seed(0)
    if name == "lka":
        (x,) = _maps((2, 8, 9, 11))
        return LargeKernelAttention(8).double(), lambda layer: layer(x), ["local", "dilated", "point"]
    if name == "contmix":
        maps = _maps((2, 16, 14, 14), (2, 16, 14, 14), (2, 16, 14, 14))
        return ContMix(16, 7, num_heads=2).double().eval(), lambda layer: layer(*maps), ["weight_proj"]
    if name == "dilated":
        (x,) = _maps((2, 8, 9, 11))
        return DilatedReparamConv(8, 7).double().eval(), lambda layer: layer(x), ["large.conv", "branches.k5_1.norm"]
    (x,) = _maps((2, 17, 16))
    layer = SparsifinerAttention(16, 2, (4, 4), predictor=dict(reduce_n_factor=2)).double()
    return layer, lambda layer: layer(x)[0], ["predictor.proj_c_q", "predictor.proj_c_k"]


CASES = pytest.mark.parametrize("name", ["lka", "contmix", "dilated", "sparsifiner"])


class Same(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@CASES
def test_hooks_are_called_and_change_the_result(name: str) -> None:
    layer, run, paths = _case(name)
    with torch.no_grad():
        before, calls = run(layer), []
        for path in paths:
            module = layer.get_submodule(path)
            watched = module.register_forward_hook(lambda module, args, out: calls.append(module))
            assert relative_error(run(layer), before) < 1e-12
            watched.remove()
            changed = module.register_forward_hook(lambda module, args, out: out * 0)
            assert relative_error(run(layer), before) > 1e-6
            changed.remove()
        assert calls == [layer.get_submodule(path) for path in paths]
        assert torch.equal(run(layer), before)


@CASES
def test_a_forward_of_its_own_takes_part(name: str) -> None:
    """As accelerate gives modules whose weights are elsewhere until they are called."""
    layer, run, paths = _case(name)
    with torch.no_grad():
        before = run(layer)
        for path in paths:
            module = layer.get_submodule(path)
            module.forward = lambda x, forward=module.forward: forward(x) * 0
            assert relative_error(run(layer), before) > 1e-6
            del module.forward
        assert torch.equal(run(layer), before)


@CASES
def test_pruned_weights_are_trained(name: str) -> None:
    layer, run, paths = _case(name)
    for path in paths:
        prune.l1_unstructured(layer.get_submodule(path), "weight", 0.5)
    for _ in range(2):
        run(layer).square().sum().backward()


@CASES
def test_parametrizations_and_adapters_take_part(name: str) -> None:
    layer, run, paths = _case(name)
    with torch.no_grad():
        before = run(layer)
        for path in paths:
            parametrize.register_parametrization(layer.get_submodule(path), "weight", Same())
        assert relative_error(run(layer), before) < 1e-12
        adapted, _, _ = _case(name)
        for path in paths:
            parent, _, leaf = path.rpartition(".")
            module = adapted.get_submodule(path)
            setattr(adapted.get_submodule(parent), leaf, nn.Sequential(module, nn.Identity()))
        assert relative_error(run(adapted), before) < 1e-12


def test_norms_that_still_learn_their_statistics() -> None:
    layer, run, _ = _case("dilated")
    layer.large.norm.train()
    before = layer.large.norm.running_var.clone()
    run(layer)
    assert not torch.equal(layer.large.norm.running_var, before)


@pytest.mark.parametrize("name", ["contmix", "sparsifiner"])
def test_dynamic_quantization(name: str) -> None:
    layer, _, _ = _case(name)
    layer = layer.float()
    maps = _maps((2, 16, 14, 14), (2, 16, 14, 14), (2, 16, 14, 14)) if name == "contmix" else _maps((2, 17, 16))
    maps = [x.float() for x in maps]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch.ao is to move to torchao
        quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(layer), {nn.Linear})
        out, exact = quantized(*maps), layer(*maps)
    out, exact = (x[0] if isinstance(x, tuple) else x for x in (out, exact))
    assert out.isfinite().all() and relative_error(out, exact) < 0.3
