"""UPerNet on VAN (B4) from ImageNet-22K weights: 160,000 steps on ADE20K."""

_base_ = "./upernet_van-b4_160k_ade20k-512x512.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2202.09741",
    entry="van_b4.upernet_160k_ade20k_in22k",
    miou_ms=53.5,
)

train_dataloader = dict(batch_size=4)
auto_scale_lr = dict(base_batch_size=32)
