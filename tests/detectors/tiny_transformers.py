"""Configurations of transformers' detection models with a few ten thousand parameters, as a user writes them."""

RESNET = {
    "embedding_size": 8,
    "hidden_sizes": [8, 12, 16, 24],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}
HGNET = {
    "model_type": "hgnet_v2",
    "stem_channels": [3, 8, 8],
    "stage_in_channels": [8, 8, 12, 16],
    "stage_mid_channels": [4, 4, 4, 4],
    "stage_out_channels": [8, 12, 16, 24],
    "stage_num_blocks": [1, 1, 1, 1],
    "stage_numb_of_layers": [2, 2, 2, 2],
    "embedding_size": 8,
    "hidden_sizes": [8, 12, 16, 24],
    "depths": [1, 1, 1, 1],
    "out_features": ["stage2", "stage3", "stage4"],
}
LAST_OF_RESNET = {**RESNET, "model_type": "resnet", "out_features": ["stage4"]}
THREE_OF_RESNET = {**RESNET, "model_type": "resnet", "out_features": ["stage2", "stage3", "stage4"]}
RT_RESNET = {**THREE_OF_RESNET, "model_type": "rt_detr_resnet"}
DETR = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_queries": 20,
}
RT_DETR = {
    **DETR,
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [12, 16, 24],
    "decoder_in_channels": [32, 32, 32],
    "num_denoising": 4,
    "hidden_expansion": 0.5,
}
TINY = {
    "detr": {**DETR, "model_type": "detr", "backbone_config": LAST_OF_RESNET},
    "conditional_detr": {**DETR, "model_type": "conditional_detr", "backbone_config": LAST_OF_RESNET},
    "deformable_detr": {**DETR, "model_type": "deformable_detr", "backbone_config": THREE_OF_RESNET},
    "rt_detr": {**RT_DETR, "model_type": "rt_detr", "backbone_config": RT_RESNET},
    "rt_detr_v2": {**RT_DETR, "model_type": "rt_detr_v2", "backbone_config": RT_RESNET},
    "d_fine": {**RT_DETR, "model_type": "d_fine", "backbone_config": HGNET},
}
