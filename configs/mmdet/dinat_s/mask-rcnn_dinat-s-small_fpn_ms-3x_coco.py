"""Mask R-CNN on DiNAT_s (small): 36 epochs on COCO, multi-scale."""

_base_ = "./mask-rcnn_dinat-s-tiny_fpn_ms-3x_coco.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2209.15001",
    precision="fp16",
    entry="dinat_s_small.maskrcnn_3x_coco",
    box_ap=48.6,
    mask_ap=43.5,
)

model = dict(
    backbone=dict(
        name="dinat_s_small",
        dilations=[[1, 28], [1, 14], [1, 3, 1, 5, 1, 7] * 3, [1, 3]],
        drop_path_rate=0.35,
    ),
)
