"""``mmcv._ext`` where MMCV was installed without its compiled operators; any that ``ops`` lacks raises when called."""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NoReturn

from . import ops

_OPS: tuple[Callable, ...] = (
    ops.nms,
    ops.softnms,
    ops.roi_align_forward,
    ops.roi_align_backward,
    ops.sigmoid_focal_loss_forward,
    ops.sigmoid_focal_loss_backward,
    ops.ms_deform_attn_forward,
    ops.ms_deform_attn_backward,
)


def _missing(name: str) -> Callable[..., NoReturn]:
    """MMCV asks for every name at import; only a call is an error."""
    if name.startswith("__"):
        raise AttributeError(name)
    return lambda *args, **kwargs: ops.refuse(f"mmcv's {name}")


class StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds ``mmcv._ext`` where no other finder does, so that compiled operators always come first."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_loader(fullname, self) if fullname == "mmcv._ext" else None

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__.update({op.__name__: op for op in _OPS}, __getattr__=_missing)


def provide_ops() -> None:
    """Let ``mmcv.ops`` be imported without compiled operators. Harmless where they are there, and when repeated."""
    if not any(isinstance(finder, StandIn) for finder in sys.meta_path):
        sys.meta_path.append(StandIn())
