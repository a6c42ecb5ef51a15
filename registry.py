"""What lets a config say ``type="attnzoo.Backbone"``: MMEngine imports this module when it meets the scope.

Raises:
    ModuleNotFoundError: MMEngine is not installed.
"""

try:
    import mmengine  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "mmengine":
        raise
    raise ModuleNotFoundError(
        "attnzoo.registry needs the mm packages: make mm, or without a checkout pip install 'attnzoo[mm]' && "
        "pip install --no-deps onedl-mmdetection==3.5.1 onedl-mmsegmentation==1.4.2 imaug==0.4.3; "
        "attnzoo.create_detector and attnzoo.create_segmenter need none of them",
        name="mmengine",
    ) from None

from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_CONSTRUCTORS
from mmengine.registry import Registry

from .weights.mmengine import install as install_loaders
from .zoo.mm import Backbone, LayerDecay, check_channels, provide_ops, skip_multimodal

MODELS = Registry("model", scope="attnzoo", parent=MMENGINE_MODELS)
MODELS.register_module(module=Backbone)

OPTIM_WRAPPER_CONSTRUCTORS = Registry("optimizer wrapper constructor", scope="attnzoo", parent=MMENGINE_CONSTRUCTORS)
OPTIM_WRAPPER_CONSTRUCTORS.register_module(module=LayerDecay)

provide_ops()
skip_multimodal()
check_channels()
install_loaders()
