"""UPerNet on Agent-CSWin (base): 160,000 steps on ADE20K."""

_base_ = "./upernet_agent-cswin-tiny_160k_ade20k-512x512.py"

# ours: no paper has this cell
metadata = dict(_delete_=True, origin="ours")

model = dict(
    backbone=dict(name="agent_cswin_base", drop_path_rate=0.5),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
