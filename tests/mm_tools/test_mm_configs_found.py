"""A config is found by its path, its name and the end of its name; without the mm packages one line says so."""

import importlib.util
from pathlib import Path

import pytest

from attnzoo.tools.cli import UserError
from attnzoo.tools.dense import config as configs
from attnzoo.tools.dense.config import find_config, scope_of, shipped_configs


def test_every_shipped_config_is_found() -> None:
    known = shipped_configs()
    assert {name.split("/")[0] for name in known} == {"mmdet", "mmseg"}
    stems = [name.rsplit("/", 1)[1] for name in known]
    for name, path in known.items():
        scope, stem = name.split("/")[0], name.rsplit("/", 1)[1]
        ways = [name, f"{name}.py", str(path), f"{scope}/{stem}"]
        if stems.count(stem) == 1:
            ways.append(stem)
        assert {find_config(way) for way in ways} == {path}


def test_parts_of_configs_are_none() -> None:
    assert not [name for name in shipped_configs() if "/_" in name]
    with pytest.raises(UserError, match="there is no config 'mmdet/_base_/default_runtime'"):
        find_config("mmdet/_base_/default_runtime")


def test_a_name_that_fits_several(monkeypatch: pytest.MonkeyPatch) -> None:
    both = {f"{scope}/toy/tiny": Path(f"{scope}.py") for scope in ("mmdet", "mmseg")}
    monkeypatch.setattr(configs, "shipped_configs", lambda: both)
    assert find_config("mmseg/tiny") == Path("mmseg.py")
    with pytest.raises(UserError, match="'tiny' may be mmdet/toy/tiny or mmseg/toy/tiny"):
        find_config("tiny")


def test_the_scope_by_the_preprocessor() -> None:
    from mmengine.config import Config

    model = dict(data_preprocessor=dict(type="mmseg.SegDataPreProcessor"))
    assert scope_of(Config(dict(model=model)), Path("x.py")) == "mmseg"
    with pytest.raises(UserError, match="x.py: default_scope is None"):
        scope_of(Config(dict(model=dict())), Path("x.py"))


@pytest.mark.parametrize("absent", ["mmengine", "mmcv", "mmseg"])
def test_without_the_packages(absent: str, errors, config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = config("mmseg"), importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == absent else real(name, *rest))
    assert errors("mm", "train", path, "--work-dir", tmp_path) == (
        2,
        f"attnzoo mm: {absent} not installed: see docs/dense.md, or run 'make mm' in a checkout; "
        "attnzoo.create_detector and attnzoo.create_segmenter need neither",
    )
    assert not list(tmp_path.iterdir())
