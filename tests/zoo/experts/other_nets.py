"""Smaller libraries, a few nets of each."""

from functools import partial
from typing import Any

import geffnet
import kornia.feature as kornia_feature
import lightly.models as lightly_models
import pretrainedmodels
import pytorchvideo.models as clips
import rtdl_revisiting_models as tables
import segment_anything.modeling as sam
import timm
import torchxrayvision as xray
import x_transformers as xt
from diffusers.models import AutoencoderKL, VQModel
from dynamic_network_architectures.architectures import unet as nnunet
from efficientnet_pytorch import EfficientNet
from facenet_pytorch import InceptionResnetV1
from kornia.models.dexined import DexiNed
from kornia.models.tiny_vit import TinyViT
from kornia.models.vit import VisionTransformer
from kornia.models.vit_mobile import MobileViT
from lightly.models.modules import MaskedVisionTransformerTIMM, MaskedVisionTransformerTorchvision
from perceiver_pytorch import Perceiver
from pytorchvideo.models.x3d import create_x3d
from torch import nn
from torchvision import models

from experts.answer import Expert, Library

VIT: dict[str, Any] = {"img_size": 64, "patch_size": 8, "embed_dim": 32, "depth": 1}
VIT |= {"num_heads": 2, "out_chans": 16}


def kornia_nets() -> list[Expert]:
    """Transformers, and descriptors of patches, which are normalised."""
    net = Library("kornia")
    tiny = {"img_size": 64, "embed_dims": (16, 16, 32, 32), "depths": (1, 1, 1, 1)}
    tiny |= {"num_heads": (1, 1, 2, 2), "window_sizes": (2, 2, 2, 2), "num_classes": 5}

    def patch(name: str, answers: str) -> Expert:
        make = partial(getattr(kornia_feature, name), pretrained=False)
        return net(name, make, 32, answers, channels=1)

    return [
        net("VisionTransformer, tokens", partial(VisionTransformer, image_size=32, patch_size=8,
            embed_dim=32, depth=1, num_heads=2), 32, ">token"),
        net("TinyViT", partial(TinyViT, **tiny), 64, "head<"),
        net("MobileViT, maps", partial(MobileViT, "xxs"), 64, ">mean"),
        patch("HardNet", "> | features>"),
        patch("SOSNet", "> | layers>"),
        patch("HyNet", "> | layer7>"),
        patch("TFeat", "> | descr.0<"),
        net("DexiNed, edges", partial(DexiNed, pretrained=False), 64,
            "dblock_6>mean@0 | dblock_5>mean@0 | refuse"),
    ]  # fmt: skip


def transformers() -> list[Expert]:
    """x-transformers, Perceiver, SAM's encoder, lightly's wrappers."""
    x, net = Library("x-transformers"), Library("lightly")

    def attention() -> nn.Module:
        return xt.Encoder(dim=32, depth=1, heads=2)

    def image(**options: Any) -> Any:
        return lambda: xt.ViTransformerWrapper(image_size=32, patch_size=8,
                                               attn_layers=attention(), **options)  # fmt: skip

    def series(**options: Any) -> Any:
        return lambda: xt.ContinuousTransformerWrapper(
            dim_in=8, max_seq_len=16, attn_layers=attention(), **options
        )

    perceiver = {"input_channels": 3, "input_axis": 2, "num_freq_bands": 2, "max_freq": 4.0}
    perceiver |= {"depth": 1, "num_latents": 8, "latent_dim": 16, "cross_heads": 1}
    perceiver |= {"latent_heads": 2, "cross_dim_head": 8, "latent_dim_head": 8, "num_classes": 5}
    return [
        x("ViT", image(num_classes=5), 32, "mlp_head<"),
        x("ViT, no head", image(), 32, ">"),
        x("ViT, registers", image(num_classes=5, num_register_tokens=2), 32, "mlp_head<"),
        x("continuous, tokens", series(), (16, 8), ">tokens"),
        x("continuous, 4 numbers a step", series(dim_out=4), (16, 8),
          "project_out<tokens | refuse"),
        Library("perceiver-pytorch")("Perceiver (B, H, W, C)", partial(Perceiver, **perceiver),
            (16, 16, 3), "to_logits.2<"),
        Library("segment-anything")("image encoder", partial(sam.ImageEncoderViT, **VIT), 64,
            ">mean"),
        net("ResNetGenerator", partial(lightly_models.ResNetGenerator, "resnet-9", num_classes=5),
            32, "linear<"),
        net("MaskedVisionTransformer of torchvision", lambda: MaskedVisionTransformerTorchvision(
            models.VisionTransformer(32, 8, 1, 2, 32, 48)), 32, ">"),
        net("MaskedVisionTransformer of timm", lambda: MaskedVisionTransformerTIMM(
            timm.create_model("test_vit", img_size=32)), 32, ">"),
    ]  # fmt: skip


def classifiers() -> list[Expert]:
    """Older collections, faces, X-rays, tables, clips."""
    old, face, table = (Library(name) for name in ("pretrainedmodels", "facenet", "rtdl"))
    chest, clip = Library("torchxrayvision"), Library("pytorchvideo")
    slow = {"input_channel": 3, "model_depth": 50, "model_num_class": 5, "stem_dim_out": 8}
    mlp = {"d_in": 10, "d_out": 3, "n_blocks": 2, "d_block": 16}
    x3d = {"input_channel": 3, "input_clip_length": 4, "input_crop_size": 64, "stem_dim_in": 4}
    return [
        old("resnet18", partial(pretrainedmodels.resnet18, pretrained=None), 64, "last_linear<"),
        old("squeezenet1_1", partial(pretrainedmodels.squeezenet1_1, pretrained=None), 64,
            "last_conv<mean | features>mean"),
        old("xception", partial(pretrainedmodels.xception, pretrained=None), 96, "last_linear<"),
        Library("efficientnet-pytorch")("efficientnet-b0", partial(EfficientNet.from_name,
            "efficientnet-b0", image_size=64), 64, "_fc<"),
        Library("geffnet")("mobilenetv3_rw", partial(geffnet.create_model, "mobilenetv3_rw",
            pretrained=False), 64, "classifier<"),
        face("InceptionResnetV1, a normalised vector", InceptionResnetV1, 96,
            "> | last_linear< | last_bn>"),
        face("InceptionResnetV1, classes", partial(InceptionResnetV1, classify=True,
            num_classes=5), 96, "logits<"),
        chest("DenseNet", partial(xray.models.DenseNet, num_classes=5, in_channels=1,
            growth_rate=8, block_config=(2, 2, 2, 2), num_init_features=16), 64, "classifier<",
            channels=1),
        chest("ResNetAE", xray_autoencoder, 224, ">mean@z | layer4>mean | refuse", channels=1),
        table("MLP (table)", partial(tables.MLP, **mlp, dropout=0.1), (10,), "output<"),
        table("ResNet (table)", partial(tables.ResNet, **mlp, d_hidden=None,
            d_hidden_multiplier=2.0, dropout1=0.1, dropout2=0.0), (10,), "output.linear<"),
        clip("slow ResNet", partial(clips.create_resnet, **slow, head_pool_kernel_size=(4, 2, 2)),
            (3, 4, 64, 64), "blocks.5.proj<"),
        clip("X3D, softmax in eval mode", partial(create_x3d, **x3d, model_num_class=5),
            (3, 4, 64, 64), "blocks.5.proj<"),
    ]  # fmt: skip


def xray_autoencoder() -> nn.Module:
    """A small one of the library's."""
    parts = xray.autoencoders
    net: nn.Module = parts._ResNetAE(parts.Bottleneck, parts.DeconvBottleneck, [1, 1, 1, 1], 1)
    return net


def dense() -> list[Expert]:
    """Latent codes, and nnU-Net's architectures."""
    latent, net = Library("diffusers"), Library("nnU-Net")
    code = {"block_out_channels": (8, 16), "down_block_types": ("DownEncoderBlock2D",) * 2}
    code |= {"up_block_types": ("UpDecoderBlock2D",) * 2, "norm_num_groups": 4}
    code |= {"layers_per_block": 1, "latent_channels": 8}
    steps = (3, (1, 2, 2), 1, 2, 1)
    two = {"norm_op": nn.InstanceNorm2d, "nonlin": nn.ReLU}
    return [
        latent("AutoencoderKL", partial(AutoencoderKL, **code), 32,
            "encoder>mean | quant_conv>mean | encoder.mid_block>mean | refuse"),
        latent("VQModel", partial(VQModel, **code, num_vq_embeddings=16), 32,
            "encoder>mean | quant_conv>mean | encoder.mid_block>mean | refuse"),
        net("PlainConvUNet, deep supervision", partial(nnunet.PlainConvUNet, 1, 3, (8, 16, 24),
            nn.Conv2d, *steps, **two, deep_supervision=True), 32, "encoder>mean@-1 | refuse",
            channels=1),
        net("ResidualEncoderUNet, 3-D", partial(nnunet.ResidualEncoderUNet, 1, 3, (8, 16, 24),
            nn.Conv3d, *steps, norm_op=nn.InstanceNorm3d, nonlin=nn.ReLU), (1, 16, 16, 16),
            "encoder>mean@-1 | refuse"),
    ]  # fmt: skip


def nets() -> list[Expert]:
    """All of them."""
    return kornia_nets() + transformers() + classifiers() + dense()
