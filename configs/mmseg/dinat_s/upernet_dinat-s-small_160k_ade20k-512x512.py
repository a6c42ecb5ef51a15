"""UPerNet on DiNAT_s (small): 160,000 steps on ADE20K."""

_base_ = "./upernet_dinat-s-tiny_160k_ade20k-512x512.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2209.15001",
    precision="fp16",
    entry="dinat_s_small.upernet_160k_ade20k",
    miou=48.6,
    miou_ms=49.9,
)

model = dict(
    backbone=dict(name="dinat_s_small", dilations=[[1, 16], [1, 8], [1, 2, 1, 3, 1, 4] * 3, [1, 2]]),
)
