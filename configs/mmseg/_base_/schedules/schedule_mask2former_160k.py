"""Mask2Former's 160,000 steps: the backbone learns at a tenth of the rate, gradients are clipped at a norm of 0.01.

Norms are not decayed; a config lists those of its backbone, which the key "backbone" would hide.
"""

_base_ = "./schedule_160k.py"

optim_wrapper = dict(
    optimizer=dict(lr=1e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=0.01, norm_type=2),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys={
            "backbone": dict(lr_mult=0.1),
            "query_embed": dict(decay_mult=0.0),
            "query_feat": dict(decay_mult=0.0),
            "level_embed": dict(decay_mult=0.0),
        },
    ),
)
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=0.0, by_epoch=False, begin=0, end=160000)]
