"""Any hierarchical attnzoo or timm model as a backbone in an MMDetection, MMSegmentation or MMPretrain config."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from mmengine.model import BaseModule
from mmengine.model.weight_init import initialize
from torch import Tensor

from ...weights.mmengine import fetch_address
from ..dense import Backbone as DenseBackbone
from ..dense import checkpoint_filter_fn as checkpoint_filter_fn  # conversion looks for it beside the model's class

_EXAMPLE = "dict(type='Pretrained', checkpoint=FILE)"


class Backbone(DenseBackbone, BaseModule):
    """The zoo's dense backbone as an MMEngine module: ``type="attnzoo.Backbone"`` in a config.

    Args:
        name: an attnzoo or timm model with stages.
        out_indices: the stages whose maps come out.
        pretrained: load the model's published classification weights.
        checkpoint: a file with weights, or its address, of the classifier or of a published dense model (without its
            heads).
        init_cfg: MMEngine's initialisation. ``dict(type="Pretrained", checkpoint=FILE)`` is ``checkpoint=FILE``,
            with the prefix ``backbone.`` or without; None keeps the model's own initialisation.
        **kwargs: as for :class:`attnzoo.Backbone`: ``out_norm``, ``frozen_stages``, ``norm_eval`` and the model's own.

    Raises:
        ValueError: an argument is out of range, there are two sources of weights, or ``init_cfg`` lacks its type or
            checkpoint, or names another prefix.
        CheckpointError: the weights cannot be read or do not fit.
    """

    def __init__(
        self,
        name: str,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        pretrained: bool = False,
        checkpoint: str | None = None,
        init_cfg: Mapping[str, Any] | list[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        files, rest = _split(init_cfg)
        if checkpoint is not None:
            files.append(checkpoint)
        if len(files) + bool(pretrained) > 1:
            named = ", ".join(["pretrained=True"] * bool(pretrained) + [repr(file) for file in files])
            raise ValueError(f"{name} can take its weights from one place; got {named}")
        super().__init__(name, out_indices, pretrained, _local(files[0]) if files else None, **kwargs)
        self.init_cfg = rest or None
        self._is_init = bool(pretrained or files)

    def init_weights(self) -> None:
        """Apply ``init_cfg``, unless weights were loaded; the model's own initialisation is done already."""
        if not self._is_init and self.init_cfg:
            initialize(self, self.init_cfg)
        self._is_init = True

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """[B, in_chans, H, W] → maps [B, C_i, H_i, W_i], finest first."""
        return tuple(super().forward(x))


def _split(init_cfg: Any) -> tuple[list[str], list[dict[str, Any]]]:
    """The checkpoints that an ``init_cfg`` names, and what else it says.

    MMEngine's own loader would neither convert names nor refuse a file that holds code.
    """
    entries = [init_cfg] if isinstance(init_cfg, Mapping) else list(init_cfg or [])
    files, rest = [], []
    for entry in entries:
        if entry.get("type") not in (None, "Pretrained"):
            rest.append(dict(entry))
            continue
        if entry.get("type") is None or entry.get("checkpoint") is None:
            raise ValueError(f"init_cfg={dict(entry)} lacks its type or its checkpoint, as in {_EXAMPLE}")
        # A detector's or segmenter's backbone is found without being asked for.
        if str(entry.get("prefix") or "backbone").rstrip(".") != "backbone":
            raise ValueError(f"init_cfg has prefix={entry['prefix']!r}; only 'backbone.' works, or a file of that part")
        files.append(entry["checkpoint"])
    return files, rest


def _local(file: str | PathLike[str]) -> str | PathLike[str]:
    is_address = isinstance(file, str) and file.startswith(("http://", "https://"))
    return fetch_address(file) if is_address else file
