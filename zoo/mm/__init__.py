"""The zoo in MMDetection, MMSegmentation and MMPretrain; import it as ``attnzoo.registry``."""

from .backbone import Backbone
from .channels import check_channels
from .compat import skip_multimodal
from .layer_decay import LayerDecay
from .stand_in import provide_ops

__all__ = ["Backbone", "LayerDecay", "check_channels", "provide_ops", "skip_multimodal"]
