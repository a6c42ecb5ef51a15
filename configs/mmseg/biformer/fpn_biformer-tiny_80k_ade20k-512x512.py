"""Semantic FPN on BiFormer (tiny): 80,000 steps on ADE20K."""

_base_ = "./fpn_biformer-small_80k_ade20k-512x512.py"

# ours: no paper has this cell
metadata = dict(_delete_=True, origin="ours")

model = dict(
    backbone=dict(name="biformer_tiny", drop_path_rate=0.1),
)
