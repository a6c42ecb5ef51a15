"""load_checkpoint: what fits is loaded and reported, what does not is refused in one line and changes nothing."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from attnzoo.weights import CheckpointError, LoadReport, best_match, load_checkpoint
from attnzoo.weights.values import check_finite

# nat_mini in everything but size, so that a test takes milliseconds.
SMALL = {"embed_dim": 16, "num_heads": [1, 2, 4, 8], "depths": [1, 1, 2, 1], "num_classes": 7}


def vit(**kwargs):
    return timm.create_model("test_vit", **kwargs)


@pytest.fixture
def saved(tmp_path) -> tuple[Path, dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    state = vit().state_dict()
    torch.save({"model": state}, tmp_path / "vit.pth")
    return tmp_path / "vit.pth", state


def refusal(model, path, **options) -> str:
    """The one-line message of a refused file; the model must be as it was."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, path, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    return message


def test_everything_is_loaded_and_reported(saved):
    path, state = saved
    model = vit()
    report = load_checkpoint(model, path)
    assert report == LoadReport(str(path), "'model'", len(state))
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
    assert str(report) == f"{path}: {len(state)} tensors from 'model'"


def published_name(name: str) -> str:
    """A name of the zoo's NAT as SHI-Labs' files have it: there a stage ends with its downsampler."""
    if ".downsample." in name:
        name = f"levels.{int(name[7]) - 1}{name[8:]}"
    for own, published in (
        ("stages.", "levels."),
        ("stem.conv1", "patch_embed.proj.0"),
        ("stem.conv2", "patch_embed.proj.1"),
        ("stem.norm", "patch_embed.norm"),
        ("rel_pos_bias", "rpb"),
    ):
        name = name.replace(own, published)
    return name


def test_published_names_load_into_a_zoo_model(tmp_path):
    torch.manual_seed(2)
    source = timm.create_model("nat_mini", **SMALL)
    published = {published_name(name): tensor for name, tensor in source.state_dict().items()}
    assert published.keys() != source.state_dict().keys()
    torch.save(published, tmp_path / "nat.pth")
    model = timm.create_model("nat_mini", **SMALL).eval()
    load_checkpoint(model, tmp_path / "nat.pth")
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(image), source.eval()(image))


def test_averaged_weights_by_key(tmp_path, saved):
    _, state = saved
    torch.save({"model": state, "model_ema": {k: v + 1 for k, v in state.items()}}, tmp_path / "both.pth")
    model = vit()
    assert load_checkpoint(model, tmp_path / "both.pth", key="model_ema").taken == "'model_ema'"
    assert torch.equal(model.state_dict()["norm.weight"], state["norm.weight"] + 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_upcast_and_noted(tmp_path, saved, dtype):
    _, state = saved
    save_file({name: tensor.to(dtype) for name, tensor in state.items()}, tmp_path / "half.safetensors")
    model = vit()
    report = load_checkpoint(model, tmp_path / "half.safetensors")
    assert report.upcast == len(state)
    assert "upcast to float32" in str(report)
    assert model.norm.weight.dtype is torch.float32


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_nan_and_infinity_are_refused_by_name_and_count(tmp_path, saved, value, dtype):
    _, state = saved
    bad = {name: tensor.to(dtype) for name, tensor in state.items()}
    bad["norm.weight"][3:5] = value
    torch.save(bad, tmp_path / "bad.pth")
    assert "has NaN or infinity in norm.weight (2 of 64 values); not loaded" in refusal(vit(), tmp_path / "bad.pth")
    bad["norm.bias"][0] = value
    torch.save(bad, tmp_path / "bad.pth")
    assert "and in 1 more tensors" in refusal(vit(), tmp_path / "bad.pth")


def test_float64_and_float8_are_looked_through_in_their_own_range():
    check_finite({"double": torch.tensor([1e300], dtype=torch.float64), "eight": torch.ones(2).to(torch.float8_e5m2)})
    for dtype in (torch.float64, torch.float8_e5m2):
        with pytest.raises(CheckpointError, match=r"in x \(1 of 2 values\)"):
            check_finite({"x": torch.tensor([1.0, float("nan")]).to(dtype)})


UNUSABLE = {
    "complex64": lambda: torch.ones(64, dtype=torch.complex64),
    "complex64 of NaN": lambda: torch.full((64,), complex("nan"), dtype=torch.complex64),
    "float4_e2m1fn_x2": lambda: torch.zeros(64, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
    "bits8": lambda: torch.zeros(64, dtype=torch.uint8).view(torch.bits8),
    "without values": lambda: torch.empty(64, device="meta"),
    "1,000,000,000,000 values that repeats a few": lambda: torch.zeros(1).expand(10**6, 10**6),
    "sparse": lambda: torch.ones(64).to_sparse(),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", UNUSABLE)
def test_tensors_that_no_model_takes_are_refused_by_kind(tmp_path, saved, kind):
    _, state = saved
    torch.save({**state, "norm.weight": UNUSABLE[kind]()}, tmp_path / "odd.pth")
    message = refusal(vit(), tmp_path / "odd.pth")
    assert kind.removesuffix(" of NaN") in message
    assert message.endswith(" (norm.weight), which no model here uses")


@pytest.mark.parametrize("dtype", ["bool", "int64", "uint16"])
def test_whole_numbers_are_no_weights(tmp_path, saved, dtype):
    _, state = saved
    state["norm.weight"] = state["norm.weight"].to(getattr(torch, dtype))
    torch.save(state, tmp_path / "whole.pth")
    message = refusal(vit(), tmp_path / "whole.pth")
    assert message.endswith(f"has 1 tensors of another type than weights have (norm.weight is {dtype})")


def test_a_small_buffer_that_repeats_its_memory_is_one_like_others(tmp_path, saved):
    _, state = saved
    state["norm.weight"] = torch.full((1,), 2.0).expand(64)
    torch.save(state, tmp_path / "repeated.pth")
    model = vit()
    load_checkpoint(model, tmp_path / "repeated.pth")
    assert torch.equal(model.norm.weight, torch.full((64,), 2.0))


def test_names_from_a_file_cannot_steer_a_terminal(tmp_path, saved):
    _, state = saved
    torch.save({**state, "a\nb\x1b[31m\udcff": torch.zeros(1)}, tmp_path / "steering.pth")
    assert "(a b\\x1b[31m\\udcff)" in refusal(vit(), tmp_path / "steering.pth")
    report = str(load_checkpoint(vit(), tmp_path / "steering.pth", strict=False))
    assert "1 not used (a\\nb\\x1b[31m\\udcff)" in report


def test_batch_norms_counters_may_be_missing(tmp_path):
    model = timm.create_model("van_b0")
    state = {name: tensor for name, tensor in model.state_dict().items() if "num_batches_tracked" not in name}
    assert len(state) < len(model.state_dict())
    torch.save(state, tmp_path / "van.pth")
    report = load_checkpoint(timm.create_model("van_b0"), tmp_path / "van.pth")
    assert (report.loaded, report.missing) == (len(state), ())
    state.popitem()
    torch.save(state, tmp_path / "van.pth")
    assert f"1 of {len(model.state_dict())} are missing" in refusal(model, tmp_path / "van.pth")


def test_large_finite_values_are_no_infinity(tmp_path, saved):
    _, state = saved
    state["norm.weight"] = torch.full((64,), torch.finfo(torch.float32).max)
    torch.save(state, tmp_path / "large.pth")
    assert load_checkpoint(vit(), tmp_path / "large.pth").loaded == len(state)


def test_missing_and_unexpected_names_are_counted_and_the_first_shown(tmp_path, saved):
    _, state = saved
    total = len(state)
    changed = {(f"extra.{i}" if i < 6 else name): tensor for i, (name, tensor) in enumerate(state.items())}
    torch.save(changed, tmp_path / "changed.pth")
    message = refusal(vit(), tmp_path / "changed.pth")
    first = list(state)[:5]
    assert f"6 of {total} are missing ({', '.join(first)}, …)" in message
    assert f"6 of {total} are unexpected (extra.0, extra.1, extra.2, extra.3, extra.4, …)" in message
    assert "the file's first keys are extra.0, extra.1, extra.2, …" in message


def test_missing_tensors_need_leave(tmp_path, saved):
    _, state = saved
    headless = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    torch.save(headless, tmp_path / "headless.pth")
    assert "2 of" in refusal(vit(), tmp_path / "headless.pth")
    report = load_checkpoint(vit(), tmp_path / "headless.pth", allow_missing=["head.*"])
    assert report.missing == ("head.weight", "head.bias")
    assert load_checkpoint(vit(), tmp_path / "headless.pth", strict=False).missing == report.missing


def test_another_shape_is_refused_even_if_not_strict_unless_it_may_be_missing(saved):
    path, _ = saved
    for strict in (True, False):
        message = refusal(vit(num_classes=7), path, strict=strict)
        assert "head.weight is [1000, 64] in the file and [7, 64] in the model" in message
    model = vit(num_classes=7)
    head = model.head.weight.clone()
    assert load_checkpoint(model, path, allow_missing=["head.*"]).missing == ("head.weight", "head.bias")
    assert torch.equal(model.head.weight, head)


def test_a_model_without_head_leaves_the_files_head_out(saved):
    path, state = saved
    report = load_checkpoint(vit(num_classes=0), path)
    assert report.unexpected == ("head.weight", "head.bias")
    assert report.loaded == len(state) - 2


def test_a_feature_extractor_takes_what_it_has_kept(saved):
    path, state = saved
    model = vit(features_only=True, out_indices=(0, 1))
    report = load_checkpoint(model, path)
    assert {name.split(".")[0] for name in report.unexpected} >= {"head"}
    name = "blocks.0.attn.qkv.weight"
    assert torch.equal(model.model.state_dict()[name], state[name])


def test_nothing_in_common_is_refused_even_if_not_strict(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pth")
    assert "1 of 1 are unexpected (a)" in refusal(vit(), tmp_path / "other.pth", strict=False)


def test_the_right_model_is_named(tmp_path):
    with torch.device("meta"):
        shapes = timm.create_model("dinat_s_tiny").state_dict()
    state = {name: torch.zeros(tensor.shape) for name, tensor in shapes.items()}
    assert best_match(state) == "dinat_s_tiny"
    torch.save(state, tmp_path / "weights.pth")
    with torch.device("meta"):
        model = timm.create_model("nat_tiny")
    with pytest.raises(CheckpointError, match="does not fit nat_tiny.*it looks like dinat_s_tiny$"):
        load_checkpoint(model, tmp_path / "weights.pth")


def test_no_model_is_named_where_none_is_near():
    assert best_match({"a": torch.ones(3)}) is None
    assert best_match({"a": torch.zeros(28_000_000)}) is None


def test_reading_errors_come_through_with_the_files_name(tmp_path):
    (tmp_path / "page.pth").write_text("<html>")
    assert "HTML page" in refusal(vit(), tmp_path / "page.pth")
    assert "has no key 'ema'" in refusal(vit(), _saved_list(tmp_path), key="ema")


def _saved_list(folder: Path) -> Path:
    torch.save({"model": {"a": torch.ones(1)}}, folder / "plain.pth")
    return folder / "plain.pth"
