"""Finds the data sets of an MMDetection or MMSegmentation config and checks each."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...cli import UserError
from ..extras import import_extra
from .coco import check_coco
from .report import Report
from .segmentation import check_segmentation

# Their classes are not the data set's.
_OTHER_CLASSES = ("backbone", "rpn_head", "semantic_head")
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def check_config(config: Mapping[str, Any], loaders: Sequence[str] = LOADERS) -> list[Report]:
    """Checks what a config would train and be judged on, each set of annotations once.

    Args:
        config: an MMEngine config, merged; its data sets may lie in ConcatDataset, RepeatDataset and the like.
        loaders: the loaders to look at; absent ones, and data sets of other formats, are passed over.

    Returns:
        One report a data set, in the loaders' order.

    Raises:
        UserError: training makes no sense, as :func:`check_coco` and :func:`check_segmentation` say, or the model's
            ``num_classes`` is not the number of the data set's classes.
    """
    scope = config.get("default_scope")
    reports, seen = [], set()
    for loader in loaders:
        for dataset in _datasets((config.get(loader) or {}).get("dataset")):
            settings = _settings(dataset, scope)
            where = tuple(str(settings.get(key)) for key in ("data_root", "ann_file", "data_prefix"))
            if where in seen:
                continue
            seen.add(where)
            _check_num_classes(config.get("model") or {}, _classes(settings), str(dataset.get("type")))
            if scope == "mmdet" and str(settings.get("ann_file", "")).endswith(".json"):
                reports.append(_check_coco(settings))
            elif scope == "mmseg" and (settings.get("data_prefix") or {}).get("seg_map_path"):
                reports.append(_check_segmentation(settings))
    return reports


def _datasets(dataset: Any) -> Iterator[Mapping[str, Any]]:
    """The data sets proper, inside whatever wraps them."""
    if isinstance(dataset, (list, tuple)):
        for part in dataset:
            yield from _datasets(part)
    elif isinstance(dataset, Mapping):
        inner = dataset.get("datasets") or dataset.get("dataset")
        if inner is None:
            yield dataset
        else:
            yield from _datasets(inner)


def _settings(dataset: Mapping[str, Any], scope: str | None) -> dict[str, Any]:
    """A data set's arguments, with its class's defaults and classes where the config leaves them out."""
    found: dict[str, Any] = {}
    if scope in ("mmdet", "mmseg"):
        import_extra(f"{scope}.datasets", {"mmdet": "onedl-mmdetection", "mmseg": "onedl-mmsegmentation"}[scope], "mm")
        cls = import_extra(f"{scope}.registry").DATASETS.get(str(dataset.get("type")))
        for parent in reversed(cls.__mro__ if cls is not None else ()):
            if "__init__" in vars(parent):
                found |= {
                    name: parameter.default
                    for name, parameter in inspect.signature(parent.__init__).parameters.items()
                    if parameter.default is not inspect.Parameter.empty
                }
        found["metainfo"] = getattr(cls, "METAINFO", None)
    return {**found, **{key: value for key, value in dataset.items() if key != "metainfo" or value}}


def _classes(settings: Mapping[str, Any]) -> tuple[str, ...] | None:
    metainfo = settings.get("metainfo")
    classes = metainfo.get("classes") if isinstance(metainfo, Mapping) else None
    return (classes,) if isinstance(classes, str) else tuple(classes) if classes else None


def _check_num_classes(model: Any, classes: tuple[str, ...] | None, dataset: str, path: str = "model") -> None:
    """Compares every ``num_classes`` below a model's heads with the data set's."""
    if classes is None:
        return
    if isinstance(model, (list, tuple)):
        for place, part in enumerate(model):
            _check_num_classes(part, classes, dataset, f"{path}[{place}]")
    elif isinstance(model, Mapping):
        found = model.get("num_classes")
        if isinstance(found, int) and found != len(classes):
            raise UserError(
                f"{path}.num_classes is {found}, but {dataset} has {len(classes)} classes ({', '.join(classes[:5])}"
                f"{', ...' if len(classes) > 5 else ''}); set one or the other"
            )
        for key, part in model.items():
            if key not in _OTHER_CLASSES:
                _check_num_classes(part, classes, dataset, f"{path}.{key}")


def _path(settings: Mapping[str, Any], name: str | None) -> Path:
    return Path(settings.get("data_root") or "") / (name or "")


def _check_coco(settings: Mapping[str, Any]) -> Report:
    steps = [step for step in settings.get("pipeline") or () if isinstance(step, Mapping)]
    prefix = settings.get("data_prefix") or {}
    images = prefix.get("img") or prefix.get("img_path")
    return check_coco(
        _path(settings, settings["ann_file"]),
        _path(settings, images),
        _classes(settings),
        masks=any(step.get("with_mask") for step in steps),
    )


def _check_segmentation(settings: Mapping[str, Any]) -> Report:
    classes = _classes(settings)
    if classes is None:
        raise UserError(f"{settings.get('type')} names no classes; give it metainfo=dict(classes=(...))")
    prefix, listing = settings["data_prefix"], settings.get("ann_file")
    return check_segmentation(
        _path(settings, prefix.get("img_path")),
        _path(settings, prefix["seg_map_path"]),
        len(classes),
        ann_file=_path(settings, listing) if listing else None,
        img_suffix=settings.get("img_suffix", ".jpg"),
        seg_map_suffix=settings.get("seg_map_suffix", ".png"),
        reduce_zero_label=bool(settings.get("reduce_zero_label")),
        ignore_index=settings.get("ignore_index", 255),
    )
