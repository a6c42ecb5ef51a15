"""Cascade Mask R-CNN on DiNAT_s (small): 36 epochs on COCO, multi-scale."""

_base_ = "./cascade-mask-rcnn_dinat-s-tiny_fpn_ms-3x_coco.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2209.15001",
    precision="fp16",
    entry="dinat_s_small.cascade_maskrcnn_3x_coco",
    box_ap=52.3,
    mask_ap=45.2,
)

model = dict(
    backbone=dict(
        name="dinat_s_small",
        dilations=[[1, 28], [1, 14], [1, 3, 1, 5, 1, 7] * 3, [1, 3]],
        drop_path_rate=0.5,
    ),
)
