"""save_safetensors: whole or not at all."""

import stat
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

from attnzoo.weights import CheckpointError, read_checkpoint, save_safetensors


def test_what_is_written_is_read_back_with_its_metadata(tmp_path, names):
    state = {"a": torch.randn(3, 4), "n": torch.tensor(7), "h": torch.randn(2).half()}
    save_safetensors(state, tmp_path / "x.safetensors", {"model": "net"})
    read = read_checkpoint(tmp_path / "x.safetensors")
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in state.items())
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "model": "net"}
    assert names(tmp_path) == {"x.safetensors"}


def test_views_and_shared_memory_become_separate_tensors(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    state = {"base": base, "same": base, "transposed": base.t(), "row": base[1], "parameter": torch.nn.Parameter(base)}
    save_safetensors(state, tmp_path / "x.safetensors")
    read = read_checkpoint(tmp_path / "x.safetensors")
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())
    assert (tmp_path / "x.safetensors").stat().st_size < 1000


def test_file_is_as_readable_as_any_other(tmp_path):
    (tmp_path / "other").touch()
    save_safetensors({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("other", "x.safetensors")]
    assert modes[0] == modes[1]


def test_a_missing_folder_is_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="there is no folder"):
        save_safetensors({"a": torch.ones(1)}, tmp_path / "no" / "x.safetensors")


FULL = """
import resource, signal, sys, torch
from attnzoo.weights import CheckpointError, save_safetensors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_safetensors({"a": torch.zeros(100_000)}, sys.argv[1])
except CheckpointError as error:
    print(error)
"""


def test_a_write_that_fails_half_way_leaves_the_old_file_and_no_litter(tmp_path, names):
    path = tmp_path / "x.safetensors"
    save_safetensors({"a": torch.ones(3)}, path)
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{path}: cannot be written")
    assert done.stdout.count("\n") == 1
    assert path.read_bytes() == before
    assert names(tmp_path) == {"x.safetensors"}


def test_a_full_disk_is_named_with_what_is_needed(tmp_path, monkeypatch, names):
    from safetensors import SafetensorError

    from attnzoo.weights import writer

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(writer, "save_file", full)
    with pytest.raises(CheckpointError, match="disk full: 4,000 bytes needed, [0-9,]+ free"):
        save_safetensors({"a": torch.zeros(1000)}, tmp_path / "x.safetensors")
    assert names(tmp_path) == set()
