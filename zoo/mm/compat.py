"""Other packages' faults that keep a detector from being built."""

import importlib.util
from importlib.metadata import PackageNotFoundError, version


def skip_multimodal() -> None:
    """Leave out MMPretrain's multi-modal models where transformers is too new for them.

    MMDetection imports MMPretrain wherever it is installed, and their classes then derive from None: a TypeError, which
    MMDetection does not expect (onedl-mmpretrain 1.3.6 with transformers 5).
    """
    try:
        major = int(version("transformers").split(".")[0])
    except PackageNotFoundError:
        return
    if major < 5 or importlib.util.find_spec("mmpretrain") is None:
        return
    try:
        from mmpretrain.utils import dependency
    except ImportError:  # which MMDetection does expect
        return
    dependency.WITH_MULTIMODAL = False
