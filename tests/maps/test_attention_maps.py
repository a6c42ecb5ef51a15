"""What attention_maps promises beside the weights: which keys, which rows, and that it leaves nothing behind."""

import threading

import pytest
import timm
import torch
import torch.nn.functional as F
from skimage import data
from torch import Tensor, nn

from attnzoo.kernels import bi_level_routing_attention, neighborhood_attention, observe_ops
from attnzoo.kernels.dispatch import _observer
from attnzoo.zoo import attention_maps, list_models
from attnzoo.zoo.maps.tap import HeadRemover

SMALLEST = ("nano", "xs", "tiny", "mini", "b0", "small")


def photograph(height: int = 96, width: int = 96) -> Tensor:
    image = torch.from_numpy(data.chelsea().copy()).permute(2, 0, 1).float() / 255
    return F.interpolate(image[None, :, :300], (height, width), mode="area")[0] - 0.5


def build(name: str, **kwargs) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs).eval()


def families() -> list[str]:
    """The smallest model of every family's file, so that a new family is asked too."""

    def size(name: str) -> int:
        return next((place for place, word in enumerate(SMALLEST) if word in name), len(SMALLEST))

    found: dict[str, str] = {}
    for name in sorted(list_models(), key=size):
        found.setdefault(timm.model_entrypoint(name).__module__, name)
    return sorted(found.values())


@pytest.mark.parametrize("name", families())
def test_every_family_has_maps(name: str) -> None:
    image = photograph(96, 128)
    maps = attention_maps(build(name), image, query=(100, 20))
    assert maps
    for layer, one in maps.items():
        assert one.layer == layer and one.image_size == (96, 128)
        if one.kind == "receptive_field" and one is not next(iter(maps.values())):
            continue
        weights = one.weights()
        assert weights.shape == (one.heads, *one.key_grid)
        assert weights.isfinite().all() and not weights.requires_grad
        if one.kind != "linear":
            total = weights.sum((1, 2)) + one.prefix_weights().sum(1)
            torch.testing.assert_close(total, torch.ones(one.heads), msg=layer)


def test_kinds() -> None:
    small = {
        "agent_deit_tiny": dict(depth=1),
        "sparsifiner_deit_tiny": dict(depth=1),
        "van_b0": dict(depths=(1, 1, 1, 1)),
    }
    names = ("dinat_nano", "biformer_nano", *small, "mavit_tiny")
    kinds = {
        name: {one.kind for one in attention_maps(build(name, **small.get(name, {})), photograph()).values()}
        for name in names
    }
    assert kinds == {
        "dinat_nano": {"neighborhood"},
        "biformer_nano": {"routed", "softmax"},
        "agent_deit_tiny": {"agent"},
        "sparsifiner_deit_tiny": {"sparse"},
        "mavit_tiny": {"linear", "softmax"},
        "van_b0": {"receptive_field"},
    }


def test_rows_of_l2vit_add_up_to_one_unless_bounded() -> None:
    model = build("l2vit_tiny", depths=(2, 2, 2, 2))
    layer = "stages.3.blocks.1.attn"
    assert (attention_maps(model, photograph())[layer].weights().sum((1, 2)) < 1).all()
    model.get_submodule(layer).min_normalizer = 1e-6
    rows = attention_maps(model, photograph())[layer].weights().sum((1, 2))
    torch.testing.assert_close(rows, torch.ones_like(rows))


@pytest.mark.parametrize("query", [(0, 0), (127, 95), (50, 40)])
def test_neighborhoods_have_kernel_squared_keys_at_the_dilation(query: tuple[int, int]) -> None:
    model = build("dinat_mini", depths=(2, 2, 2, 1), dilations=[[1, 8], [1, 4], [1, 2], [1]])
    dilated = 0
    for layer, one in attention_maps(model, photograph(256, 320), query=query).items():
        module = model.get_submodule(layer)
        keys, (row, column) = one.neighborhood(), one.token()
        assert one.kernel_size == module.kernel_size and one.dilation == module.dilation
        assert len(set(keys)) == len(keys) == module.kernel_size[0] ** 2
        dilated += module.dilation[0] > 1
        for axis, at in enumerate((row, column)):
            places = sorted({key[axis] for key in keys})
            assert {b - a for a, b in zip(places, places[1:], strict=False)} == {module.dilation[axis]}
            assert (places[0] - at) % module.dilation[axis] == 0
        assert set(map(tuple, one.weights().sum(0).nonzero().tolist())) == set(keys)
    assert dilated


def test_routed_regions_are_those_the_output_depends_on() -> None:
    """Values of a region move the query's output exactly where the map says that it is routed to."""
    model = build("biformer_nano")
    one = attention_maps(model, photograph(), query=(60, 30))["stages.0.blocks.0.block.attn"]
    seen = {}

    def keep(name: str, arguments: tuple, run) -> Tensor:
        seen.setdefault(name, arguments)
        return run()

    with torch.no_grad(), observe_ops(keep):
        model(photograph()[None])
    q, k, v, regions, topk, scale = seen["bi_level_routing_attention"]
    v = v.detach().clone().requires_grad_(True)
    row, column = one.token()
    bi_level_routing_attention(q, k, v, regions, topk, scale=scale)[0, row, column].sum().backward()
    height, width = one.region_size
    touched = v.grad[0].abs().sum((2, 3)).unflatten(1, (-1, width)).unflatten(0, (-1, height)).sum((1, 3))
    assert set(map(tuple, touched.nonzero().tolist())) == set(one.regions())
    assert len(one.regions()) == topk


def test_agents() -> None:
    one = next(iter(attention_maps(build("agent_deit_tiny", depth=1), photograph()).values()))
    agents, queries = one.agent_weights(), one.query_weights()
    assert queries.shape == (one.heads, *one.agent_grid) and agents.shape[1] == queries[0].numel()
    torch.testing.assert_close(queries.sum((1, 2)), torch.ones(one.heads))
    product = torch.einsum("hn,hnyx->hyx", queries.flatten(1), agents)
    torch.testing.assert_close(product, one.weights())
    assert one.class_weights().shape == one.weights().shape


def test_kept_connections() -> None:
    model = build("sparsifiner_deit_tiny", depth=1)
    one = attention_maps(model, photograph(), query=(5, 90))["stages.0.attn"]
    kept = one.kept()
    assert torch.equal(kept, one.weights() > 0)
    budget = -(-37 // 4)
    assert (kept.sum((1, 2)) + (one.prefix_weights()[:, 0] > 0) == budget).all()


def test_receptive_field_is_where_a_change_of_the_image_shows() -> None:
    """VAN's first large-kernel attention sees 7x7 pixels of the stem and 21x21 tokens around: not the far corner."""
    model, image = build("van_b0", depths=(1, 1, 1, 1)), photograph(256, 256)
    one = attention_maps(model, image, query=(20, 20))["stages.0.blocks.0.attn.lka"]
    assert one.key_grid == one.image_size and one.key_cell == (1, 1)
    field = one.weights()[0]
    peak = divmod(int(field.argmax()), 256)
    assert max(abs(peak[0] - 20), abs(peak[1] - 20)) <= 12
    assert field[150:, 150:].abs().max() == 0 and field[:100, :100].sum() > 0.99
    changed = image.clone()
    changed[:, 150:, 150:] += 1
    outputs = []
    model.get_submodule("stages.0.blocks.0.attn.lka").register_forward_hook(lambda *call: outputs.append(call[2]))
    with torch.no_grad():
        model(image[None]), model(changed[None])
    row, column = one.token()
    assert torch.equal(outputs[0][0, :, row, column], outputs[1][0, :, row, column])
    assert not torch.equal(outputs[0], outputs[1])


def test_no_pairs_of_tokens_are_kept() -> None:
    """What a map holds grows with the tokens, not with their square."""
    models = {"vit_rpb_small": dict(depth=1), "vit_small_gqa": dict(depth=1), "biformer_nano": {}, "flowformer": {}}
    for name, kwargs in models.items():
        for one in attention_maps(build(name, **kwargs), photograph(256, 256)).values():
            tokens = one.grid[0] * one.grid[1]
            held = [x for x in vars(one).values() if isinstance(x, Tensor) and x.numel() >= one.heads * tokens**2]
            assert not held or tokens < 100, one.layer


def test_the_model_is_left_as_it_was() -> None:
    model = build("vit_small_dgqa", depth=2).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    attention_maps(model, photograph())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert _observer.get() is None


def fail(*args) -> None:
    raise ZeroDivisionError


def test_errors_leave_nothing_behind() -> None:
    model = build("dinat_nano")
    with pytest.raises(ValueError, match=r"no attention map of layer stem; there are stages\.0\.blocks\.0\.attn, "):
        attention_maps(model, photograph(), layers=["stem"])
    with pytest.raises(ValueError, match=r"query \(96, 0\) is outside the image: x from 0 to 95 and y from 0 to 95"):
        attention_maps(model, photograph(), query=(96, 0))
    with pytest.raises(ValueError, match="must be one normalised image"):
        attention_maps(model, torch.zeros(2, 3, 32, 32))
    with pytest.raises(ValueError, match="Sequential has no layer with an attention map"):
        attention_maps(nn.Sequential(nn.Conv2d(3, 4, 1)), photograph())
    with pytest.raises(ValueError, match="no class token"):
        attention_maps(build("flowformer", depths=(1, 1, 1, 1)), photograph())["stages.0.blocks.0.attn"].class_weights()
    fault = model.norm.register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError):
        attention_maps(model, photograph())
    fault.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert _observer.get() is None


def test_layers_that_are_asked_for() -> None:
    model = build("dinat_nano")
    everything = list(attention_maps(model, photograph()))
    assert list(attention_maps(model, photograph()[None], layers=everything[1:3])) == everything[1:3]


def test_other_threads_are_not_watched() -> None:
    """A model that another thread runs meanwhile shows nothing to this one's observer, nor mixes into its maps."""
    model, image = build("dinat_nano"), photograph()
    alone = attention_maps(model, image)
    stop, wrong = threading.Event(), []

    def keep_running() -> None:
        while not stop.is_set():
            with torch.no_grad():
                model(photograph(64, 64)[None])
            if _observer.get() is not None:
                wrong.append("observer")

    other = threading.Thread(target=keep_running)
    other.start()
    try:
        for _ in range(5):
            maps = attention_maps(model, image)
            assert maps.keys() == alone.keys()
            assert all(torch.equal(one.weights(), alone[layer].weights()) for layer, one in maps.items())
    finally:
        stop.set()
        other.join()
    assert not wrong


def test_compiled_and_exported_programs_do_not_see_the_observer() -> None:
    q = torch.randn(1, 5, 5, 2, 4)

    class Op(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return neighborhood_attention(x, x, x, 3)

    def refuse(name: str, arguments: tuple, run) -> Tensor:
        raise AssertionError("observed")

    with observe_ops(refuse):
        program = torch.export.export(Op(), (q,)).module()
        compiled = torch.compile(Op(), backend="eager", fullgraph=True)
        out = compiled(q), program(q)
        with pytest.raises(AssertionError, match="observed"):
            Op()(q)
    torch.testing.assert_close(out[0], out[1])


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("dinat_nano", {}),
        ("biformer_nano", {}),
        ("agent_cswin_tiny", dict(depths=(1, 1, 2, 1))),
        ("l2vit_tiny", dict(depths=(2, 2, 2, 2))),
        ("vit_small_gqa", dict(depth=2)),
        ("sparsifiner_deit_tiny", dict(depth=2)),
    ],
)
def test_removed_head(name: str, kwargs: dict) -> None:
    """Without one head the channels of that head, and no others, are zero where the layer projects its output."""
    model, image = build(name, **kwargs), photograph()
    for layer, one in list(attention_maps(model, image).items())[-2:]:
        module = model.get_submodule(layer.partition(":")[0])
        if hasattr(module, "lepe"):
            for parameter in module.lepe.parameters():
                nn.init.zeros_(parameter)
        seen = []
        handle = module.proj.register_forward_hook(lambda _, inputs, out, seen=seen: seen.append(inputs[0].clone()))
        remover = HeadRemover(model, layer, one.heads - 1, one.heads)
        with torch.no_grad():
            model(image[None])
            with remover.following():
                model(image[None])
        handle.remove()
        before, after = seen
        heads = module.num_heads
        removed = heads - 1 if not layer.endswith(":vertical") else one.heads - 1
        before, after = (x.unflatten(-1, (heads, -1)) for x in (before, after))
        kept = [head for head in range(heads) if head != removed]
        assert before[..., removed, :].abs().max() > 0 and after[..., removed, :].abs().max() == 0, layer
        torch.testing.assert_close(after[..., kept, :], before[..., kept, :])


def test_padding_is_known() -> None:
    """On 2x2 tokens a window of 3x3 keys reaches five keys beyond the image."""
    one = attention_maps(build("dinat_nano"), photograph(32, 32))["stages.2.blocks.0.attn"]
    assert (one.grid, one.key_grid) == ((2, 2), (3, 3))
    assert one.on_image().tolist() == [[True, True, False], [True, True, False], [False, False, False]]
