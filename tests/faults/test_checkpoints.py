"""Files that are no checkpoint, or not the one for this model."""

import dataclasses
import hashlib
import json
import os

import pytest
import timm
import torch
from evaluation_data import CLASSES, Probe, arguments, make_folder
from safetensors.torch import save_file

from attnzoo.weights import manifest

LOGIN = b"<!DOCTYPE html>\n<html><body>Sign in to continue</body></html>"


@pytest.fixture
def data(tmp_path):
    return make_folder(tmp_path / "data", per_class=1, wrong=0)


@pytest.fixture
def words(data, tmp_path):
    """Of an evaluation of a checkpoint; the results would lie beside it."""

    def make(file, *more):
        fixed = [word for word in arguments(data) if word != "--random-weights"]
        return [*fixed, "--checkpoint", file, "--results", tmp_path / "results.json", *more]

    return make


@pytest.fixture
def untouched(tmp_path):
    """After the test nothing was written but what the test itself put there."""
    yield
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(("results", "."))]


@pytest.fixture
def whole(tmp_path, monkeypatch):
    """A good checkpoint in both formats, published as such in the manifest; gives its path."""

    def make(suffix):
        file = tmp_path / f"probe{suffix}"
        if suffix == ".pth":
            torch.save({"state_dict": Probe().state_dict()}, file)
        else:
            save_file(Probe().state_dict(), file)
        content = file.read_bytes()
        entry = dataclasses.replace(
            manifest.entries()[0], id="probe.in5", model=None, file=file.name, size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
        )  # fmt: skip
        monkeypatch.setattr(manifest, "entries", lambda: (entry,))
        return file

    return make


@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
@pytest.mark.parametrize(
    "suffix",
    [pytest.param(".pth", marks=pytest.mark.fault(1)), pytest.param(".safetensors", marks=pytest.mark.fault(2))],
)
def test_truncated(whole, words, refused, untouched, suffix, share):
    file = whole(suffix)
    content = file.read_bytes()
    cut = content[: max(9, int(share * len(content)))]
    file.write_bytes(cut)
    line = refused(*words(file))
    assert f"{file}: is cut short" in line
    assert f"{len(cut):,} bytes" in line or f"of {len(cut):,}" in line
    assert f"as published it has {len(content):,} bytes, SHA-256 {hashlib.sha256(content).hexdigest()[:16]}" in line
    assert file.read_bytes() == cut


@pytest.mark.fault(3)
@pytest.mark.parametrize("command", ["eval", "verify", "convert"])
def test_empty_file(whole, words, refused, attnzoo, untouched, tmp_path, command):
    file = whole(".pth")
    file.write_bytes(b"")
    commands = {
        "eval": words(file),
        "verify": ["weights", "verify", file],
        "convert": ["weights", "convert", "test_vit", file, tmp_path / "out.safetensors"],
    }
    status, _, err = attnzoo(*commands[command])
    assert (status, err.count("\n")) == (2, 1)
    assert f"{file}: is an empty file (0 bytes" in err
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.fault(4)
def test_login_page(words, refused, untouched, tmp_path):
    (tmp_path / "net.pth").write_bytes(LOGIN)
    line = refused(*words(tmp_path / "net.pth"))
    assert "is an HTML page, not a checkpoint: the link needs a login" in line
    assert "weights_only" not in line


@pytest.mark.fault(5)
def test_missing_file(words, refused, untouched, tmp_path):
    torch.save(Probe().state_dict(), tmp_path / "probe_best.pth")
    line = refused(*words(tmp_path / "probe_bets.pth"))
    assert f"{tmp_path / 'probe_bets.pth'}: no such file in {tmp_path}; did you mean probe_best.pth?" in line
    assert f"there is no folder {tmp_path / 'no'}" in refused(*words(tmp_path / "no" / "probe.pth"))


@pytest.mark.fault(6)
def test_another_architecture(refused, untouched, tmp_path, data):
    with torch.device("meta"):
        shapes = timm.create_model("van_b0").state_dict()
    torch.save({name: torch.zeros(tensor.shape) for name, tensor in shapes.items()}, tmp_path / "van.pth")
    line = refused(
        "eval", "dinat_nano", "--data", data, "--checkpoint", tmp_path / "van.pth", "--workers", 0, "--device", "cpu"
    )
    assert "does not fit dinat_nano: " in line
    assert f" of {len(shapes)} are unexpected (" in line
    for part in (" are missing (", " are unexpected ("):
        assert line.split(part)[1].split(")")[0].count(", ") == 5  # five names and an ellipsis
    assert line.endswith("it looks like van_b0\n")


def saved_vit(tmp_path):
    torch.manual_seed(0)
    state = timm.create_model("test_vit", img_size=32, num_classes=CLASSES).state_dict()
    return tmp_path / "vit.pth", state


VIT = ("--img-size", 32, "--model-kwargs", "img_size=32", "--num-classes", CLASSES, "--workers", 0, "--device", "cpu")


@pytest.mark.fault(7)
def test_one_missing(refused, attnzoo, tmp_path, data):
    file, state = saved_vit(tmp_path)
    kept = {name: tensor for name, tensor in state.items() if name != "norm.bias"}
    torch.save(kept, file)
    command = ("eval", "test_vit", "--data", data, "--checkpoint", file, *VIT)
    assert f"1 of {len(state)} are missing (norm.bias)" in refused(*command)
    status, out, _ = attnzoo(*command, "--allow-missing", "norm.bias")
    assert status == 0
    assert f"weights: {file}: {len(kept)} tensors from the file itself, 1 missing (norm.bias)" in out
    assert "norm.bias" in refused(*command, "--allow-missing", "head.*")


class _Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.fault(8)
@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle(words, attnzoo, refused, untouched, tmp_path, legacy):
    file, trace = tmp_path / "evil.pth", tmp_path / "it_ran"
    torch.save({"state_dict": Probe().state_dict(), "x": _Evil(trace)}, file, _use_new_zipfile_serialization=not legacy)
    line = refused(*words(file))
    assert "holds pickled objects" in line
    assert "never loaded" in line
    for command in (("verify", file), ("convert", "test_vit", file, tmp_path / "out.safetensors")):
        assert attnzoo("weights", *command)[0] == 2
    assert not trace.exists()
    assert not (tmp_path / "out.safetensors").exists()
    for command in ("eval", "weights convert", "train"):
        assert "unsafe" not in attnzoo(*command.split(), "--help")[1].lower()


@pytest.mark.fault(9)
def test_no_state_dict(words, refused, untouched, tmp_path):
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    assert "list.pth: expected a state dict, got list" in refused(*words(tmp_path / "list.pth"))
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    line = refused(*words(tmp_path / "module.pth"))
    assert "holds pickled objects" in line
    assert "Linear" in line


@pytest.mark.fault(10)
@pytest.mark.parametrize(
    ("checkpoint", "taken"),
    [
        (lambda state: {f"module.{name}": tensor for name, tensor in state.items()}, "the file itself"),
        (lambda state: {"model": {f"_orig_mod.{name}": tensor for name, tensor in state.items()}}, "'model'"),
        (lambda state: {"state_dict": state, "model_ema": {"levels": torch.zeros(CLASSES)}}, "'state_dict'"),
        (lambda state: {"state_dict": {}, "state_dict_ema": state}, "'state_dict_ema'"),
    ],
    ids=["ddp", "compiled", "both", "ema alone"],
)
def test_wrappers(words, attnzoo, tmp_path, checkpoint, taken):
    file = tmp_path / "wrapped.pth"
    torch.save(checkpoint(Probe().state_dict()), file)
    status, out, _ = attnzoo(*words(file))
    assert status == 0
    assert "top-1 100.000 %" in out
    assert f"weights: {file}: 1 tensors from {taken}" in out


@pytest.mark.fault(11)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(words, attnzoo, tmp_path, dtype):
    file = tmp_path / "half.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in Probe().state_dict().items()}, file)
    status, out, err = attnzoo(*words(file))
    assert status == 0
    assert "top-1 100.000 %" in out
    assert (out + err).count("1 half-precision tensors upcast to float32") == 1


@pytest.mark.fault(12)
def test_nan_in_a_weight(words, refused, untouched, tmp_path):
    state = Probe().state_dict()
    state["levels"][2] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    assert "has NaN or infinity in levels (1 of 5 values); not loaded" in refused(*words(tmp_path / "nan.pth"))


@pytest.mark.fault(12)
def test_nan_logits(attnzoo, tmp_path, data):
    file = tmp_path / "results.json"
    status, out, _ = attnzoo(*arguments(data, "--results", file, "--model-kwargs", "nan_class=0"))
    assert status == 3
    assert "1 images gave NaN or infinity and count as wrong" in out
    content = json.loads(file.read_text())
    assert (content["top1"], content["top5"], content["non_finite"]) == (80.0, 80.0, ["a/0.png"])
    assert content["counts"] == {"evaluated": 5, "non_finite": 1, "excluded": 0, "seen": 5, "total": 5}
    assert "NaN" not in file.read_text()
