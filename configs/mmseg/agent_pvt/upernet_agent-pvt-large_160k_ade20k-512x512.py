"""UPerNet on Agent-PVT (large): 160,000 steps on ADE20K."""

_base_ = "./upernet_agent-pvt-tiny_160k_ade20k-512x512.py"

# ours: no paper has this cell
metadata = dict(_delete_=True, origin="ours")

model = dict(
    backbone=dict(name="agent_pvt_large", drop_path_rate=0.3),
)
