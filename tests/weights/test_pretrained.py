"""pretrained=True: a tagged name's weights, bundled or fetched, never unpickled."""

import hashlib
import io

import pytest
import timm
import torch
from safetensors.torch import save_file

from attnzoo.weights import CheckpointError, cache, manifest, pretrained, pretrained_file, pretrained_state_dict

STATE = {"weight": torch.arange(4.0)}


@pytest.fixture
def publish(server, make_entry, monkeypatch):
    """Serve a checkpoint under a manifest row; returns the row's name."""

    def put(checkpoint: object, **changes: object) -> str:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        server.files["/net.pth"] = buffer.getvalue()
        sha256 = hashlib.sha256(buffer.getvalue()).hexdigest()
        entry = make_entry(server.url("/net.pth"), sha256=sha256, **changes)
        monkeypatch.setattr(manifest, "entries", lambda: (entry,))
        return entry.id

    return put


def test_the_file_is_fetched_read_and_unwrapped(publish, tmp_path):
    name = publish({"model": STATE, "epoch": 300}, top_level_key="model")
    assert torch.equal(pretrained_state_dict(name, tmp_path)["weight"], STATE["weight"])


def test_the_rows_wrapper_key_decides(publish, tmp_path):
    name = publish({"model": STATE, "model_ema": {"weight": torch.ones(4)}}, top_level_key="model_ema")
    assert torch.equal(pretrained_state_dict(name, tmp_path)["weight"], torch.ones(4))


def test_a_row_that_does_not_know_its_key_takes_the_usual_one(publish, tmp_path):
    name = publish({"state_dict": STATE}, top_level_key=None)
    assert torch.equal(pretrained_state_dict(name, tmp_path)["weight"], STATE["weight"])


def test_nan_is_refused_with_the_files_name(publish, tmp_path):
    name = publish({"weight": torch.tensor([1.0, float("nan")])})
    with pytest.raises(CheckpointError, match=r"net\.in1k-net\.pth: has NaN or infinity in weight \(1 of 2 values\)"):
        pretrained_state_dict(name, tmp_path)


def test_an_unknown_name_is_an_error():
    with pytest.raises(CheckpointError, match="no published checkpoint is called"):
        pretrained_state_dict("resnet50.a1_in1k")


def test_a_model_without_a_tag_says_where_a_file_is():
    with pytest.raises(CheckpointError) as error:
        timm.create_model("van_b4", pretrained=True)
    assert str(error.value) == (
        "van_b4 has no published weights to load by name; 'attnzoo weights pull van_b4.in1k' says how to get a file"
    )
    with pytest.raises(CheckpointError, match="s2aformer_mini has no published weights to load by name$"):
        timm.create_model("s2aformer_mini", pretrained=True)


def test_a_bundled_file_needs_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "_BUNDLED", tmp_path)
    assert pretrained_file("net.digits") is None
    save_file(STATE, tmp_path / "net.digits.safetensors")
    assert pretrained_file("net.digits") == tmp_path / "net.digits.safetensors"
    assert torch.equal(pretrained_state_dict("net.digits")["weight"], STATE["weight"])


def test_timm_loads_a_zoo_model_through_the_cache(tmp_path):
    with torch.device("meta"):
        shapes = timm.create_model("dinat_mini").state_dict()
    torch.manual_seed(0)
    state = {name: torch.randn(tensor.shape) for name, tensor in shapes.items()}
    torch.save({"model": state}, cache.cache_path(manifest.find("dinat_mini.shi_in1k"), tmp_path))
    model = timm.create_model("dinat_mini.shi_in1k", pretrained=True, cache_dir=tmp_path)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())


def test_nan_in_a_file_that_takes_the_place_of_the_published_one_is_refused(tmp_path):
    state = timm.create_model("dinat_nano").state_dict()
    state["head.bias"][0] = torch.nan
    save_file(state, tmp_path / "own.safetensors")
    overlay = dict(file=str(tmp_path / "own.safetensors"))
    with pytest.raises(CheckpointError, match=r"own\.safetensors: has NaN or infinity in head\.bias"):
        timm.create_model("dinat_nano", pretrained=True, pretrained_cfg_overlay=overlay)
