"""attnzoo: efficient-attention vision backbones as timm models."""

from ._requirements import check_versions
from ._startup import end_in_one_line, imports_are_done

end_in_one_line()
check_versions()

from . import kernels, layers, zoo  # noqa: E402  only after the versions are known to fit
from ._version import __version__  # noqa: E402
from .weights import convert_checkpoint  # noqa: E402
from .zoo import Backbone, create_detector, create_segmenter  # noqa: E402

imports_are_done()

__all__ = [
    "Backbone",
    "__version__",
    "convert_checkpoint",
    "create_detector",
    "create_segmenter",
    "kernels",
    "layers",
    "zoo",
]
