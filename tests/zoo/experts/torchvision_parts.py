"""torchvision: extractors, bodies, pyramids, detectors, segmentation, video."""

from functools import partial
from typing import Any

import torch
from torch import nn
from torchvision import models
from torchvision.models import detection, segmentation, video
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from experts.answer import Expert, Library

PLAIN: dict[str, Any] = {"weights": None, "weights_backbone": None}
CLIP = (3, 4, 64, 64)
PYRAMID = "body>mean@{} | >mean@{} | refuse"


def extractor(net: Any, nodes: Any) -> Any:
    """Cut out of a net by the names of its nodes."""
    return lambda: create_feature_extractor(net(), nodes)


def getter(nodes: dict[str, str]) -> Any:
    """The older way, for nets that are plain sequences of children."""
    return lambda: IntermediateLayerGetter(models.resnet18(), nodes)


class WithPyramid(nn.Module):
    """A body and a pyramid, as detectors are built by hand."""

    def __init__(self) -> None:
        super().__init__()
        nodes = {"layer2": "c3", "layer3": "c4", "layer4": "c5"}
        self.body = create_feature_extractor(models.resnet18(), nodes)
        self.fpn = FeaturePyramidNetwork([128, 256, 512], 32)

    def forward(self, x: torch.Tensor) -> Any:
        return self.fpn(self.body(x))


def small_vit() -> nn.Module:
    """torchvision's Vision Transformer."""
    return models.VisionTransformer(32, 8, 1, 2, 32, 48, num_classes=5)


def extractors(net: Library) -> list[Expert]:
    """The deepest node that was asked for, in whatever order."""
    pool = ["layer4", "flatten"]
    return [
        net("extractor of resnet18, two layers", extractor(models.resnet18, {"layer2": "low",
            "layer4": "high"}), 64, ">mean@high"),
        net("extractor of resnet18, deepest first", extractor(models.resnet18, {"layer4": "high",
            "layer2": "low"}), 64, ">mean@high"),
        net("extractor of resnet18, one layer", extractor(models.resnet18, ["layer3"]), 64,
            ">mean@layer3"),
        net("extractor of resnet18, pooled too", extractor(models.resnet18, pool), 64,
            ">@flatten"),
        net("extractor of resnet18, logits too", extractor(models.resnet18, ["layer4", "fc"]), 64,
            "fc< | >mean@layer4"),
        net("extractor of ViT, normalised tokens", extractor(small_vit, ["encoder.ln"]), 32,
            ">token@encoder.ln"),
        net("extractor of ViT, two blocks", extractor(lambda: models.VisionTransformer(32, 8, 2,
            2, 32, 48), ["encoder.layers.encoder_layer_0", "encoder.ln"]), 32,
            "encoder.ln>token | >token@encoder.ln"),
        net("extractor of Swin, (B, H, W, C)", extractor(models.swin_t, {"features.3": "low",
            "features.7": "high"}), 64, ">tokens@high"),
        net("extractor of ConvNeXt", extractor(models.convnext_tiny, {"features.3": "low",
            "features.7": "high"}), 64, ">mean@high"),
        net("layer getter", getter({"layer2": "0", "layer4": "1"}), 64, ">mean@1"),
        net("layer getter, four layers", getter({f"layer{i}": str(i) for i in range(1, 5)}), 64,
            ">mean@4"),
        net("children of resnet18", lambda: nn.Sequential(*list(models.resnet18().children())[:-1]),
            64, ">"),
        net("children of resnet18, maps", lambda: nn.Sequential(
            *list(models.resnet18().children())[:-2]), 64, ">mean"),
        net("features of mobilenet_v3", lambda: models.mobilenet_v3_small().features, 64, ">mean"),
        net("ViT", small_vit, 32, "heads.head<"),
        net("ViT, head replaced by nothing", without_head, 32, ">"),
    ]  # fmt: skip


def without_head() -> nn.Module:
    """As in tutorials: the head is replaced."""
    net = models.VisionTransformer(32, 8, 1, 2, 32, 48)
    net.heads = nn.Identity()
    return net


def detectors(net: Library) -> list[Expert]:
    """Bodies with a pyramid; whole detectors, which take lists and targets."""
    from torchvision.models.detection import backbone_utils as utils

    resnet, mobile = utils.resnet_fpn_backbone, utils.mobilenet_backbone

    def small(**options: Any) -> Any:
        return partial(mobile, backbone_name="mobilenet_v3_small", weights=None, **options)

    return [
        net("resnet18 with a pyramid", partial(resnet, backbone_name="resnet18", weights=None), 64,
            PYRAMID.format(3, 3)),
        net("resnet18 with a pyramid, P6 and P7", partial(resnet, backbone_name="resnet18",
            weights=None, returned_layers=[2, 3, 4],
            extra_blocks=LastLevelP6P7(256, 256)), 64,
            PYRAMID.format(2, 2)),
        net("mobilenet_v3 with a pyramid", small(fpn=True), 64, PYRAMID.format(1, 1)),
        net("a pyramid by hand", WithPyramid, 64, PYRAMID.format("c5", "c5")),
        net("body of ssdlite320", lambda: detection.ssdlite320_mobilenet_v3_large(
            **PLAIN).backbone, 128, "features.1>mean | >mean@1 | refuse"),
        net("body of ssd300_vgg16", lambda: detection.ssd300_vgg16(**PLAIN).backbone, 300,
            "extra.0>mean | >mean@1 | refuse"),
        net("fasterrcnn_mobilenet", partial(detection.fasterrcnn_mobilenet_v3_large_320_fpn,
            **PLAIN), 64, "refuse"),
    ]  # fmt: skip


def others(net: Library) -> list[Expert]:
    """Segmentation and video."""
    return [
        net("deeplabv3_mobilenet", partial(segmentation.deeplabv3_mobilenet_v3_large, **PLAIN), 64,
            "backbone>mean@out | classifier.0>mean | refuse"),
        net("deeplabv3_mobilenet, auxiliary head", partial(
            segmentation.deeplabv3_mobilenet_v3_large, **PLAIN, aux_loss=True), 64,
            "backbone>mean@out | classifier.0>mean | refuse"),
        net("lraspp_mobilenet", partial(segmentation.lraspp_mobilenet_v3_large, **PLAIN), 64,
            "backbone>mean@high | refuse"),
        net("fcn_resnet50, auxiliary head", partial(segmentation.fcn_resnet50, **PLAIN,
            aux_loss=True), 64, "backbone>mean@out | classifier<mean | refuse"),
        net("r2plus1d_18", partial(video.r2plus1d_18, weights=None), CLIP, "fc<"),
        net("mc3_18", partial(video.mc3_18, weights=None), CLIP, "fc<"),
        net("stem and layers of r3d_18", lambda: nn.Sequential(
            *list(video.r3d_18(weights=None).children())[:-2]), CLIP, ">mean"),
        net("swin3d_t", partial(video.swin3d_t, weights=None), CLIP, "head<"),
    ]  # fmt: skip


def nets() -> list[Expert]:
    """All parts."""
    net = Library("torchvision, extractors and detectors")
    return extractors(net) + detectors(net) + others(net)
