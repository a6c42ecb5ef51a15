"""Predictions as plain values, and the JSON file of a test."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_atomic

if TYPE_CHECKING:
    from mmengine.hooks import Hook


class Predictions:
    """Gathers what the model said of each image.

    Args:
        keep: gather at all; else the hook does nothing.
    """

    def __init__(self, keep: bool = True) -> None:
        self.keep = keep
        self.rows: list[dict[str, Any]] = []

    def hook(self) -> "Hook":
        """The MMEngine hook that fills ``rows`` while a test runs."""
        from mmengine.hooks import Hook

        predictions = self

        class Gather(Hook):
            def after_test_iter(
                self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Sequence[Any] = ()
            ) -> None:
                if predictions.keep:
                    predictions.rows += [as_row(sample) for sample in outputs]

        return Gather()


def as_row(sample: Any) -> dict[str, Any]:
    """A data sample of MMDetection or MMSegmentation as plain values.

    Detections: ``boxes`` [N, 4] as x1, y1, x2, y2 in pixels of the image, ``labels``, ``scores`` and, where there are
    masks, ``masks`` as COCO's compressed run lengths. Label maps: ``pixels``, how many each class has.
    """
    row: dict[str, Any] = {"image": sample.metainfo.get("img_path"), "size": list(sample.metainfo["ori_shape"][:2])}
    if "img_id" in sample.metainfo:
        row["image_id"] = sample.metainfo["img_id"]
    found = getattr(sample, "pred_instances", None)
    if found is not None:
        row |= {
            "boxes": found.bboxes.tolist(),
            "labels": found.labels.tolist(),
            "scores": found.scores.tolist(),
        }
        if "masks" in found:
            row["masks"] = [_run_lengths(mask) for mask in found.masks]
    labels = getattr(sample, "pred_sem_seg", None)
    if labels is not None:
        classes, counts = labels.data.unique(return_counts=True)
        row["pixels"] = {str(name): count for name, count in zip(classes.tolist(), counts.tolist(), strict=True)}
    return row


def _run_lengths(mask: Any) -> dict[str, Any]:
    import numpy as np
    from pycocotools import mask as coco

    encoded = coco.encode(np.asfortranarray(np.asarray(mask.cpu() if hasattr(mask, "cpu") else mask, dtype=np.uint8)))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}


def write_results(path: Path, summary: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write a test's JSON; numbers that are not finite become null.

    Raises:
        UserError: it cannot be written.
    """
    content = json.dumps(_finite({**summary, "predictions": rows}), allow_nan=False, default=float)
    write_atomic(path, content.encode() + b"\n")


def _finite(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
