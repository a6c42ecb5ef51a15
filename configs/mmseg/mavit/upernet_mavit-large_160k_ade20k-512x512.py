"""UPerNet on MAViT (large): 160,000 steps on ADE20K."""

_base_ = "./upernet_mavit-tiny_160k_ade20k-512x512.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2507.00698",
    precision="fp16",
    entry="mavit_large.upernet_ade20k",
    miou=53.6,
)

model = dict(
    backbone=dict(name="mavit_large", drop_path_rate=0.55),
    decode_head=dict(in_channels=[96, 192, 448, 640]),
    auxiliary_head=dict(in_channels=448),
)
train_dataloader = dict(batch_size=1)
auto_scale_lr = dict(base_batch_size=8)
