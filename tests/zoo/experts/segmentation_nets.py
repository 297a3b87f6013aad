"""segmentation-models-pytorch: the representation is the encoder's deepest map."""

from functools import partial
from typing import Any

import segmentation_models_pytorch as smp

from experts.answer import Expert, Library

PLAIN: dict[str, Any] = {"encoder_name": "resnet18", "encoder_weights": None, "classes": 3}
DEEPEST = "encoder>mean@-1 | refuse"


def encoder(name: str, **options: Any) -> Any:
    """An encoder alone, which gives a list of maps from shallow to deep."""
    return partial(smp.encoders.get_encoder, name, weights=None, **options)


def nets() -> list[Expert]:
    """Every decoder once; encoders of several families, in a Unet and alone."""
    net = Library("segmentation-models-pytorch")
    head = {"aux_params": {"classes": 4, "dropout": 0.1}}
    return [
        net("Unet", partial(smp.Unet, **PLAIN), 64, DEEPEST),
        net("Unet, 13 channels", partial(smp.Unet, **PLAIN, in_channels=13), 64, DEEPEST,
            channels=13),
        net("Unet, 1 channel, sigmoid", partial(smp.Unet, **{**PLAIN, "classes": 1}, in_channels=1,
            activation="sigmoid"), 64, DEEPEST, channels=1),
        net("Unet with a classifier", partial(smp.Unet, **PLAIN, **head), 64,
            "classification_head.3< | encoder>mean@-1"),
        net("Unet, attention", partial(smp.Unet, **PLAIN, decoder_attention_type="scse"), 64,
            DEEPEST),
        net("Unet++", partial(smp.UnetPlusPlus, **PLAIN), 64, DEEPEST),
        net("Linknet", partial(smp.Linknet, **PLAIN), 64, DEEPEST),
        net("FPN", partial(smp.FPN, **PLAIN), 64, "encoder>mean@-1 | decoder.p5>mean | refuse"),
        net("PSPNet", partial(smp.PSPNet, **PLAIN), 64,
            "encoder>mean@-1 | decoder.psp>mean | refuse"),
        net("PAN", partial(smp.PAN, **PLAIN), 128, DEEPEST),
        net("DeepLabV3", partial(smp.DeepLabV3, **PLAIN), 64,
            "encoder>mean@-1 | decoder.aspp>mean | refuse"),
        net("DeepLabV3+", partial(smp.DeepLabV3Plus, **PLAIN), 64,
            "encoder>mean@-1 | decoder.aspp>mean | refuse"),
        net("DeepLabV3+ with a classifier", partial(smp.DeepLabV3Plus, **PLAIN, **head), 64,
            "classification_head.3< | encoder>mean@-1"),
        net("MAnet", partial(smp.MAnet, **PLAIN), 64,
            "encoder>mean@-1 | decoder.center>mean | refuse"),
        net("UPerNet", partial(smp.UPerNet, **PLAIN), 64,
            "encoder>mean@-1 | decoder.psp>mean | refuse"),
        net("Segformer", partial(smp.Segformer, **{**PLAIN, "encoder_name": "mit_b0"}), 64,
            DEEPEST),
        net("DPT", partial(smp.DPT, **{**PLAIN, "encoder_name": "tu-test_vit"},
            dynamic_img_size=True), 64, "encoder>mean@0@-1 | encoder>token@1@-1 | refuse"),
        net("Unet, mobilenet_v2", partial(smp.Unet, **{**PLAIN, "encoder_name": "mobilenet_v2"}),
            64, DEEPEST),
        net("Unet, vgg11", partial(smp.Unet, **{**PLAIN, "encoder_name": "vgg11"}), 64, DEEPEST),
        net("Unet, timm's convnext", partial(smp.Unet, **{**PLAIN,
            "encoder_name": "tu-test_convnext"}), 64, DEEPEST),
        net("encoder resnet18", encoder("resnet18"), 64, ">mean@-1"),
        net("encoder resnet18, dilated", encoder("resnet18", output_stride=8), 64, ">mean@-1"),
        net("encoder mit_b0", encoder("mit_b0"), 64, ">mean@-1"),
        net("encoder mobileone_s0", encoder("mobileone_s0"), 64, ">mean@-1"),
        net("encoder efficientnet-b0", encoder("efficientnet-b0"), 64, ">mean@-1"),
        net("encoder densenet121", encoder("densenet121"), 64, ">mean@-1"),
        net("encoder vgg11", encoder("vgg11"), 64, ">mean@-1"),
        net("encoder timm resnet", encoder("tu-test_resnet"), 64, ">mean@-1"),
    ]  # fmt: skip
