"""The zoo: torchvision, timm, transformers, and nets that are awkward on purpose."""

import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from check import BATCH, Backbone
from nets import Function, conv_net
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torchvision import models

TIMM = json.loads(Path(__file__).with_name("timm.json").read_text())


# torchvision: the smallest model of each family

CLASSIFIERS = {
    "alexnet": {},
    "convnext_tiny": {},
    "densenet121": {},
    "efficientnet_b0": {},
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
    "maxvit_t": {},
    "mnasnet0_5": {},
    "mobilenet_v2": {},
    "mobilenet_v3_small": {},
    "regnet_y_400mf": {},
    "resnet18": {},
    "shufflenet_v2_x0_5": {},
    "squeezenet1_1": {},
    "swin_t": {},
    "vgg11": {},
    "vit_b_32": {},
}


def last_linear(net: nn.Module) -> int:
    """How many features the classifier reads; that of SqueezeNet is a convolution."""
    linear = [module for module in net.modules() if isinstance(module, nn.Linear)]
    if not linear:
        return int(net.classifier[1].in_channels)
    auxiliary = {id(m) for name, m in net.named_modules() if "aux" in name.lower()}
    return next(layer.in_features for layer in reversed(linear) if id(layer) not in auxiliary)


def clip() -> tuple[Tensor, Tensor]:
    """Two views of short videos (B, 3, T, H, W)."""
    return torch.rand(BATCH, 3, 8, 64, 64), torch.rand(BATCH, 3, 8, 64, 64)


def torchvision_zoo() -> list[Backbone]:
    """Every family of classifiers, and networks of other kinds."""
    from torchvision.models import quantization, segmentation, video
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    zoo = [
        Backbone(
            name,
            partial(models.get_model, name, weights=None, **options),
            299 if name == "inception_v3" else 224,
            last_linear,
        )
        for name, options in CLASSIFIERS.items()
    ]
    plain = {"weights": None, "weights_backbone": None}
    zoo += [
        Backbone("fcn_resnet50", partial(segmentation.fcn_resnet50, **plain), 64, lambda _: 2048),
        Backbone(
            "deeplabv3_mobilenet_v3_large, hidden_layer='backbone'",
            partial(segmentation.deeplabv3_mobilenet_v3_large, **plain),
            64,
            lambda _: 960,
            {"hidden_layer": "backbone"},
        ),
        Backbone(
            "resnet18 with FPN",
            partial(resnet_fpn_backbone, backbone_name="resnet18", weights=None),
            64,
            lambda _: 512,  # the body's deepest map, not the fused levels
        ),
        Backbone("r3d_18 (video)", video.r3d_18, None, last_linear, views=clip),
        Backbone("quantization.mobilenet_v2", quantization.mobilenet_v2, 64, last_linear),
    ]
    return zoo


def torchvision_families() -> set[str]:
    """The modules that torchvision's classifiers come from."""
    names = models.list_models(module=torchvision.models)
    return {models.get_model_builder(name).__module__ for name in names}


# timm: the smallest model of each module


def timm_zoo() -> list[Backbone]:
    """The smallest of every module at its own image size; a few in other forms."""
    zoo = []
    for module in timm.list_modules():
        names = timm.list_models(module=module)
        if names:
            name = TIMM.get(module)
            zoo.append(timm_backbone(name if name in names else names[0]))
    for name in ("resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"):
        zoo.append(timm_backbone(name, num_classes=0))
    for name in ("resnet18", "convnext_atto", "swin_tiny_patch4_window7_224"):
        zoo.append(timm_backbone(name, features_only=True))
    return zoo


def timm_backbone(name: str, **options: Any) -> Backbone:
    """A model with random weights."""
    size = timm.models.get_pretrained_cfg(name)
    height, width = (size.input_size if size else (3, 224, 224))[1:]
    words = "".join(f", {key}={value}" for key, value in options.items())
    make = partial(timm.create_model, name, pretrained=False, **options)
    return Backbone(name + words, make, (height, width), timm_features)


def timm_features(net: nn.Module) -> int:
    """What timm calls the size of a model's features before the classifier.

    CrossViT averages two classifiers of two sizes, EfficientViM weighs several: the input of the
    last one is taken.
    """
    if type(net).__name__ == "CrossVit":
        return int(net.embed_dim[-1])
    if type(net).__name__ == "EfficientViM":
        return int(net.heads[-1].in_features)
    if hasattr(net, "feature_info") and not hasattr(net, "num_features"):
        return int(net.feature_info.channels()[-1])
    return int(getattr(net, "head_hidden_size", net.num_features))


# transformers: tiny configurations


def transformers_zoo() -> list[Backbone]:
    """Vision models of random weights."""
    import transformers as hf

    small: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    small |= {"intermediate_size": 64, "image_size": 64, "patch_size": 16}
    stages: dict[str, Any] = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}
    swin = {"image_size": 64, "embed_dim": 12, "depths": [1, 1], "num_heads": [1, 2]}
    swin |= {"window_size": 4}
    segformer = stages | {"num_encoder_blocks": 4, "decoder_hidden_size": 16}
    segformer |= {"num_attention_heads": [1, 1, 2, 2]}

    def made(model: str, config: str, values: dict[str, Any]) -> Callable[[], nn.Module]:
        return lambda: getattr(hf, model)(getattr(hf, config)(**values))

    return [
        Backbone(name, made(name, config, values), 64, lambda _, size=size: size)
        for name, config, values, size in (
            ("ViTModel", "ViTConfig", small, 32),
            ("ViTForImageClassification", "ViTConfig", small, 32),
            ("Dinov2Model", "Dinov2Config", small, 32),
            ("Dinov2ForImageClassification", "Dinov2Config", small, 64),
            ("SwinModel", "SwinConfig", swin, 24),
            ("SwinForImageClassification", "SwinConfig", swin, 24),
            ("ConvNextModel", "ConvNextConfig", stages, 32),
            ("ConvNextForImageClassification", "ConvNextConfig", stages, 32),
            ("ResNetModel", "ResNetConfig", stages | {"layer_type": "basic"}, 32),
            ("ResNetForImageClassification", "ResNetConfig", stages | {"layer_type": "basic"}, 32),
            ("SegformerModel", "SegformerConfig", segformer, 32),
            ("SegformerForImageClassification", "SegformerConfig", segformer, 32),
            ("CLIPVisionModel", "CLIPVisionConfig", small, 32),
            ("CLIPVisionModelWithProjection", "CLIPVisionConfig", small, 32),
        )
    ]


# Awkward nets


def layer_twice(net: Any, x: Tensor) -> Tensor:
    """The classifier is reached twice."""
    return net.fc(net.fc(net.body(x)))


def in_place(net: Any, x: Tensor) -> Tensor:
    """What the tapped layer gave is changed in place afterwards."""
    return net.fc(torch.relu_(net.tapped(net.body(x))))


def a_view(net: Any, x: Tensor) -> Tensor:
    """The output is a view of a larger tensor."""
    return net.body(x)[:, 2:6]


def by_keyword(net: Any, x: Tensor) -> Tensor:
    """The classifier is called by keyword."""
    return net.fc(input=net.body(x))


def depends_on_data(net: Any, x: Tensor) -> Tensor:
    """Another branch for bright batches; both give the same size."""
    return net.fc(net.bright(x) if x.mean() > 0 else net.dark(x))


def shared_weights() -> nn.Module:
    """Two convolutions with one weight."""
    body = conv_net()
    body[3] = nn.Conv2d(8, 8, 3, 2, 1)
    second = nn.Conv2d(8, 8, 3, 2, 1)
    second.weight = body[3].weight
    body.insert(4, second)
    return nn.Sequential(body, nn.Linear(8, 5))


def frozen_stem() -> nn.Module:
    """The first convolution is not trained."""
    body = conv_net()
    for parameter in body[:2].parameters():
        parameter.requires_grad = False
    return nn.Sequential(body, nn.Linear(8, 5))


def with_norm(norm: nn.Module) -> nn.Module:
    """Another layer in BatchNorm's place."""
    body = conv_net()
    body[1], body[4] = norm, copy.deepcopy(norm)
    return body


def parametrized(kind: Callable[..., nn.Module]) -> nn.Module:
    """Spectral or weight norm on the first convolution."""
    body = conv_net()
    body[0] = kind(body[0])
    return nn.Sequential(body, nn.Linear(8, 5))


def stochastic() -> nn.Module:
    """Dropout and stochastic depth."""
    from torchvision.ops import StochasticDepth

    body = conv_net()
    depth = StochasticDepth(0.5, "row")
    return Function(lambda net, x: net.fc(net.drop(net.depth(net.body(x)))), body=body, depth=depth,
               drop=nn.Dropout(0.3), fc=nn.Linear(8, 5))  # fmt: skip


def lora() -> nn.Module:
    """A Vision Transformer with low-rank adapters; all else is frozen."""
    from peft import LoraConfig, get_peft_model
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                       intermediate_size=64, image_size=64, patch_size=16)  # fmt: skip
    projections = [
        name.rpartition(".")[2]
        for name, module in ViTModel(config).named_modules()
        if isinstance(module, nn.Linear) and "attention" in name
    ]
    return get_peft_model(
        ViTModel(config), LoraConfig(target_modules=sorted({*projections}), init_lora_weights=False)
    )


def quantized() -> nn.Module:
    """Integer weights only."""
    from torch.ao.quantization import quantize_dynamic

    return quantize_dynamic(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5)))


def eight(_: nn.Module) -> int:
    """The width of ``conv_net``."""
    return 8


def awkward_zoo() -> list[Backbone]:
    """Nets of one's own: each works, or is refused with a word on what to do."""
    fc = partial(nn.Linear, 8)
    return [
        Backbone(
            "classifier used twice",
            lambda: Function(layer_twice, body=conv_net(), fc=fc(8)),
            32,
            eight,
        ),
        Backbone(
            "a layer used twice, chosen",
            lambda: Function(layer_twice, body=conv_net(), fc=fc(8)),
            32,
            options={"hidden_layer": "fc"},
            refused=(ValueError, "reached 2 times"),
        ),
        Backbone(
            "in-place ReLU on the tapped layer",
            lambda: Function(in_place, body=conv_net(), tapped=fc(6), fc=nn.Linear(6, 5)),
            32,
            lambda _: 6,
            {"hidden_layer": "tapped"},
        ),
        Backbone("shared parameters", shared_weights, 32, eight),
        Backbone(
            "an output that is a view", lambda: Function(a_view, body=conv_net()), 32, lambda _: 4
        ),
        Backbone(
            "nested Sequential, chosen by its path",
            lambda: nn.Sequential(nn.Sequential(nn.Sequential(conv_net())), nn.Linear(8, 5)),
            32,
            eight,
            {"hidden_layer": "0.0.0.3"},
        ),
        Backbone(
            "called by keyword", lambda: Function(by_keyword, body=conv_net(), fc=fc(5)), 32, eight
        ),
        Backbone(
            "control flow on data",
            lambda: Function(depends_on_data, bright=conv_net(), dark=conv_net(), fc=fc(5)),
            32,
            eight,
        ),
        Backbone("frozen stem", frozen_stem, 32, eight),
        Backbone("dropout and stochastic depth", stochastic, 32, eight),
        Backbone("without BatchNorm", partial(with_norm, nn.Identity()), 32, eight),
        Backbone("LayerNorm only", partial(with_norm, nn.GroupNorm(1, 8)), 32, eight),
        Backbone("spectral norm", partial(parametrized, parametrizations.spectral_norm), 32, eight),
        Backbone("weight norm", partial(parametrized, parametrizations.weight_norm), 32, eight),
        Backbone("scripted", lambda: torch.jit.script(conv_net()), 32, eight),
        Backbone(
            "compiled already",
            lambda: torch.compile(conv_net()),
            32,
            refused=(TypeError, "compile the learner"),
        ),
        Backbone("quantized", quantized, 32, refused=(TypeError, "wrap the net as it is before")),
        Backbone("LoRA (peft) on a ViT", lora, 64, lambda _: 32),
    ]


ZOO = {
    "torchvision": torchvision_zoo,
    "timm": timm_zoo,
    "transformers": transformers_zoo,
    "awkward": awkward_zoo,
}

SAMPLE = {
    "alexnet", "mobilenet_v3_small", "resnet18", "resnet18 with FPN", "r3d_18 (video)",
    "vit_tiny_patch16_224, num_classes=0", "convnext_atto, features_only=True",
    "ViTModel", "SwinForImageClassification", "SegformerForImageClassification",
    "CLIPVisionModel", *(net.name for net in awkward_zoo()),
}  # fmt: skip
