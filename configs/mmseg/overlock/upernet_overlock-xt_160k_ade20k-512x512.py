"""UPerNet on OverLoCK (xt): 160,000 steps on ADE20K."""

_base_ = "./upernet_overlock-tiny_160k_ade20k-512x512.py"

# ours: no paper has this cell
metadata = dict(_delete_=True, origin="ours")

model = dict(
    backbone=dict(name="overlock_xt", drop_path_rate=0.1),
    decode_head=dict(in_channels=[56, 112, 340, 420]),
    auxiliary_head=dict(in_channels=340),
)
