"""Every image classifier of transformers, tiny: each class of its image-classification mapping with a config for 64 pixels."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

from kd.models.zoo import label_config
from tests.support import toys

# The side of their inputs in pixels.
SIDE = 64

_VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 16}
_VIT["image_size"] = SIDE
_TOWERS = {
    "text_config": {**_VIT, "vocab_size": 32, "max_position_embeddings": 8, "eos_token_id": 1, "bos_token_id": 0},
    "vision_config": _VIT,
}
_SWIN = {"image_size": SIDE, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
_STAGES = {"depths": [1, 1], "hidden_sizes": [8, 16]}
_PYRAMID = {
    "image_size": SIDE, "depths": [1] * 4, "hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2],
}  # fmt: skip

# By the model's type in its config; other types get the arguments of a ViT.
SIZES: dict[str, dict[str, Any]] = {
    "beit": {**_VIT, "use_relative_position_bias": True},
    "data2vec-vision": {**_VIT, "use_shared_relative_position_bias": True},
    "bit": {**_STAGES, "embedding_size": 8, "num_groups": 4},
    "clip": _TOWERS,
    "metaclip_2": _TOWERS,
    "siglip": _TOWERS,
    "siglip2": {**_TOWERS, "vision_config": {**_VIT, "num_patches": 16}},
    "convnext": {"image_size": SIDE, "depths": [1] * 4, "hidden_sizes": [8, 8, 16, 16]},
    "convnextv2": {"image_size": SIDE, "depths": [1] * 4, "hidden_sizes": [8, 8, 16, 16]},
    "cvt": {"embed_dim": [8, 8, 16], "num_heads": [1, 1, 2], "depth": [1, 2, 3]},
    "dinat": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "dilations": [[1], [1]], "kernel_size": 3},
    "swin": _SWIN,
    "swinv2": _SWIN,
    "donut-swin": _SWIN,
    "efficientnet": {
        "image_size": SIDE, "width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 320,
    },
    "focalnet": {"image_size": SIDE, "embed_dim": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "focal_levels": [1, 1], "focal_windows": [3, 3]},
    "hgnet_v2": {
        "embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "stem_channels": [3, 8, 8],
        "stage_in_channels": [8, 8, 8, 16], "stage_mid_channels": [8] * 4, "stage_out_channels": [8, 8, 16, 16],
        "stage_num_blocks": [1] * 4, "stage_numb_of_layers": [1] * 4,
    },
    "hiera": {"image_size": [SIDE, SIDE], "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "num_query_pool": 1},
    "imagegpt": {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 33, "n_positions": 64},
    "levit": {"image_size": SIDE, "hidden_sizes": [16, 16, 32], "num_attention_heads": [1, 1, 2], "depths": [1] * 3, "key_dim": [8] * 3},
    "mobilenet_v1": {"image_size": SIDE, "depth_multiplier": 0.25},
    "mobilenet_v2": {"image_size": SIDE, "depth_multiplier": 0.35},
    "mobilevit": {"image_size": SIDE, "hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8] * 6 + [32], "num_attention_heads": 2},
    "mobilevitv2": {"image_size": SIDE, "width_multiplier": 0.25, "n_attn_blocks": [1, 1, 1]},
    "perceiver": {"num_latents": 4, "d_latents": 16, "d_model": 16, "num_self_attends_per_block": 1, "num_self_attention_heads": 2, "num_cross_attention_heads": 1, "image_size": SIDE},
    "poolformer": {"depths": [1] * 4, "hidden_sizes": [8, 8, 16, 16]},
    "pp_lcnet": {"scale": 0.25, "class_expand": 16},
    "pvt": _PYRAMID,
    "pvt_v2": {**_PYRAMID, "mlp_ratios": [2] * 4},
    "segformer": _PYRAMID,
    "regnet": {**_STAGES, "embedding_size": 8, "groups_width": 4},
    "resnet": {**_STAGES, "embedding_size": 8, "layer_type": "basic"},
    "swiftformer": {"image_size": SIDE, "depths": [1] * 4, "embed_dims": [8, 8, 16, 16]},
    "textnet": {"image_size": SIDE, "hidden_sizes": [8] * 5, "stem_out_channels": 8, "conv_layer_kernel_sizes": [[[3, 3]]] * 4, "conv_layer_strides": [[1], [2], [2], [2]]},
    "shieldgemma2": {
        "text_config": {
            "vocab_size": 33, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8,
            "num_attention_heads": 2, "num_key_value_heads": 1,
        },
        "vision_config": {"model_type": "siglip_vision_model", **_VIT},
        "mm_tokens_per_image": 4, "image_token_index": 30, "boi_token_index": 31, "eoi_token_index": 32,
    },
    "timm_wrapper": {"architecture": "resnet18"},
}  # fmt: skip

ALL: dict[str, tuple[type, type]] = {
    model.__name__: (config, model)
    for config, models in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.items()
    for model in (models if isinstance(models, tuple) else (models,))
}


def tiny(name: str, classes: list[str] = toys.CLASSES, **settings: Any) -> PreTrainedModel:
    """Make a model of one of these classes, none of whose tensors is constant; the ``settings`` are its config's."""
    config_type, model_type = ALL[name]
    torch.manual_seed(0)
    config = config_type(**SIZES.get(config_type.model_type, _VIT))
    for key, value in {**label_config(classes), "num_labels": len(classes), **settings}.items():
        setattr(config, key, value)
    model = model_type(config)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor += 0.01 * torch.rand_like(tensor)
    return model


def processor(name: str) -> Any:
    """Make the image processor that belongs to a class, for inputs of ``SIDE`` pixels."""
    kinds = IMAGE_PROCESSOR_MAPPING.get(ALL[name][0], None) or {}
    kind = kinds.get("pil")
    if kind is None:  # that of the others needs torchvision
        return toys.processor(SIDE)
    square, settings = {"height": SIDE, "width": SIDE}, kind().to_dict()
    sizes = {"size": dict.fromkeys(settings["size"], SIDE) if settings.get("size") else None, "crop_size": square}
    return kind.from_dict({**settings, **{key: sizes[key] for key in sizes if settings.get(key)}})


def save(name: str, folder: Path, classes: list[str] = toys.CLASSES, **settings: Any) -> Path:
    """Save a tiny model of one of these classes with its processor."""
    tiny(name, classes, **settings).save_pretrained(folder)
    processor(name).save_pretrained(folder)
    return folder
