"""attnzoo: efficient-attention vision backbones as timm models."""

from . import kernels, layers, zoo
from ._version import __version__
from .weights import convert_checkpoint
from .zoo import Backbone

__all__ = ["Backbone", "__version__", "convert_checkpoint", "kernels", "layers", "zoo"]
