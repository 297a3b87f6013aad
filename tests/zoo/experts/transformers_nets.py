"""transformers: classifiers and models without a head."""

from collections.abc import Callable
from typing import Any

import transformers as hf
from torch import nn

from experts.answer import Expert, Library

SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 48, "image_size": 32, "patch_size": 8}
STAGES: dict[str, Any] = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}
RESNET: dict[str, Any] = STAGES | {"layer_type": "basic", "embedding_size": 8}
SWIN: dict[str, Any] = {"image_size": 64, "embed_dim": 12, "depths": [1, 1], "num_heads": [1, 2]}
SWIN |= {"window_size": 4}
TOKEN, MEAN = ">token@last_hidden_state", ">tokens@last_hidden_state"
POOLED = f">@pooler_output | {TOKEN}"


def made(model: str, config: str, **values: Any) -> Callable[[], nn.Module]:
    """Builds a model from its configuration."""

    def build() -> nn.Module:
        net: nn.Module = getattr(hf, model)(getattr(hf, config)(**values))
        return net

    return build


def classifiers(net: Library) -> list[Expert]:
    """The input of the classifier."""
    one = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
    pvt = {"image_size": 64, "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}
    pvt |= {"num_attention_heads": [1, 1, 2, 2]}
    mobile = {"image_size": 64, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes":
              [8, 8, 16, 24, 32, 40, 64], "num_attention_heads": 2}  # fmt: skip
    cvt = {"embed_dim": [8, 16, 32], "num_heads": [1, 1, 2], "depth": [1, 2, 3]}
    focal = {"image_size": 64, "embed_dim": 12, "depths": [1, 1], "focal_levels": [1, 1]}
    focal |= {"focal_windows": [3, 3], "hidden_sizes": [12, 24]}
    hiera = {"image_size": [64, 64], "embed_dim": 8, "depths": [1, 1, 1], "num_heads": [1, 1, 2]}
    hiera |= {"num_query_pool": 2, "masked_unit_size": [8, 8]}
    swift = {"depths": [1, 1, 1, 1], "embed_dims": [8, 16, 24, 32]}

    def image(name: str, config: str, answers: str = "classifier<", size: int = 64,
              **values: Any) -> Expert:  # fmt: skip
        kind = f"{name}ForImageClassification"
        return net(kind, made(kind, f"{config}Config", **values), size, answers)

    return [
        image("Beit", "Beit", size=32, **SMALL),
        image("Data2VecVision", "Data2VecVision", size=32, **SMALL),
        image("DeiT", "DeiT", size=32, **SMALL),
        net("DeiTForImageClassificationWithTeacher", made("DeiTForImageClassificationWithTeacher",
            "DeiTConfig", **SMALL), 32, "cls_classifier< | distillation_classifier<"),
        net("LevitForImageClassificationWithTeacher", made("LevitForImageClassificationWithTeacher",
            "LevitConfig", image_size=64, hidden_sizes=[16, 24, 32], num_attention_heads=[1, 1, 2],
            depths=[1, 1, 1], key_dim=[8, 8, 8]), 64,
            "classifier.linear< | classifier_distill.linear< | classifier<"),
        image("ViTMSN", "ViTMSN", size=32, **SMALL),
        image("Siglip", "Siglip", size=32, vision_config=SMALL),
        image("CLIP", "CLIP", size=32, vision_config=SMALL),
        image("IJepa", "IJepa", size=32, **SMALL),
        image("Dinov2WithRegisters", "Dinov2WithRegisters", size=32, **SMALL),
        image("MobileNetV1", "MobileNetV1", depth_multiplier=0.25, image_size=64),
        image("MobileNetV2", "MobileNetV2", depth_multiplier=0.35, image_size=64),
        image("MobileViT", "MobileViT", **mobile),
        image("MobileViTV2", "MobileViTV2", image_size=64, width_multiplier=0.25),
        image("PoolFormer", "PoolFormer", depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32]),
        image("Pvt", "Pvt", **pvt),
        image("PvtV2", "PvtV2", **pvt),
        image("RegNet", "RegNet", "classifier.1<", **one, groups_width=8, embedding_size=8),
        image("Bit", "Bit", "classifier.1<", **one, embedding_size=8, num_groups=4),
        image("Cvt", "Cvt", **cvt),
        image("EfficientNet", "EfficientNet", image_size=64, width_coefficient=0.5,
              depth_coefficient=0.5, hidden_dim=640),
        image("FocalNet", "FocalNet", **focal),
        image("Hiera", "Hiera", **hiera),
        image("Swinv2", "Swinv2", **SWIN),
        image("ConvNextV2", "ConvNextV2", **STAGES),
        image("SwiftFormer", "SwiftFormer", "head< | dist_head<", image_size=64, **swift),
        image("TextNet", "TextNet", "fc<"),
        image("HGNetV2", "HGNetV2", "fc<", embedding_size=16,
              stem_channels=[3, 8, 16], stage_in_channels=[16, 16, 24, 32],
              stage_mid_channels=[8, 8, 8, 8], stage_out_channels=[16, 24, 32, 40],
              stage_num_blocks=[1, 1, 1, 1], stage_numb_of_layers=[2, 2, 2, 2],
              hidden_sizes=[16, 24, 32, 40], depths=[1, 1, 1, 1]),
    ]  # fmt: skip


def models(net: Library) -> list[Expert]:
    """The pooled output, the class token where there is one, the mean where there is none."""
    sam = {"hidden_size": 32, "output_channels": 16, "num_hidden_layers": 1, "image_size": 64}
    sam |= {"num_attention_heads": 2, "patch_size": 8, "global_attn_indexes": [0]}
    mae = SMALL | {"mask_ratio": 0.5, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1}
    mae |= {"decoder_num_attention_heads": 2, "decoder_intermediate_size": 16}

    def model(name: str, answers: str, size: int = 32, config: str = "", **values: Any) -> Expert:
        return net(name, made(name, config or name.replace("Model", "Config"), **values), size,
                   answers)  # fmt: skip

    return [
        model("BeitModel", f">@pooler_output | {MEAN} | {TOKEN}", **SMALL),
        model("Data2VecVisionModel", f"{MEAN} | {TOKEN}", **SMALL),
        model("DeiTModel", POOLED, **SMALL),
        model("ViTMSNModel", TOKEN, **SMALL),
        model("ViTMAEModel", TOKEN, **mae),
        model("IJepaModel", MEAN, **SMALL),
        model("Dinov2WithRegistersModel", POOLED, **SMALL),
        model("DINOv3ViTModel", POOLED, **SMALL),
        model("DINOv3ConvNextModel", POOLED, 64, **STAGES),
        model("SiglipVisionModel", ">@pooler_output", **SMALL),
        model("Aimv2VisionModel", f">@pooler_output | {MEAN}", **SMALL),
        model("BlipVisionModel", POOLED, **SMALL),
        model("MobileNetV2Model", ">@pooler_output", 64, depth_multiplier=0.35),
        model("RegNetModel", ">@pooler_output", 64, **STAGES, groups_width=8, embedding_size=8),
        model("ConvNextV2Model", ">@pooler_output", 64, **STAGES),
        model("Swinv2Model", ">@pooler_output", 64, **SWIN),
        model("SamVisionModel", ">mean@last_hidden_state", 64, "SamVisionConfig", **sam),
        model("VitDetModel", ">mean@last_hidden_state", **{k: v for k, v in SMALL.items()
              if k != "intermediate_size"}, mlp_ratio=2),
        model("GLPNModel", ">mean@last_hidden_state", 64, depths=[1] * 4, hidden_sizes=[8, 16, 24,
              32], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=8),
        model("CvtModel", ">token@cls_token_value", 64, embed_dim=[8, 16, 32],
              num_heads=[1, 1, 2], depth=[1, 2, 3]),
        model("PoolFormerModel", ">mean@last_hidden_state", 64, depths=[1] * 4,
              hidden_sizes=[8, 16, 24, 32]),
        model("CLIPVisionModelWithProjection", "visual_projection< | >@image_embeds", 32,
              "CLIPVisionConfig", **SMALL),
    ]  # fmt: skip


def nets() -> list[Expert]:
    """With a head and without."""
    net = Library("transformers")
    return classifiers(net) + models(net)
