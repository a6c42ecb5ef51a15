"""UPerNet on VAN (B5): 160,000 steps on ADE20K."""

_base_ = "./upernet_van-b0_160k_ade20k-512x512.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2202.09741",
    entry="van_b5.upernet_160k_ade20k_in22k",
    miou_ms=53.9,
)

# No trained classifier of this size can be downloaded: backbone.checkpoint takes a file.
model = dict(
    backbone=dict(name="van_b5", drop_path_rate=0.4, pretrained=False),
    decode_head=dict(in_channels=[96, 192, 480, 768]),
    auxiliary_head=dict(in_channels=480),
)
