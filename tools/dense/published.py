"""A published detector's or segmenter's file under this package's names, without the packages that trained it."""

from os import PathLike

import torch
from torch import nn

from ...weights import CheckpointError, convert_checkpoint, read_checkpoint, unwrap
from ...weights.values import check_finite
from ...zoo.dense import Backbone

_PREFIX = "backbone."


def convert_published(
    name: str, path: str | PathLike[str], key: str | None = None
) -> tuple[dict[str, torch.Tensor], str] | None:
    """Convert the backbone of a dense checkpoint; necks and heads keep their names, which MMDetection 3.x and
    MMSegmentation 1.x share with the versions before.

    Args:
        name: The model that is the backbone.
        path: The file.
        key: Wrapper key to take, as for :func:`unwrap`.

    Returns:
        The state dict of a detector or segmenter around ``attnzoo.Backbone(name)``, and where in the file it was; None
        where the file is no such checkpoint.

    Raises:
        CheckpointError: the file cannot be read, or its backbone is another model's.
    """
    try:
        tensors, taken = unwrap(read_checkpoint(path), key, whole=True)
        if not any(each.startswith(_PREFIX) for each in tensors):
            return None
        check_finite(tensors)
        return _converted(name, tensors), taken
    except CheckpointError as error:
        raise CheckpointError(error.problem, path) from error.__cause__


def _converted(name: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """With or without output norms, whichever fits."""
    fewest: list[str] = []
    for out_norm in (True, False):
        model = nn.Module()
        with torch.device("meta"):
            model.backbone = Backbone(name, out_norm=out_norm)
        found = convert_checkpoint(tensors, model)
        own = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
        inside = {key for key in found if key.startswith(_PREFIX) and not key.endswith("num_batches_tracked")}
        wrong = sorted(own.keys() ^ inside) or [key for key in inside if found[key].shape != own[key].shape]
        if not wrong:
            return found
        fewest = min(fewest or wrong, wrong, key=len)
    raise CheckpointError(
        f"does not hold a {name} as its backbone: {len(fewest)} tensors differ, {', '.join(fewest[:3])} among them"
    )
