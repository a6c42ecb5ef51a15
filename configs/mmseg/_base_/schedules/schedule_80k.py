"""80,000 steps of AdamW; the rate falls by a power of 0.9 from the first step on."""

train_cfg = dict(type="IterBasedTrainLoop", max_iters=80000, val_interval=8000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-4),
)
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=1e-6, by_epoch=False, begin=0, end=80000)]
auto_scale_lr = dict(enable=False, base_batch_size=16)
