"""torchgeo: several channels, several dates."""

from functools import partial

import torchgeo.models as geo

from experts.answer import Expert, Library


def nets() -> list[Expert]:
    """Classifiers of 13 channels, dense nets, and nets of image pairs and series."""
    net = Library("torchgeo")
    vit = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    pair, series = (2, 3, 64, 64), (4, 3, 16, 16)
    return [
        net("resnet18, 13 channels", partial(geo.resnet18, in_chans=13, num_classes=5), 64, "fc<",
            channels=13),
        net("resnet18, 13 channels, no head", partial(geo.resnet18, in_chans=13, num_classes=0),
            64, ">", channels=13),
        net("resnet50, 2 channels", partial(geo.resnet50, in_chans=2), 64, "fc<", channels=2),
        net("resnet18, 13 channels, features_only", partial(geo.resnet18, in_chans=13,
            features_only=True), 64, ">mean@-1", channels=13),
        net("vit_small, 13 channels", partial(geo.vit_small_patch16_224, in_chans=13,
            num_classes=5, img_size=32), 32, "head<", channels=13),
        net("vit_small, 13 channels, no head", partial(geo.vit_small_patch16_224, in_chans=13,
            num_classes=0, img_size=32), 32, ">", channels=13),
        net("vit_small_dinov2, 4 channels, no pooling", partial(geo.vit_small_patch14_dinov2,
            in_chans=4, num_classes=0, global_pool="", img_size=28), 28, ">token", channels=4),
        net("ScaleMAE's ViT", partial(geo.ScaleMAE, **vit, num_classes=5), 32, "head<"),
        net("swin_v2_t", partial(geo.swin_v2_t, num_classes=5), 64, "head<"),
        net("FCN", partial(geo.FCN, 4, 5, 16), 32, "last<mean | refuse", channels=4),
        net("FarSeg", partial(geo.FarSeg, "resnet18", 5, False), 64,
            "backbone.layer4>mean | refuse"),
        net("FC-Siam, concatenated (two dates)", partial(geo.FCSiamConc, "resnet18",
            encoder_weights=None), pair, "encoder>mean@-1 | refuse"),
        net("FC-Siam, difference (two dates)", partial(geo.FCSiamDiff, "resnet18",
            encoder_weights=None), pair, "encoder>mean@-1 | refuse"),
        net("ChangeStar (two dates)", partial(geo.ChangeStarFarSeg, "resnet18",
            backbone_pretrained=False), pair, "refuse"),
        net("ConvLSTM (series)", partial(geo.ConvLSTM, 3, 8, (3, 3), 1), series,
            ">mean@1@-1@0 | refuse"),
        net("RCF, without parameters", partial(geo.RCF, in_channels=3, features=16), 32, "refuse"),
    ]  # fmt: skip
