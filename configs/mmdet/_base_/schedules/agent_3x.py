"""As schedule_3x; Agent-Swin and Agent-CSWin put no weight decay on norms and position biases."""

_base_ = "./schedule_3x.py"

optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            "rel_pos_bias": dict(decay_mult=0.0),
            "norm": dict(decay_mult=0.0),
            "an_bias": dict(decay_mult=0.0),
            "na_bias": dict(decay_mult=0.0),
            "ah_bias": dict(decay_mult=0.0),
            "aw_bias": dict(decay_mult=0.0),
            "ha_bias": dict(decay_mult=0.0),
            "wa_bias": dict(decay_mult=0.0),
        }
    ),
)
