"""UPerNet on BiFormer (base): 160,000 steps on ADE20K."""

_base_ = "./upernet_biformer-small_160k_ade20k-512x512.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2303.08810",
    precision="fp16",
    entry="biformer_base.upernet_160k_ade20k",
    miou=51.0,
)

model = dict(
    backbone=dict(name="biformer_base", drop_path_rate=0.4),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
