"""UPerNet on DiNAT (tiny): 160,000 steps on ADE20K."""

_base_ = "./upernet_dinat-mini_160k_ade20k-512x512.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2209.15001",
    precision="fp16",
    entry="dinat_tiny.upernet_160k_ade20k",
    miou=47.8,
    miou_ms=48.8,
)

model = dict(
    backbone=dict(
        name="dinat_tiny",
        dilations=[[1, 16, 1], [1, 4, 1, 8], [1, 2, 1, 3, 1, 4] * 3, [1, 2, 1, 2, 1]],
        drop_path_rate=0.3,
    ),
)
