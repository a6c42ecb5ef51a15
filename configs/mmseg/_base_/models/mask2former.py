"""Mask2Former with 100 queries; a config adds the backbone's name and ``decode_head.in_channels``. Needs mmdet too."""

num_classes = 150
positions = dict(num_feats=128, normalize=True)
matching = [
    dict(type="mmdet.ClassificationCost", weight=2.0),
    dict(type="mmdet.CrossEntropyLossCost", weight=5.0, use_sigmoid=True),
    dict(type="mmdet.DiceCost", weight=5.0, pred_act=True, eps=1.0),
]

model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(640, 640),
        test_cfg=dict(size_divisor=32),
    ),
    backbone=dict(type="attnzoo.Backbone", out_indices=(0, 1, 2, 3)),
    decode_head=dict(
        type="Mask2FormerHead",
        strides=[4, 8, 16, 32],
        feat_channels=256,
        out_channels=256,
        num_classes=num_classes,
        num_queries=100,
        num_transformer_feat_level=3,
        align_corners=False,
        pixel_decoder=dict(
            type="mmdet.MSDeformAttnPixelDecoder",
            num_outs=3,
            norm_cfg=dict(type="GN", num_groups=32),
            act_cfg=dict(type="ReLU"),
            encoder=dict(
                num_layers=6,
                layer_cfg=dict(
                    self_attn_cfg=dict(embed_dims=256, num_heads=8, num_levels=3, num_points=4, batch_first=True),
                    ffn_cfg=dict(embed_dims=256, feedforward_channels=1024, num_fcs=2, act_cfg=dict(type="ReLU")),
                ),
            ),
            positional_encoding=positions,
        ),
        enforce_decoder_input_project=False,
        positional_encoding=positions,
        transformer_decoder=dict(
            return_intermediate=True,
            num_layers=9,
            layer_cfg=dict(
                self_attn_cfg=dict(embed_dims=256, num_heads=8, batch_first=True),
                cross_attn_cfg=dict(embed_dims=256, num_heads=8, batch_first=True),
                ffn_cfg=dict(embed_dims=256, feedforward_channels=2048, num_fcs=2, act_cfg=dict(type="ReLU")),
            ),
        ),
        # The last weight is that of "no object".
        loss_cls=dict(
            type="mmdet.CrossEntropyLoss", loss_weight=2.0, reduction="mean", class_weight=[1.0] * num_classes + [0.1]
        ),
        loss_mask=dict(type="mmdet.CrossEntropyLoss", use_sigmoid=True, reduction="mean", loss_weight=5.0),
        loss_dice=dict(
            type="mmdet.DiceLoss", activate=True, reduction="mean", naive_dice=True, eps=1.0, loss_weight=5.0
        ),
        train_cfg=dict(
            num_points=12544,
            oversample_ratio=3.0,
            importance_sample_ratio=0.75,
            assigner=dict(type="mmdet.HungarianAssigner", match_costs=matching),
            sampler=dict(type="mmdet.MaskPseudoSampler"),
        ),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
