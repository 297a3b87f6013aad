"""timm in its other modes: maps of several stages, no head, no pooling, other poolings."""

from collections.abc import Callable
from functools import partial
from typing import Any

import timm
from torch import nn

from experts.answer import Expert, Library

VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2}
VIT |= {"num_heads": 2, "num_classes": 5}
BARE: dict[str, Any] = {"num_classes": 0, "global_pool": ""}


def model(name: str, **options: Any) -> partial[nn.Module]:
    """Random weights."""
    return partial(timm.create_model, name, pretrained=False, **options)


def vit(**options: Any) -> partial[nn.Module]:
    """A small Vision Transformer."""
    return partial(timm.models.VisionTransformer, **{**VIT, **options})


def distilled() -> nn.Module:
    """In training mode it then returns two outputs, in eval mode their mean."""
    net: nn.Module = model("deit_tiny_distilled_patch16_224", img_size=32, num_classes=5)()
    net.set_distilled_training(True)
    return net


def stages(net: Library) -> list[Expert]:
    """``features_only``: the deepest map; some nets give (B, H, W, C)."""

    def maps(name: str, size: int, answers: str = ">mean@-1", words: str = "",
             **options: Any) -> Expert:  # fmt: skip
        make: Callable[[], nn.Module] = model(name, features_only=True, **options)
        return net(f"{name}, features_only{words}", make, size, answers)

    nhwc = ">tokens@-1"
    return [
        maps("test_resnet", 64),
        maps("test_resnet", 64, words=", first and third", out_indices=(0, 2)),
        maps("mobilenetv3_small_050", 64),
        maps("test_efficientnet", 64),
        maps("test_nfnet", 64),
        maps("test_mambaout", 64, nhwc),
        maps("test_vit", 160, ">mean@-1 | refuse"),
        maps("hrnet_w18_small", 64),
        maps("edgenext_xx_small", 64),
        maps("mobilevit_xxs", 64),
        maps("regnetx_002", 64),
        maps("pvt_v2_b0", 64),
        maps("swin_tiny_patch4_window7_224", 224, nhwc, ", last two", out_indices=(2, 3)),
        maps("levit_128s", 224),
        maps("davit_tiny", 64),
        maps("vgg11", 64),
    ]


def bare(net: Library) -> list[Expert]:
    """Without a head; without pooling: the class token, or the mean where there is none."""

    def without(name: str, size: int, answers: str, **options: Any) -> Expert:
        return net(f"{name}, no pooling", model(name, **BARE, **options), size, answers)

    def headless(name: str, size: int, answers: str = ">", **options: Any) -> Expert:
        return net(f"{name}, num_classes=0", model(name, num_classes=0, **options), size, answers)

    small = {"img_size": 32}
    return [
        without("test_resnet", 64, ">mean"),
        without("test_convnext", 64, ">mean"),
        without("mobilenetv3_small_050", 64, ">mean"),
        without("test_efficientnet", 64, ">mean"),
        without("test_mambaout", 64, ">tokens"),
        without("swin_tiny_patch4_window7_224", 224, ">tokens"),
        without("poolformerv2_s12", 64, ">mean"),
        without("convmixer_768_32", 32, ">mean"),
        without("test_vit", 160, ">token"),
        without("mixer_s32_224", 224, ">tokens"),
        without("resmlp_12_224", 32, ">tokens", **small),
        without("gmlp_ti16_224", 32, ">tokens", **small),
        without("cait_xxs24_224", 32, ">token", **small),
        without("xcit_nano_12_p8_224", 32, ">token", **small),
        without("vit_small_patch14_reg4_dinov2", 28, ">token", img_size=28),
        without("eva02_tiny_patch14_224", 28, ">token | >skip1 | >tokens", img_size=28),
        without("sequencer2d_s", 56, ">tokens"),
        without("hiera_tiny_224", 224, ">tokens"),
        without("mvitv2_tiny", 224, ">tokens"),
        headless("deit_tiny_distilled_patch16_224", 32, ">", **small),
        headless("mobilenetv3_small_050", 64),
        headless("levit_128s", 224),
        headless("efficientformerv2_s0", 224),
        headless("repvit_m1", 64),
        headless("mixer_s32_224", 224),
        headless("crossvit_tiny_240", 240),
        headless("beit_base_patch16_224", 32, **small),
        net("deit, two outputs in training", distilled, 32, "head< | head_dist<"),
    ]


def vits(net: Library) -> list[Expert]:
    """The poolings of one Vision Transformer."""
    no_token = {"class_token": False, "num_classes": 0, "global_pool": ""}
    return [
        net("vit, avg", vit(global_pool="avg"), 32, "head<"),
        net("vit, max", vit(global_pool="max"), 32, "head<"),
        net("vit, attention pooling", vit(global_pool="map"), 32, "head<"),
        net("vit, no pooling, with a head", vit(global_pool=""), 32, "head<token | refuse"),
        net("vit, avg, no head", vit(global_pool="avg", num_classes=0), 32, ">"),
        net("vit, tokens", vit(num_classes=0, global_pool=""), 32, ">token"),
        net("vit without class token, tokens", vit(**no_token), 32, ">tokens"),
        net("vit with registers alone, tokens", vit(**no_token, reg_tokens=4), 32,
            ">tokens | >skip4"),
        net("vit with class token and registers, tokens", vit(num_classes=0, global_pool="",
            reg_tokens=4), 32, ">token"),
        net("vit, patch dropout", vit(patch_drop_rate=0.5), 32, "head<"),
        net("vit, dynamic size", vit(dynamic_img_size=True), 32, "head<"),
    ]  # fmt: skip


def nets() -> list[Expert]:
    """All modes."""
    net = Library("timm, other modes")
    return stages(net) + bare(net) + vits(net)
