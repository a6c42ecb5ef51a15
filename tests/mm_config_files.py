"""The shipped mmdet and mmseg configs, for their tests: which there are, and a detector or segmenter of each."""

import warnings
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

import attnzoo

FOLDER = Path(attnzoo.__file__).parent / "configs"
FILES = sorted(
    path
    for framework in ("mmdet", "mmseg")
    for path in (FOLDER / framework).glob("*/*.py")
    if path.parent.name not in ("_base_", "toy")
)


def name_of(path: Path) -> str:
    """``mmdet/nat/retinanet_nat-mini_fpn_1x_coco``, as ``attnzoo mm train`` takes it."""
    return str(path.relative_to(FOLDER).with_suffix(""))


def head_of(path: Path) -> str:
    """The detector or segmenter: what the file's name begins with."""
    return path.name.split("_")[0]


def load(path: Path) -> Config:
    """The config, with a backbone that downloads nothing."""
    config = Config.fromfile(path)
    config.model.backbone.pretrained = False
    return config


def build(config: Config, device: str = "cpu") -> Any:
    """The config's detector or segmenter on a device; "meta" has shapes and no values."""
    scope = config.default_scope
    if scope == "mmdet":
        import mmdet.models
    else:
        import mmdet.models  # noqa: F401  Mask2Former's parts
        import mmseg.models  # noqa: F401
    from mmengine.registry import MODELS

    with DefaultScope.overwrite_default_scope(scope), torch.device(device), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MODELS.build(config.model)
