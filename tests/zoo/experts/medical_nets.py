"""MONAI: classifiers, dense nets and autoencoders of two and three dimensions."""

from functools import partial
from typing import Any

import monai.networks.nets as m
from monai.networks.nets.restormer import Restormer
from monai.networks.nets.swin_unetr import SwinTransformer

from experts.answer import Expert, Library

CUBE, CT = (1, 32, 32, 32), {"spatial_dims": 3, "in_channels": 1}
SLICE: dict[str, Any] = {"spatial_dims": 2, "in_channels": 1}


def classifiers(net: Library) -> list[Expert]:
    """The head is a Linear; a Tanh, a softmax or a reshape may be behind it."""
    blocks = ("basic", [1, 1, 1, 1], [8, 8, 16, 16])
    body = {"n_input_channels": 1}
    vit = {"hidden_size": 32, "mlp_dim": 48, "num_layers": 2, "num_heads": 2}
    small = ((8, 16, 24), (2, 2, 2))
    dense = (2, 8, 4, (2, 2, 2, 2))
    return [
        net("DenseNet, 3-D", partial(m.DenseNet, 3, 1, *dense), CUBE, "class_layers.out<"),
        net("DenseNet", partial(m.DenseNet, 2, 1, *dense), 64, "class_layers.out<", channels=1),
        net("ResNet, 3-D", partial(m.ResNet, *blocks, spatial_dims=3, **body, num_classes=2), CUBE,
            "fc<"),
        net("ResNet, 3-D, no head", partial(m.ResNet, *blocks, spatial_dims=3, **body,
            feed_forward=False), CUBE, ">"),
        net("ResNetFeatures, 3-D", partial(m.ResNetFeatures, "resnet10", pretrained=False, **CT),
            CUBE, ">mean@-1"),
        net("EfficientNetBN", partial(m.EfficientNetBN, "efficientnet-b0", pretrained=False,
            **SLICE, num_classes=3), 64, "_fc<", channels=1),
        net("EfficientNetBNFeatures", partial(m.EfficientNetBNFeatures, "efficientnet-b0",
            pretrained=False, **SLICE), 64, ">mean@-1", channels=1),
        net("SEResNet", partial(m.SEResNet50, **SLICE, num_classes=3, layers=[1, 1, 1, 1]), 64,
            "last_linear<", channels=1),
        net("ViT, 3-D, Tanh behind the head", partial(m.ViT, 1, (16,) * 3, (8,) * 3, **vit,
            classification=True), (1, 16, 16, 16), "classification_head.0<"),
        net("ViT, 3-D, no class token", partial(m.ViT, 1, (16,) * 3, (8,) * 3, **vit),
            (1, 16, 16, 16), ">tokens@0"),
        net("Regressor", partial(m.Regressor, (1, 32, 32), (3,), *small), 32, "final.1<",
            channels=1),
        net("Regressor, 3-D, 2 x 3 numbers", partial(m.Regressor, (1, 16, 16, 16), (2, 3), *small),
            (1, 16, 16, 16), "final.1<"),
        net("Classifier", partial(m.Classifier, (1, 32, 32), 3, *small), 32, "final.1<",
            channels=1),
        net("Classifier, softmax", partial(m.Classifier, (1, 32, 32), 3, *small,
            last_act="softmax"), 32, "final.1<", channels=1),
        net("Discriminator, sigmoid", partial(m.Discriminator, (1, 32, 32), *small), 32,
            "final.1<", channels=1),
        net("Critic, mean of features", partial(m.Critic, (1, 32, 32), *small), 32,
            "net>mean | net>flat | refuse", channels=1),
        net("TorchVisionFCModel", partial(m.TorchVisionFCModel, "resnet18", num_classes=3,
            pool=("adaptiveavg", {"output_size": 1})), 64, "fc<"),
        net("MILModel, bags of images", partial(m.MILModel, 2, "att", pretrained=False,
            backbone="resnet18"), (3, 3, 64, 64), "myfc<"),
        net("FullyConnectedNet (table)", partial(m.FullyConnectedNet, 10, 3, [16, 24]), (10,),
            "output<"),
    ]  # fmt: skip


def dense(net: Library) -> list[Expert]:
    """The bottleneck, where there is one."""
    vit = {"hidden_size": 32, "mlp_dim": 48, "num_layers": 2, "num_heads": 2}
    five = (8, 8, 16, 24, 32, 8)
    heads = {"feature_size": 12, "depths": (1, 1, 1, 1)}
    down = {"kernel_size": [3] * 4, "strides": [1, 2, 2, 2], "upsample_kernel_size": [2] * 3}
    one = (1, 1, 1, 1)
    unet = "model.1.submodule.1.submodule>mean | refuse"

    def image(name: str, make: Any, answers: str) -> Expert:
        return net(name, make, 32, answers, channels=1)

    def volume(name: str, make: Any, answers: str) -> Expert:
        return net(name, make, CUBE, answers)

    return [
        image("UNet", partial(m.UNet, 2, 1, 2, (8, 16, 32), (2, 2)), unet),
        volume("UNet, 3-D, residual", partial(m.UNet, 3, 1, 2, (8, 16, 32), (2, 2),
            num_res_units=1), unet),
        image("AttentionUnet", partial(m.AttentionUnet, 2, 1, 2, (8, 16, 32), (2, 2)), unet),
        image("BasicUNet", partial(m.BasicUNet, 2, 1, 2, five), "down_4>mean | refuse"),
        image("BasicUNet++", partial(m.BasicUNetPlusPlus, 2, 1, 2, five),
            "conv_4_0>mean | refuse"),
        image("DynUNet", partial(m.DynUNet, 2, 1, 2, **down, filters=[8, 16, 24, 32]),
            "bottleneck>mean | refuse"),
        image("DynUNet, deep supervision in training", partial(m.DynUNet, 2, 1, 2, **down,
            filters=[8, 16, 24, 32], deep_supervision=True, deep_supr_num=2),
            "bottleneck>mean | refuse"),
        volume("SegResNet, 3-D", partial(m.SegResNet, 3, 8, 1, 2, blocks_down=one),
            "down_layers.3>mean | refuse"),
        volume("SegResNetDS, 3-D, two outputs in training", partial(m.SegResNetDS, 3, 4, 1, 2,
            blocks_down=(1, 1, 1), dsdepth=2), "encoder>mean@-1 | refuse"),
        volume("SegResNetVAE, 3-D", partial(m.SegResNetVAE, (32,) * 3, init_filters=8,
            in_channels=1, out_channels=2, blocks_down=one), "down_layers.3>mean | refuse"),
        volume("VNet, 3-D", partial(m.VNet, **CT, out_channels=2), "down_tr256>mean | refuse"),
        volume("UNETR, 3-D", partial(m.UNETR, 1, 2, (32,) * 3, 4, 32, 48, 2),
            "vit>tokens@0 | refuse"),
        net("SwinUNETR", partial(m.SwinUNETR, 1, 2, **heads, spatial_dims=2), 64,
            "swinViT>mean@-1 | encoder10>mean | refuse", channels=1),
        net("SwinTransformer, maps", partial(SwinTransformer, 1, 12, (7, 7), (2, 2), one,
            (1, 2, 4, 8), spatial_dims=2), 64, ">mean@-1", channels=1),
        volume("FlexibleUNet, 3-D", partial(m.FlexibleUNet, 1, 2, "resnet10", pretrained=False,
            spatial_dims=3), "encoder>mean@-1 | refuse"),
        image("HighResNet, no bottleneck", partial(m.HighResNet, 2, 1, 2),
            "blocks.11<mean | blocks.10<mean | refuse"),
        image("Restormer", partial(Restormer, 2, 1, 1, 8, one, (1, 1, 2, 2), 1),
            "latent>mean | refuse"),
        image("MedNeXt", partial(m.MedNeXt, 2, 8, 1, 2, blocks_down=one, blocks_bottleneck=1,
            blocks_up=one), "bottleneck>mean | refuse"),
        net("QuickNAT", partial(m.Quicknat, num_classes=2, num_channels=1, num_filters=8), 64,
            "refuse", channels=1),
        image("ViTAutoEnc", partial(m.ViTAutoEnc, 1, (32, 32), (4, 4), **vit, spatial_dims=2),
            "norm>tokens | refuse"),
        image("masked autoencoder", partial(m.MaskedAutoEncoderViT, 1, 32, 8, **vit,
            decoder_hidden_size=16, decoder_mlp_dim=16, decoder_num_layers=1, decoder_num_heads=2,
            spatial_dims=2), "blocks>token | blocks>tokens | blocks>skip1 | refuse"),
        image("PatchDiscriminator, all layers' maps", partial(m.PatchDiscriminator, 2, 8, 1,
            num_layers_d=2), ">mean@-2 | refuse"),
        *autoencoders(image),
    ]  # fmt: skip


def autoencoders(image: Any) -> list[Expert]:
    """The code, or the encoder's last map."""
    steps = ((2, 4, 1, 1), (2, 4, 1, 1)), ((2, 4, 1, 1, 0), (2, 4, 1, 1, 0))
    return [
        image("AutoEncoder", partial(m.AutoEncoder, 2, 1, 1, (8, 16, 24), (2, 2, 2),
            inter_channels=(24,)), "encode>mean | intermediate>mean | refuse"),
        image("VarAutoEncoder", partial(m.VarAutoEncoder, 2, (1, 32, 32), 1, 16, (8, 16, 24),
            (2, 2, 2)), "mu> | mu< | encode>mean | refuse"),
        image("AutoencoderKL", partial(m.AutoencoderKL, 2, 1, 1, (1, 1, 1), (8, 16, 16),
            (False, False, True), latent_channels=16, norm_num_groups=4),
            "encoder>mean | quant_conv_mu>mean | refuse"),
        image("VQVAE", partial(m.VQVAE, 2, 1, 1, channels=(8, 16), num_res_layers=1,
            num_res_channels=(8, 16), downsample_parameters=steps[0],
            upsample_parameters=steps[1], num_embeddings=16, embedding_dim=8),
            "encoder>mean | quantizer>mean@1 | refuse"),
    ]  # fmt: skip


def nets() -> list[Expert]:
    """Classifiers and dense nets."""
    net = Library("MONAI")
    return classifiers(net) + dense(net)
