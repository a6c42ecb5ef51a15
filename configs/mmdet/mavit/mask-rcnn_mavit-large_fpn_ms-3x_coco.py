"""Mask R-CNN on MAViT (large): 36 epochs on COCO, multi-scale."""

_base_ = "./mask-rcnn_mavit-small_fpn_ms-3x_coco.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2507.00698",
    precision="fp16",
    entry="mavit_large.maskrcnn_3x_coco",
    box_ap=53.6,
    mask_ap=47.2,
)

model = dict(
    backbone=dict(name="mavit_large", drop_path_rate=0.55),
    neck=dict(in_channels=[96, 192, 448, 640]),
)
optim_wrapper = dict(optimizer=dict(lr=0.0002))
train_dataloader = dict(batch_size=1)
auto_scale_lr = dict(base_batch_size=8)
