"""Every shipped config builds, learns as it says, and marks honestly whether a paper has its cell."""

import functools
import logging
import re
from pathlib import Path

import pytest
from mm_config_files import FILES, build, head_of, load, name_of
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper

from attnzoo.tools.dense.matrix import read_metadata
from attnzoo.weights.manifest import Entry, entries

_FIGURES = {"box_ap": "AP_box", "mask_ap": "AP_mask", "miou": "mIoU", "miou_ms": "mIoU_ms"}
# Results whose cell is left out: other data sets, or panoptic and instance heads of detectron2's Mask2Former.
_LEFT_OUT = r"mask2former_(ade20k_instance|ade20k_panoptic|cityscapes_\w+|coco_\w+)$"

_BIASES = {f"{kind}_bias" for kind in ("an", "na", "ah", "aw", "ha", "wa")}
_HEADS = ("retinanet", "mask-rcnn", "cascade-mask-rcnn", "fpn", "upernet")
_NAT = {"norm", "rel_pos_bias"}
# What the published configurations say: learning rate, weight decay, and what is not decayed.
_PUBLISHED = {
    ("biformer", "retinanet"): (1e-4, 1e-4, set()),
    ("biformer", "mask-rcnn"): (1e-4, 0.05, {"norm"}),
    ("biformer", "fpn"): (2e-4, 1e-4, set()),
    ("biformer", "upernet"): (6e-5, 0.01, {"norm"}),
    ("nat", "mask-rcnn"): (1e-4, 0.05, _NAT),
    ("nat", "cascade-mask-rcnn"): (1e-4, 0.05, _NAT),
    ("nat", "upernet"): (6e-5, 0.01, _NAT),
    ("dinat", "mask-rcnn"): (1e-4, 0.05, _NAT),
    ("dinat", "cascade-mask-rcnn"): (1e-4, 0.05, _NAT),
    ("dinat", "upernet"): (6e-5, 0.01, _NAT),
    ("dinat_s", "mask-rcnn"): (1e-4, 0.05, _NAT),
    ("dinat_s", "cascade-mask-rcnn"): (1e-4, 0.05, _NAT),
    ("dinat_s", "upernet"): (6e-5, 0.01, _NAT),
    ("overlock", "mask-rcnn"): (2e-4, 0.05, {"norm"}),
    ("overlock", "upernet"): (6e-5, 0.01, {"norm"}),
    ("mavit", "retinanet"): (4e-4, 1e-4, set()),
    ("mavit", "mask-rcnn"): (4e-4, 0.05, {"norm"}),
    ("mavit", "cascade-mask-rcnn"): (4e-4, 0.05, {"norm"}),
    ("mavit", "fpn"): (1e-4, 1e-4, set()),
    ("mavit", "upernet"): (6e-5, 0.01, {"norm"}),
    ("l2vit", "retinanet"): (1e-4, 0.05, set()),
    ("l2vit", "mask-rcnn"): (1e-4, 0.05, set()),
    ("l2vit", "upernet"): (6e-5, 0.01, set()),
    ("agent_pvt", "retinanet"): (1e-4, 1e-4, set()),
    ("agent_pvt", "mask-rcnn"): (2e-4, 1e-4, set()),
    ("agent_pvt", "fpn"): (2e-4, 1e-4, set()),
    ("agent_swin", "mask-rcnn"): (1e-4, 0.05, _NAT | _BIASES),
    ("agent_swin", "cascade-mask-rcnn"): (1e-4, 0.05, _NAT | _BIASES),
    ("agent_swin", "upernet"): (6e-5, 0.01, _NAT | _BIASES),
    ("van", "fpn"): (2e-4, 1e-4, set()),
    ("van", "upernet"): (6e-5, 0.01, {"norm"}),
}
_RATES = {
    r"dinat/cascade.*-(base|large)_": 7.5e-5,
    r"dinat_s/cascade.*-base_": 7.5e-5,
    r"dinat_s/cascade.*-large_": 5e-5,
    r"overlock/.*-3x_": 1e-4,
    r"mavit/.*-large_fpn_ms-3x_": 2e-4,
}


# Stochastic depth by size, as published.
_DROP_PATH = {
    ("biformer", "retinanet"): dict(small=0.2, base=0.3),
    ("biformer", "mask-rcnn"): dict(small=0.2, base=0.3),
    ("biformer", "fpn"): dict(small=0.15, base=0.3),
    ("biformer", "upernet"): dict(small=0.3, base=0.4),
    ("nat", "mask-rcnn"): dict(mini=0.2, tiny=0.2, small=0.35),
    ("nat", "cascade-mask-rcnn"): dict(mini=0.2, tiny=0.3, small=0.3, base=0.5),
    ("nat", "upernet"): dict(mini=0.2, tiny=0.3, small=0.5, base=0.5),
    ("dinat", "mask-rcnn"): dict(mini=0.2, tiny=0.2, small=0.35),
    ("dinat", "cascade-mask-rcnn"): dict(mini=0.2, tiny=0.3, small=0.5, base=0.6, large=0.6),
    ("dinat", "upernet"): dict(mini=0.2, tiny=0.3, small=0.5, base=0.5, large=0.3),
    ("dinat", "mask2former"): dict(large=0.3),
    ("dinat_s", "mask-rcnn"): dict(tiny=0.2, small=0.35),
    ("dinat_s", "cascade-mask-rcnn"): dict(tiny=0.3, small=0.5, base=0.6, large=0.6),
    ("dinat_s", "upernet"): dict(tiny=0.3, small=0.3, base=0.3, large=0.3),
    ("overlock", "mask-rcnn"): dict(tiny=0.2, small=0.4, base=0.6),
    ("overlock", "upernet"): dict(tiny=0.2, small=0.3, base=0.5),
    **{("mavit", head): dict(tiny=0.1, small=0.15, base=0.4, large=0.55) for head in _HEADS},
    ("l2vit", "retinanet"): dict(tiny=0.1, small=0.1, base=0.2),
    ("l2vit", "mask-rcnn"): dict(tiny=0.1, small=0.1, base=0.2),
    ("l2vit", "mask-rcnn 3x"): dict(tiny=0.2, small=0.2, base=0.3),
    ("l2vit", "upernet"): dict(tiny=0.3, small=0.3, base=0.3),
    ("agent_pvt", "retinanet"): dict(tiny=0.1, small=0.1, medium=0.2, large=0.3),
    ("agent_pvt", "mask-rcnn"): dict(tiny=0.1, small=0.2, medium=0.1, large=0.2),
    ("agent_pvt", "fpn"): dict(tiny=0.1, small=0.1, medium=0.2, large=0.1),
    ("agent_swin", "mask-rcnn"): dict(tiny=0.1, small=0.1),
    ("agent_swin", "cascade-mask-rcnn"): dict(tiny=0.1, small=0.1, base=0.4),
    ("agent_swin", "upernet"): dict(tiny=0.3, small=0.3, base=0.5),
    ("van", "fpn"): dict(b0=0.2, b1=0.2, b2=0.2, b3=0.3, b4=0.4),
    ("van", "upernet"): dict(b0=0.1, b1=0.1, b2=0.1, b3=0.3, b4=0.4, b5=0.4, b6=0.5),
}


@pytest.mark.parametrize("path", [path for path in FILES if read_metadata(path)["origin"] == "published"], ids=name_of)
def test_the_backbone_is_set_as_published(path: Path) -> None:
    family, head, model = path.parent.name, head_of(path), path.stem.split("_")[1]
    backbone = load(path).model.backbone
    size = model.removeprefix(family.replace("_", "-") + "-").split("-")[0]
    schedule = f"{head} 3x" if "-3x_" in path.name and (family, f"{head} 3x") in _DROP_PATH else head
    assert backbone.drop_path_rate == _DROP_PATH[family, schedule][size]
    assert backbone.get("out_norm", False) == (family not in ("agent_pvt", "van"))
    assert backbone.get("norm_eval", False) == (family in ("biformer", "mavit"))
    assert backbone.get("num_regions") == ({"mmdet": 16, "mmseg": 8}[path.parts[-3]] if family == "biformer" else None)
    grids = dict(agent_pvt=[12, 16, 28, 28], agent_swin=[9, 12, 14, 7]).get(family)
    assert backbone.get("agent_grids") == (grids and [(side, side) for side in grids])


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_builds_and_learns_as_it_says(path: Path) -> None:
    config = load(path)
    own = read_metadata(path)
    own.pop("_delete_", None)
    assert config.metadata == own  # nothing of the config it inherits from
    model = build(config, "meta")
    backbone = model.backbone
    neck = config.model.get("neck") or config.model.decode_head
    assert list(neck.in_channels) == backbone.out_channels
    if "auxiliary_head" in config.model:
        assert config.model.auxiliary_head.in_channels == backbone.out_channels[config.model.auxiliary_head.in_index]
    plan, scheduler = config.train_cfg, config.param_scheduler[-1]
    assert scheduler.end == (plan.max_epochs if scheduler.by_epoch else plan.max_iters)
    if config.default_scope == "mmseg":
        crop = next(step.crop_size for step in config.train_pipeline if step.type == "RandomCrop")
        assert tuple(config.model.data_preprocessor.size) == tuple(crop)

    assert "constructor" not in config.optim_wrapper  # no family's published config has layer-wise rates
    optimizer = _quietly(build_optim_wrapper, model, config.optim_wrapper).optimizer
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    assert len(groups) == sum(parameter.requires_grad for parameter in model.parameters())
    if head_of(path) == "mask2former":
        _check_mask2former(model, groups)
    elif config.metadata.origin == "published":
        _check_groups(path, model, groups)


def _quietly(make, *args):
    """MMEngine prints some lines for every parameter."""
    logger = MMLogger.get_current_instance()
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        return make(*args)
    finally:
        logger.setLevel(before)


def _check_groups(path: Path, model, groups: dict[int, dict]) -> None:
    rate, decay, undecayed = _PUBLISHED[path.parent.name, head_of(path)]
    rate = next((value for pattern, value in _RATES.items() if re.search(pattern, name_of(path))), rate)
    all_norms = path.parent.name == "mavit" and head_of(path) == "cascade-mask-rcnn"
    for name, parameter in model.named_parameters():
        group = groups[id(parameter)]
        bare = any(key in name for key in undecayed) or (all_norms and re.search(r"\.bn\.(weight|bias)$", name))
        assert group["lr"] == pytest.approx(rate), name
        if all_norms and parameter.ndim == 1:
            continue  # norms that no name tells apart from other vectors
        assert group["weight_decay"] == (0 if bare else decay), name
    # A name that matches nothing would be a silent mistake.
    for key in undecayed:
        assert any(key in name for name, _ in model.named_parameters()), key


def _check_mask2former(model, groups: dict[int, dict]) -> None:
    for name, parameter in model.named_parameters():
        group = groups[id(parameter)]
        assert group["lr"] == pytest.approx(1e-5 if name.startswith("backbone.") else 1e-4), name
        embedding = any(key in name for key in ("query_embed", "query_feat", "level_embed"))
        if embedding or re.search(r"norms?\d*\.(\d+\.)?(weight|bias)$", name):
            assert group["weight_decay"] == 0, name
        elif parameter.ndim > 1:
            assert group["weight_decay"] == 0.05, name


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_says_whether_it_was_published(path: Path) -> None:
    metadata, text = read_metadata(path), path.read_text(encoding="utf-8")
    figures = {key: metadata[key] for key in _FIGURES if key in metadata}
    assert ("\n# ours: " in text) == (metadata["origin"] == "ours")
    if metadata["origin"] == "ours":
        assert not figures and "entry" not in metadata
        return
    assert metadata["origin"] == "published"
    assert re.fullmatch(r"arXiv:\d{4}\.\d{5}", metadata["paper"])
    entry = _entries().get(metadata.get("entry"))
    if entry is None:
        assert not figures and "entry" not in metadata
        return
    assert entry.backbone == load(path).model.backbone.name.split(".")[0].removesuffix("_11x11")
    assert figures == {key: entry.metrics[name] for key, name in _FIGURES.items() if name in entry.metrics}


def test_every_published_result_has_its_config() -> None:
    configured = [read_metadata(path).get("entry") for path in FILES]
    configured = [name for name in configured if name]
    assert len(configured) == len(set(configured))
    dense = {
        name
        for name, entry in _entries().items()
        if entry.task in ("detection", "instance", "semantic", "panoptic")
        and entry.backbone is not None  # S2AFormer's network is a reconstruction
        and not re.search(_LEFT_OUT, name)
    }
    assert dense == set(configured)


@functools.cache
def _entries() -> dict[str, Entry]:
    return {entry.id: entry for entry in entries()}
