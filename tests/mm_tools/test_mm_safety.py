"""No checkpoint runs code, whichever way MMEngine comes to it."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import checkpoint, find_latest_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader, _load_checkpoint

from attnzoo.weights import CheckpointError, read_checkpoint
from attnzoo.weights.mmengine import install, load_from_local

install()


class Evil:
    """A pickle that makes a file where code of its own runs."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    path = tmp_path / "evil.pth"
    torch.save({"meta": {}, "state_dict": {"weight": torch.zeros(2)}, "extra": Evil(tmp_path / "ran")}, path)
    return path


def test_mmengines_own_loader_runs_the_code(evil: Path, tmp_path: Path) -> None:
    checkpoint.load_from_local(str(evil), map_location="cpu")
    assert (tmp_path / "ran").is_dir()


def test_every_scheme_is_replaced() -> None:
    modules = {loader.__module__ for loader in CheckpointLoader._schemes.values()}
    assert modules == {"attnzoo.weights.mmengine"}


def test_local_files(evil: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds pickled objects"):
        _load_checkpoint(str(evil))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("scheme", ["s3://bucket/net.pth", "cluster:s3://bucket/net.pth", "pavi://net"])
def test_stores_are_refused(scheme: str) -> None:
    with pytest.raises(CheckpointError, match="give its path"):
        _load_checkpoint(scheme)


def test_addresses_go_through_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("ATTNZOO_OFFLINE", "1")
    for address in ("https://example.org/net-0123abcd.pth", "open-mmlab://resnet50_v1c", "torchvision://resnet18"):
        with pytest.raises(CheckpointError, match="offline"):
            _load_checkpoint(address)
    with pytest.raises(CheckpointError, match="no checkpoint of the name 'nothing'"):
        _load_checkpoint("open-mmlab://nothing")


WAYS = [
    ("test", "{evil}"),
    ("train", "--checkpoint", "{evil}"),
    ("train", "--resume", "{evil}"),
    ("train", "--cfg-options", "load_from={evil}"),
    ("train", "--cfg-options", "model.backbone.checkpoint={evil}"),
    ("train", "--cfg-options", "model.backbone.init_cfg.type=Pretrained", "model.backbone.init_cfg.checkpoint={evil}"),
    ("train", "--cfg-options", "model.neck.init_cfg.type=Pretrained", "model.neck.init_cfg.checkpoint={evil}"),
]


@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_the_command(way: tuple[str, ...], evil: Path, errors, trained, tmp_path: Path) -> None:
    action, *rest = (each.replace("{evil}", str(evil)) for each in way)
    status, line = errors("mm", action, trained("mmdet")[0], *rest, "--work-dir", tmp_path / "work")
    assert (status, "holds pickled objects" in line) == (2, True)
    assert not (tmp_path / "ran").exists()


def test_last_checkpoint(evil: Path, errors, trained, tmp_path: Path) -> None:
    path, _ = trained("mmseg")
    evil.rename(tmp_path / "iter_2.pth")
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "iter_2.pth"))
    status, line = errors("mm", "train", path, "--work-dir", tmp_path, "--resume")
    assert (status, "holds pickled objects" in line) == (2, True)
    with pytest.raises(CheckpointError, match="holds pickled objects"):
        _load_checkpoint(find_latest_checkpoint(str(tmp_path)))
    assert not (tmp_path / "ran").exists()


def test_a_config_inside_a_checkpoint_is_not_executed(trained, tmp_path: Path) -> None:
    _, folder = trained("mmseg")
    state = read_checkpoint(folder / "iter_6.pth")
    state["meta"]["config"] = f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n"
    torch.save(state, tmp_path / "iter_6.pth")
    assert "config" not in load_from_local(str(tmp_path / "iter_6.pth"))["meta"]


def test_a_training_state_is_read_whole(trained) -> None:
    state = load_from_local(str(trained("mmdet")[1] / "epoch_3.pth"))
    history = state["message_hub"]["log_scalars"]["train/loss"]
    assert isinstance(history, HistoryBuffer)
    assert history.current() == history.data[0][-1]
    assert len(history.data[0]) == 6
    assert {"optimizer", "param_schedulers", "ema_state_dict"} <= state.keys()
    assert isinstance(state["message_hub"]["runtime_info"]["eta"], float)


def test_histories_bring_no_functions(tmp_path: Path) -> None:
    class Loud:
        def __reduce__(self) -> tuple:
            return getattr, (HistoryBuffer, "mean")

    torch.save({"state_dict": {"weight": torch.zeros(2)}, "function": Loud()}, tmp_path / "f.pth")
    assert read_checkpoint(tmp_path / "f.pth")["function"] is None


@pytest.mark.parametrize(
    "value",
    [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)), np.array(["a", "bc"]),
     np.array([], np.float32)],
)  # fmt: skip
def test_numpy_values_are_plain_data(value: np.ndarray, tmp_path: Path) -> None:
    number = value[:1].sum() if value.dtype.kind in "fi" else 1
    shared = {"weight": torch.zeros(2), "array": value, "list": [value, (value,)], "scalar": number}
    torch.save(shared, tmp_path / "n.pth")
    found = read_checkpoint(tmp_path / "n.pth")
    for each in (found["array"], found["list"][0], found["list"][1][0]):
        assert type(each) is np.ndarray
        assert each.dtype == value.dtype
        assert np.array_equal(each, value)
    assert found["scalar"] == shared["scalar"]
    assert type(found["scalar"]) in (int, float)


@pytest.mark.parametrize("value", [np.array([print], dtype=object), np.zeros(2, dtype=[("a", "i4")])])
def test_numpy_objects_are_refused(value: np.ndarray, tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2), "array": value}, tmp_path / "o.pth")
    with pytest.raises(CheckpointError, match="holds pickled objects"):
        read_checkpoint(tmp_path / "o.pth")
