"""RetinaNet on MAViT (tiny): 12 epochs on COCO."""

_base_ = [
    "../_base_/models/retinanet_fpn.py",
    "../_base_/datasets/coco_detection.py",
    "../_base_/schedules/schedule_1x.py",
    "../_base_/default_runtime.py",
]

metadata = dict(
    origin="published",
    paper="arXiv:2507.00698",
    precision="fp16",
    entry="mavit_tiny.retinanet_1x_coco",
    box_ap=45.6,
)

model = dict(
    backbone=dict(name="mavit_tiny", pretrained=True, drop_path_rate=0.1, out_norm=True, norm_eval=True),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
optim_wrapper = dict(optimizer=dict(lr=0.0004, weight_decay=0.0001))
# The first stage has a norm that RetinaNet makes no use of.
find_unused_parameters = True
