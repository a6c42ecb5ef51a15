"""UPerNet on L2ViT (small): 160,000 steps on ADE20K."""

_base_ = "./upernet_l2vit-tiny_160k_ade20k-512x512.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2501.16182",
    entry="l2vit_small.upernet_ade20k",
    miou=48.7,
)

model = dict(
    backbone=dict(name="l2vit_small"),
)
