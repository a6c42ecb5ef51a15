"""Semantic FPN on BiFormer (small): 80,000 steps on ADE20K."""

_base_ = [
    "../_base_/models/semantic-fpn.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/schedule_80k_cosine.py",
    "../_base_/default_runtime.py",
]

metadata = dict(
    origin="published",
    paper="arXiv:2303.08810",
    precision="fp16",
    entry="biformer_small.semantic_fpn_80k_ade20k",
    miou=48.9,
)

model = dict(
    backbone=dict(
        name="biformer_small",
        pretrained=True,
        num_regions=8,
        drop_path_rate=0.15,
        out_norm=True,
        norm_eval=True,
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
train_dataloader = dict(batch_size=4)
