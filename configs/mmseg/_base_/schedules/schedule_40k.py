"""40,000 steps of AdamW; the rate falls by a power of 0.9 from the first step on, to nothing."""

_base_ = "./schedule_80k.py"

train_cfg = dict(max_iters=40000, val_interval=4000)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=0.0, by_epoch=False, begin=0, end=40000)]
