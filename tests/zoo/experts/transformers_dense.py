"""transformers: backbones that return several maps, and dense heads."""

from collections.abc import Callable
from typing import Any

import transformers as hf
from torch import nn

from experts.answer import Expert, Library
from experts.transformers_nets import RESNET, SMALL, STAGES, SWIN, made

MAPS = ">mean@feature_maps@-1"
LAST = "@last_hidden_state"


def backbone(config: str, **values: Any) -> Callable[[], nn.Module]:
    """As users build it: ``AutoBackbone`` of a configuration."""

    def build() -> nn.Module:
        net: nn.Module = hf.AutoBackbone.from_config(getattr(hf, f"{config}Config")(**values))
        return net

    return build


def backbones(net: Library) -> list[Expert]:
    """The deepest of the maps that were asked for."""
    first, last = {"out_features": ["stage1", "stage2"]}, {"out_features": ["stage2", "stage4"]}
    vit = f"{MAPS} | layernorm>token | refuse"
    pvt = {"image_size": 64, "depths": [1] * 4, "hidden_sizes": [8, 16, 24, 32]}
    pvt |= {"num_attention_heads": [1, 1, 2, 2]}
    focal = {"image_size": 64, "embed_dim": 12, "depths": [1, 1], "focal_levels": [1, 1]}
    focal |= {"focal_windows": [3, 3], "hidden_sizes": [12, 24]}
    hiera = {"image_size": [64, 64], "embed_dim": 8, "depths": [1, 1, 1], "num_heads": [1, 1, 2]}
    hiera |= {"num_query_pool": 2, "masked_unit_size": [8, 8]}
    hg = {"embedding_size": 16, "stem_channels": [3, 8, 16], "stage_num_blocks": [1] * 4}
    hg |= {"stage_in_channels": [16, 16, 24, 32], "stage_mid_channels": [8] * 4}
    hg |= {"stage_out_channels": [16, 24, 32, 40], "stage_numb_of_layers": [2] * 4}
    hg |= {"hidden_sizes": [16, 24, 32, 40], "depths": [1] * 4}
    detect = {k: v for k, v in SMALL.items() if k != "intermediate_size"} | {"mlp_ratio": 2}
    full = {"reshape_hidden_states": True}
    maskformer = SWIN | {"depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2]}

    def body(config: str, size: int, answers: str = MAPS, **values: Any) -> Expert:
        return net(f"{config} backbone", backbone(config, **values), size, answers)

    return [
        body("ConvNext", 64, **STAGES, **last),
        body("ConvNextV2", 64, **STAGES, **last),
        body("ResNet", 64, **RESNET, out_features=["stage1", "stage2", "stage3", "stage4"]),
        net("ResNet backbone, deepest first", backbone("ResNet", **RESNET,
            out_indices=[1, 3]), 64, MAPS),
        net("ResNet backbone, two of the middle", backbone("ResNet", **RESNET,
            out_features=["stage1", "stage2"]), 64, MAPS),
        body("Swin", 64, **SWIN, **first),
        body("Swinv2", 64, **SWIN, **first),
        body("MaskFormerSwin", 64, **maskformer, **last),
        body("FocalNet", 64, **focal, **first),
        body("Dinov2", 32, vit, **SMALL, **first, **full),
        net("Dinov2 backbone, tokens", backbone("Dinov2", **SMALL, **first,
            reshape_hidden_states=False), 32,
            ">token@feature_maps@-1 | >tokens@feature_maps@-1 | layernorm>token"),
        body("Dinov2WithRegisters", 32, vit, **SMALL, **first),
        body("DINOv3ViT", 32, f"{MAPS} | norm>token | refuse", **SMALL, **first),
        body("Beit", 32, **SMALL, **first, **full),
        body("VitDet", 32, **detect, **first),
        body("PvtV2", 64, **pvt, **last),
        body("Hiera", 64, **hiera, out_features=["stage1", "stage3"]),
        body("Bit", 64, **STAGES, embedding_size=8, num_groups=4, **last),
        body("HGNetV2", 64, **hg, **last),
        body("TextNet", 64, out_features=["stage2", "stage4"]),
        body("RTDetrResNet", 64, **RESNET, **last),
        net("timm's backbone", lambda: hf.AutoBackbone.from_config(hf.TimmBackboneConfig(
            backbone="test_resnet", use_pretrained_backbone=False, out_indices=[1, 3])), 64, MAPS),
    ]  # fmt: skip


def dense_heads(net: Library) -> list[Expert]:
    """What the head reads, at its deepest; or an error."""
    segformer = STAGES | {"num_encoder_blocks": 4, "decoder_hidden_size": 16}
    segformer |= {"num_attention_heads": [1, 1, 2, 2]}
    convnext = hf.ConvNextConfig(**STAGES, out_features=["stage1", "stage2", "stage3", "stage4"])
    mae = SMALL | {"mask_ratio": 0.5, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1}
    mae |= {"decoder_num_attention_heads": 2, "decoder_intermediate_size": 16}
    glpn = {"depths": [1] * 4, "hidden_sizes": [8, 16, 24, 32], "decoder_hidden_size": 8}
    glpn |= {"num_attention_heads": [1, 1, 2, 2]}
    mobile = {"image_size": 64, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes":
              [8, 8, 16, 24, 32, 40, 64], "num_attention_heads": 2}  # fmt: skip
    dpt = SMALL | {"neck_hidden_sizes": [8, 8, 16, 16]}
    dpt |= {"fusion_hidden_size": 16, "num_hidden_layers": 4, "is_hybrid": False}
    dpt |= {"backbone_out_indices": [0, 1, 2, 3]}
    detr = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32}
    detr |= {"decoder_ffn_dim": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    detr |= {"num_queries": 4, "use_timm_backbone": False, "use_pretrained_backbone": False}
    detr |= {"backbone": None, "backbone_config": hf.ResNetConfig(**RESNET,
             out_features=["stage4"])}  # fmt: skip
    sr = {"embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}

    def head(name: str, config: str, answers: str, size: int = 64, **values: Any) -> Expert:
        return net(name, made(name, f"{config}Config", **values), size, f"{answers} | refuse")

    return [
        head("SegformerForSemanticSegmentation", "Segformer", f"segformer>mean{LAST}",
             **segformer),
        head("UperNetForSemanticSegmentation", "UperNet", "backbone>mean@feature_maps@-1",
             backbone_config=convnext, hidden_size=16, auxiliary_in_channels=24,
             auxiliary_channels=16),
        head("MobileViTForSemanticSegmentation", "MobileViT", f"mobilevit>mean{LAST} | "
             "segmentation_head.aspp>mean | segmentation_head.classifier<mean", **mobile),
        head("MobileNetV2ForSemanticSegmentation", "MobileNetV2", f"mobilenet_v2>mean{LAST} | "
             "segmentation_head.conv_projection>mean | segmentation_head.classifier<mean",
             depth_multiplier=0.35, image_size=64),
        head("BeitForSemanticSegmentation", "Beit",
             f"beit>token{LAST} | beit>tokens{LAST} | beit>skip1{LAST}", 32, **{**SMALL,
             "num_hidden_layers": 4}, out_indices=[1, 2, 3, 4], use_auxiliary_head=False),
        head("DPTForDepthEstimation", "DPT",
             f"dpt>token{LAST} | dpt>tokens{LAST} | dpt>skip1{LAST}", 32, **dpt),
        head("DPTForSemanticSegmentation", "DPT",
             f"dpt>token{LAST} | dpt>tokens{LAST} | dpt>skip1{LAST}", 32, **dpt,
             use_auxiliary_head=False),
        head("GLPNForDepthEstimation", "GLPN", f"glpn>mean{LAST}", **glpn),
        head("DepthAnythingForDepthEstimation", "DepthAnything",
             "backbone>token@feature_maps@-1 | backbone>tokens@feature_maps@-1 | "
             "backbone>skip1@feature_maps@-1 | backbone.layernorm>token", 56,
             backbone_config=hf.Dinov2Config(**{**SMALL, "image_size": 56, "patch_size": 14,
             "num_hidden_layers": 4}, out_indices=[1, 2, 3, 4], reshape_hidden_states=False,
             apply_layernorm=True), reassemble_hidden_size=32, neck_hidden_sizes=[8, 8, 16, 16],
             fusion_hidden_size=16, head_hidden_size=8, patch_size=14),
        head("ViTForMaskedImageModeling", "ViT",
             f"vit>token{LAST} | vit>tokens{LAST} | vit>skip1{LAST}", 32, **SMALL,
             encoder_stride=8),
        head("SwinForMaskedImageModeling", "Swin", f"swin>tokens{LAST}",
             **SWIN, encoder_stride=8),
        head("ViTMAEForPreTraining", "ViTMAE",
             f"vit>token{LAST} | vit>tokens{LAST} | vit>skip1{LAST}", 32, **mae),
        head("BeitForMaskedImageModeling", "Beit", f"beit>token{LAST} | beit>tokens{LAST} | "
             "layernorm>token | layernorm>tokens | layernorm>skip1", 32, **SMALL, vocab_size=64),
        head("DetrForObjectDetection", "Detr",
             "model.backbone.model>mean@feature_maps@-1 | model.encoder>tokens@last_hidden_state",
             **detr),
        head("YolosForObjectDetection", "Yolos",
             f"vit>token{LAST} | vit>tokens{LAST}", 32, **{**SMALL,
             "image_size": [32, 32]}, num_detection_tokens=4),
        head("Swin2SRForImageSuperResolution", "Swin2SR", f"swin2sr>mean{LAST}", 32,
             image_size=32, **sr, upscale=2),
        head("SuperPointForKeypointDetection", "SuperPoint", "encoder>mean@last_hidden_state", 64,
             encoder_hidden_sizes=[8, 8, 16, 16], decoder_hidden_size=16,
             keypoint_decoder_dim=65, descriptor_decoder_dim=16),
    ]  # fmt: skip


def nets() -> list[Expert]:
    """Backbones, and heads on them."""
    net = Library("transformers, backbones and dense heads")
    return backbones(net) + dense_heads(net)
