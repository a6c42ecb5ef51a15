"""UPerNet on VAN (B1): 160,000 steps on ADE20K."""

_base_ = "./upernet_van-b0_160k_ade20k-512x512.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2202.09741",
    entry="van_b1.upernet_160k_ade20k",
    miou_ms=44.9,
)

model = dict(
    backbone=dict(name="van_b1"),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
    auxiliary_head=dict(in_channels=320),
)
