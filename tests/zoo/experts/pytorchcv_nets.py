"""pytorchcv: classifiers by a Linear or by a convolution before or behind the pooling; dense."""

from functools import partial

from pytorchcv.model_provider import get_model

from experts.answer import Expert, Library

LINEAR = ("resnet10", "preresnet10", "diracnet18v2", "octresnet10_ad2", "fdmobilenet_wd4",
          "shufflenetv2_wd2")  # fmt: skip
BEHIND_POOLING = ("dla34", "mobilenetv2_wd4")
BEFORE_POOLING = ("squeezenet_v1_0", "squeezeresnet_v1_0", "darknet_ref")


def nets() -> list[Expert]:
    """Image classifiers at the size that their pooling fixes, and dense nets."""
    net = Library("pytorchcv")

    def one(name: str, size: int, answers: str, channels: int = 3) -> Expert:
        make = partial(get_model, name, pretrained=False)
        return net(name, make, size, answers, channels=channels)

    return [
        *(one(name, 224, "output<") for name in LINEAR),
        *(one(name, 224, "output<") for name in BEHIND_POOLING),
        *(one(name, 224, "output.final_conv<mean") for name in BEFORE_POOLING),
        one("nin_cifar10", 32, "output.final_conv<mean | features>mean"),
        one("rir_cifar10", 32, "output.final_conv<mean"),
        one("resnet20_cifar10", 32, "output<"),
        one("mobilenetv3_small_w7d20", 224, "output.conv2< | features>"),
        one("ghostnet", 224, "output.conv2< | features>"),
        one("peleenet", 224, "output.fc<"),
        one("efficientnet_b0", 224, "output.fc<"),
        one("lwopenpose2d_mobilenet_cmupan_coco", 64,
            "encoder.backbone>mean | encoder>mean | refuse"),
        one("centernet_resnet18_voc", 64, "backbone>mean | refuse"),
        one("simplepose_resnet18_coco", 64, "backbone>mean | refuse"),
        one("lffd20x5s320v2_widerface", 128, "encoder>mean@-1 | refuse"),
        one("enet_cityscapes", 128, "stage3>mean | stage2>mean | refuse"),
        one("dabnet_cityscapes", 128, "features.stage3>mean@0 | classifier<mean | refuse"),
        one("superpointnet", 64, "features>mean | features.stage4>mean | refuse", 1),
    ]  # fmt: skip
