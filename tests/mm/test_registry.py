"""Types of attnzoo in configs that do not import it, each in a process of its own; and without mm packages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def _run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )


BACKBONE = "dict(type='attnzoo.Backbone', name='biformer_nano', out_norm=True)"

# With transformers 5 MMPretrain does not import, and MMDetection and MMSegmentation with it.
HIDE = "sys.modules['mmpretrain'] = None"

# MMSegmentation imports without compiled operators.
SEGMENTER = f"""
import sys, torch
{HIDE}
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
init_default_scope('mmseg')
assert not any(name.startswith('attnzoo') for name in sys.modules)
head = dict(type='FPNHead', in_channels=[32] * 4, in_index=[0, 1, 2, 3], feature_strides=[4, 8, 16, 32], channels=16,
            num_classes=5, norm_cfg=dict(type='BN'))
model = MODELS.build(dict(
    type='EncoderDecoder', backbone={BACKBONE}, decode_head=head, test_cfg=dict(mode='whole'),
    neck=dict(type='FPN', in_channels=[32, 48, 96, 160], out_channels=32, num_outs=4)))
print(type(model.backbone).__module__, [tuple(x.shape) for x in model.extract_feat(torch.randn(1, 3, 64, 96))])
"""

# As it is with compiled operators: whatever provides mmcv._ext is there before attnzoo.
DETECTOR = f"""
import sys, torch, types
ext = types.ModuleType('mmcv._ext')
ext.__getattr__ = lambda name: None
sys.modules['mmcv._ext'] = ext
{HIDE}
from mmengine.registry import init_default_scope
from mmdet.registry import MODELS
init_default_scope('mmdet')
import mmdet.models
assert not any(name.startswith('attnzoo') for name in sys.modules)
anchors = dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=3, ratios=[0.5, 1.0, 2.0],
               strides=[8, 16, 32, 64, 128])
model = MODELS.build(dict(
    type='RetinaNet', backbone={BACKBONE},
    neck=dict(type='FPN', in_channels=[32, 48, 96, 160], out_channels=32, start_level=1, num_outs=5),
    bbox_head=dict(type='RetinaHead', num_classes=3, in_channels=32, stacked_convs=1, feat_channels=32,
                   anchor_generator=anchors)))
print(type(model.backbone).__module__, [tuple(x.shape) for x in model.extract_feat(torch.randn(1, 3, 64, 96))[:2]])
"""

CLASSIFIER = f"""
import sys, torch
import mmpretrain.utils.dependency
mmpretrain.utils.dependency.WITH_MULTIMODAL = False  # they do not import with transformers 5
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
init_default_scope('mmpretrain')
assert not any(name.startswith('attnzoo') for name in sys.modules)
model = MODELS.build(dict(
    type='ImageClassifier', backbone={BACKBONE}, neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=160)))
print(type(model.backbone).__module__, [tuple(model(torch.randn(2, 3, 64, 96)).shape)])
"""


@pytest.mark.parametrize(
    ("code", "shapes"),
    [
        (SEGMENTER, "[(1, 32, 16, 24), (1, 32, 8, 12), (1, 32, 4, 6), (1, 32, 2, 3)]"),
        (DETECTOR, "[(1, 32, 8, 12), (1, 32, 4, 6)]"),
        (CLASSIFIER, "[(2, 10)]"),
    ],
    ids=["mmseg", "mmdet", "mmpretrain"],
)
def test_built_by_scope_alone(code: str, shapes: str, tmp_path: Path) -> None:
    done = _run(code, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == f"attnzoo.zoo.mm.backbone {shapes}"


MASK_RCNN = """
custom_imports = dict(imports=['attnzoo.registry'])
default_scope = 'mmdet'
anchors = dict(type='AnchorGenerator', scales=[8], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64])
coder = dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[1.0] * 4)
assigner = dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.0, match_low_quality=True)
sampler = dict(type='RandomSampler', num=32, pos_fraction=0.5, add_gt_as_proposals=True)
extract = dict(type='SingleRoIExtractor', out_channels=32, featmap_strides=[4, 8, 16, 32])
proposals = dict(nms_pre=50, max_per_img=20, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0)
model = dict(
    type='MaskRCNN',
    data_preprocessor=dict(type='DetDataPreprocessor', pad_mask=True, pad_size_divisor=32),
    backbone=dict(type='attnzoo.Backbone', name='biformer_nano'),
    neck=dict(type='FPN', in_channels=[32, 48, 96, 160], out_channels=32, num_outs=5),
    rpn_head=dict(type='RPNHead', in_channels=32, feat_channels=32, anchor_generator=anchors, bbox_coder=coder),
    roi_head=dict(
        type='StandardRoIHead',
        bbox_roi_extractor=dict(roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0), **extract),
        bbox_head=dict(type='Shared2FCBBoxHead', in_channels=32, fc_out_channels=32, num_classes=3, bbox_coder=coder),
        mask_roi_extractor=dict(roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=0), **extract),
        mask_head=dict(type='FCNMaskHead', num_convs=1, in_channels=32, conv_out_channels=32, num_classes=3)),
    train_cfg=dict(
        rpn=dict(assigner=assigner, sampler=sampler, allowed_border=-1, pos_weight=-1, debug=False),
        rpn_proposal=proposals,
        rcnn=dict(assigner=assigner, sampler=sampler, mask_size=28, pos_weight=-1, debug=False)),
    test_cfg=dict(
        rpn=proposals,
        rcnn=dict(score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=5, mask_thr_binary=0.5)))
"""

STEP = """
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmdet.registry import MODELS
cfg = Config.fromfile('config.py')
init_default_scope(cfg.default_scope)
model = MODELS.build(cfg.model)
from mmdet.testing import demo_mm_inputs
torch.manual_seed(0)
shapes = [[3, 96, 128], [3, 80, 96]]
data = model.data_preprocessor(demo_mm_inputs(2, shapes, num_classes=3, with_mask=True), True)
losses = model(**data, mode='loss')
loss = sum(part if torch.is_tensor(part) else sum(part) for name, part in losses.items() if 'loss' in name)
loss.backward()
stem = [p.grad for p in model.backbone.body.stem.parameters()]
model.eval()
data = model.data_preprocessor(demo_mm_inputs(2, shapes, num_classes=3, with_mask=True), False)
with torch.no_grad():
    results = model(**data, mode='predict')
print(bool(loss.isfinite()), all(g is not None and g.abs().sum() > 0 for g in stem),
      [tuple(r.pred_instances.masks.shape) for r in results])
"""


def test_mask_rcnn_steps_on_the_stand_in(tmp_path: Path) -> None:
    """One step of training and one of testing, with the single line that a config needs without operators."""
    (tmp_path / "config.py").write_text(MASK_RCNN)
    done = _run(STEP, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "True True [(5, 96, 128), (5, 80, 96)]"


WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain'):
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, Absent())
import attnzoo
print(attnzoo.Backbone('biformer_nano').out_channels)
import attnzoo.registry
"""


def test_without_mm_packages(tmp_path: Path) -> None:
    done = _run(WITHOUT, tmp_path)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "[32, 48, 96, 160]"
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: attnzoo.registry needs the mm packages: make mm")
    assert "pip install 'attnzoo[mm]'" in last and "create_detector" in last and "create_segmenter" in last
    assert "direct cause" not in done.stderr and "During handling" not in done.stderr
