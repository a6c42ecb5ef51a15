"""UPerNet on NAT (tiny): 160,000 steps on ADE20K."""

_base_ = "./upernet_nat-mini_160k_ade20k-512x512.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2204.07143",
    precision="fp16",
    entry="nat_tiny.upernet_160k_ade20k",
    miou=47.1,
    miou_ms=48.4,
)

model = dict(
    backbone=dict(name="nat_tiny", drop_path_rate=0.3),
)
