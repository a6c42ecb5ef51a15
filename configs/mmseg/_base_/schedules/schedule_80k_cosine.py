"""80,000 steps of AdamW on 32 crops at a time: a warm-up of 1000 steps, then a cosine."""

_base_ = "./schedule_80k.py"

optim_wrapper = dict(optimizer=dict(lr=2e-4))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=1000),
    dict(type="CosineAnnealingLR", eta_min_ratio=1e-8, by_epoch=False, begin=0, end=80000),
]
auto_scale_lr = dict(enable=False, base_batch_size=32)
