"""UPerNet on VAN (B4): 160,000 steps on ADE20K."""

_base_ = "./upernet_van-b0_160k_ade20k-512x512.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2202.09741",
    entry="van_b4.upernet_160k_ade20k",
    miou_ms=52.2,
)

# No trained classifier of this size can be downloaded: backbone.checkpoint takes a file.
model = dict(
    backbone=dict(name="van_b4", drop_path_rate=0.4, pretrained=False),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
    auxiliary_head=dict(in_channels=320),
)
