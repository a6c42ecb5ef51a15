"""UPerNet on Agent-CSWin (small): 160,000 steps on ADE20K."""

_base_ = "./upernet_agent-cswin-tiny_160k_ade20k-512x512.py"

# ours: no paper has this cell
metadata = dict(_delete_=True, origin="ours")

model = dict(
    backbone=dict(name="agent_cswin_small"),
)
