"""Reading files: every type is told apart by its content, and nothing in a file is ever run."""

import argparse
import gzip
import io
import os
import pickle
import sys
import tarfile
import types
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from attnzoo.weights import CheckpointError, read_checkpoint
from attnzoo.weights.kinds import sniff

STATE = {"a.weight": torch.arange(600.0).reshape(20, 30), "a.bias": torch.ones(20)}


def refused(path: Path, *words: str) -> str:
    """The message of the one-line refusal, which names the file and says these words."""
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


@pytest.mark.parametrize("kind", ["zip", "pickle", "safetensors"])
def test_each_format_is_read_whatever_its_name(tmp_path, kind):
    path = tmp_path / "weights.pth.tar"
    if kind == "safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=kind == "zip")
    assert sniff(path) == kind
    read = read_checkpoint(str(path))
    assert read.keys() == STATE.keys()
    for name in STATE:
        torch.testing.assert_close(read[name], STATE[name], rtol=0, atol=0)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["zip", "pickle", "safetensors"])
def test_a_file_cut_short_is_said_to_be_so(tmp_path, kind, share):
    path = tmp_path / "cut.pth"
    if kind == "safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: max(12, int(len(whole) * share))])
    refused(path, "cut short or damaged" if path.stat().st_size > 300 or kind != "safetensors" else "cut short")


def test_a_flipped_bit_is_found_by_the_check_sums(tmp_path):
    path = tmp_path / "flipped.pth"
    torch.save(STATE, path)
    whole = bytearray(path.read_bytes())
    whole[whole.index(STATE["a.weight"].numpy().tobytes()) + 1234] ^= 1
    path.write_bytes(whole)
    refused(path, "is damaged (flipped/data/0 differs from its check sum; ")


def test_a_tensor_that_is_marked_as_a_folder_is_refused(tmp_path):
    path = tmp_path / "folder.pth"
    torch.save(STATE, path)
    whole = bytearray(path.read_bytes())
    # The attributes in the directory's record, which ends with the name.
    whole[whole.rindex(b"folder/data/0") - 8] ^= 0x10
    path.write_bytes(whole)
    refused(path, "is damaged (folder/data/0 is marked as a folder)")


def test_a_file_without_check_sums_is_read(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, tmp_path / "plain.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    assert torch.equal(read_checkpoint(tmp_path / "plain.pth")["a.weight"], STATE["a.weight"])


@pytest.mark.filterwarnings("error")
def test_a_torchscript_program_is_named(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "script.pth")
    refused(tmp_path / "script.pth", "is a TorchScript program", "state_dict()")


@pytest.mark.filterwarnings("error")
def test_torchs_warnings_stay_out_of_the_way(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save({"a": torch.eye(3).to_sparse_csr(), "b": torch.eye(3).to_sparse()}, tmp_path / "sparse.pth")
    (tmp_path / "four.pth").write_bytes(pickle.dumps({"a": 1}, protocol=4))
    assert read_checkpoint(tmp_path / "sparse.pth").keys() == {"a", "b"}
    refused(tmp_path / "four.pth")


def test_damaged_bytes_inside_never_raise_anything_else(tmp_path):
    path = tmp_path / "damaged.pth"
    torch.save({"model": STATE, "epoch": 3}, path, _use_new_zipfile_serialization=False)
    whole = bytearray(path.read_bytes())
    generator = np.random.default_rng(0)
    outcomes = set()
    for _ in range(60):
        damaged = bytearray(whole)
        for place in generator.integers(2, 700, size=4):
            damaged[place] = generator.integers(256)
        path.write_bytes(damaged)
        try:
            read_checkpoint(path)
            outcomes.add("read")
        except CheckpointError:
            outcomes.add("refused")
    assert "refused" in outcomes


def test_missing_file_folder_and_empty_file(tmp_path):
    refused(tmp_path / "nowhere.pth", "no such file")
    refused(tmp_path, "folder")
    (tmp_path / "empty.pth").touch()
    refused(tmp_path / "empty.pth", "empty")


def test_a_link_to_nothing_says_where_it_leads(tmp_path):
    (tmp_path / "weights.pth").symlink_to(tmp_path / "moved.pth")
    message = refused(tmp_path / "weights.pth", f"no such file: it is a link to {tmp_path / 'moved.pth'}")
    assert "did you mean" not in message


def _npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(3))
    return buffer.getvalue()


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pth"))
    return buffer.getvalue()


OTHERS = {
    "login page": (b"\n <!DOCTYPE html><html><body>Sign in</body></html>", "HTML page"),
    "bare html": (b"<HTML><head></head></HTML>", "HTML page"),
    "html after a byte-order mark": (b"\xef\xbb\xbf<!DOCTYPE html><html>Sign in</html>", "HTML page, not a checkpoint"),
    "xhtml": (b'<?xml version="1.0"?>\n<!DOCTYPE html><html>', "HTML page, not a checkpoint: the link needs a login"),
    "a store's error": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML page, not a checkpoint"),
    "half a page": (b"<title>Virus scan warning</title>", "HTML page"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git-lfs pointer"),
    "gzip": (gzip.compress(b"weights"), "gzip"),
    "tar": (_tar(), "tar archive"),
    "npz": (_npz(), "torch.save did not write"),
    "npy": (b"\x93NUMPY\x01\x00", "NumPy"),
    "pickle 0": (pickle.dumps({"a": 1}, protocol=0), "is a pickle that torch.save did not write"),
    "pickle 1": (pickle.dumps({"a": 1, "b": 2}, protocol=1), "is a pickle that torch.save did not write"),
    "text": (b"404: Not Found", "no checkpoint"),
    "one byte": (b"x", "no checkpoint"),
    "a header of 10^18 bytes": ((10**18).to_bytes(8, "little") + b"{}", "no checkpoint"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_types_are_named(tmp_path, name):
    content, word = OTHERS[name]
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    refused(path, word)


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights/data.pkl", bytes(50_000_000))
    refused(path, "unpacks to far more")


class _Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path, legacy):
    path, trace = tmp_path / "evil.pth", tmp_path / "it_ran"
    torch.save({"model": STATE, "extra": _Evil(trace)}, path, _use_new_zipfile_serialization=not legacy)
    message = refused(path, "holds pickled objects", "never loaded")
    assert "mkdir" in message
    assert "weights_only" not in message
    assert not trace.exists()


def test_a_bare_pickle_that_runs_code_does_not_run(tmp_path):
    path, trace = tmp_path / "evil.pth", tmp_path / "it_ran"
    path.write_bytes(pickle.dumps(_Evil(trace), protocol=2))
    refused(path)
    assert not trace.exists()


def test_a_whole_module_is_refused(tmp_path):
    path = tmp_path / "module.pth"
    torch.save(torch.nn.Linear(2, 2), path)
    refused(path, "holds pickled objects", "Linear")


def test_a_list_and_a_tensor_are_no_state_dict(tmp_path):
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    refused(tmp_path / "list.pth", "expected a state dict, got list")
    torch.save(torch.ones(2), tmp_path / "tensor.pth")
    refused(tmp_path / "tensor.pth", "expected a state dict, got Tensor")


def test_argparse_namespace_becomes_plain_data(tmp_path):
    args = argparse.Namespace(lr=0.1, nested=argparse.Namespace(model="van"))
    torch.save({"model": STATE, "args": args}, tmp_path / "train.pth")
    read = read_checkpoint(tmp_path / "train.pth")
    assert not isinstance(read["args"], argparse.Namespace)
    assert isinstance(read["args"], dict)
    assert torch.equal(read["model"]["a.bias"], STATE["a.bias"])


@pytest.fixture
def node_class(monkeypatch):
    """yacs.config.CfgNode as far as pickle sees it: a dict with attributes, under that name."""

    class CfgNode(dict):
        pass

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    module = types.ModuleType("yacs.config")
    module.CfgNode = CfgNode
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    return CfgNode


@pytest.mark.parametrize("legacy", [False, True])
def test_yacs_config_becomes_plain_data_without_yacs(tmp_path, monkeypatch, node_class, legacy):
    config = node_class(MODEL=node_class(TYPE="agent_swin", DEPTHS=[2, 2]), AMP=True)
    config.__dict__["__immutable__"] = True
    path = tmp_path / "agent.pth"
    torch.save({"model": STATE, "config": config}, path, _use_new_zipfile_serialization=not legacy)
    monkeypatch.delitem(sys.modules, "yacs.config")
    read = read_checkpoint(path)
    assert read["config"]["MODEL"]["DEPTHS"] == [2, 2]
    assert isinstance(read["config"]["MODEL"], dict)
    assert "yacs.config" not in sys.modules


def test_no_other_class_of_the_same_modules_is_allowed(tmp_path):
    torch.save({"model": STATE, "args": argparse.HelpFormatter("x")}, tmp_path / "other.pth")
    refused(tmp_path / "other.pth", "argparse.HelpFormatter")


def test_the_allow_list_does_not_outlive_the_call(tmp_path):
    torch.save({"args": argparse.Namespace(lr=0.1)}, tmp_path / "train.pth")
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(tmp_path / "train.pth")
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "train.pth", weights_only=True)
