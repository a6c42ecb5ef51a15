"""UPerNet on S2AFormer (tiny): 160,000 steps on ADE20K."""

_base_ = "./upernet_s2aformer-mini_160k_ade20k-512x512.py"

# ours: a reconstruction, so the paper's settings and figures are not this network's
metadata = dict(_delete_=True, origin="ours")

model = dict(
    backbone=dict(name="s2aformer_tiny"),
    decode_head=dict(in_channels=[32, 64, 160, 320]),
    auxiliary_head=dict(in_channels=160),
)
