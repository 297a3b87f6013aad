"""More nets of many libraries, which no other file of the catalogue has.

Written down before the rule that warns of equal candidates was run on any of them.
"""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from experts.answer import Expert, Library

VIT: dict[str, Any] = {"image_size": 32, "patch_size": 8, "num_classes": 5, "dim": 32, "depth": 2}
VIT |= {"heads": 2, "mlp_dim": 48}
CLIP = (3, 4, 32, 32)
SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 48, "image_size": 32, "patch_size": 8}
SOUND: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SOUND |= {"intermediate_size": 48, "conv_dim": (16, 16), "conv_stride": (5, 2)}
SOUND |= {"conv_kernel": (10, 3), "num_conv_pos_embeddings": 8, "mask_time_prob": 0.0}
SOUND |= {"num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 2}
TOKEN, MEAN = ">token@last_hidden_state", ">tokens@last_hidden_state"
POOLED = f">@pooler_output | {TOKEN}"


def of(module: str, name: str, *values: Any, **options: Any) -> Callable[[], nn.Module]:
    """Builds something of a module later."""

    def build() -> nn.Module:
        net: nn.Module = getattr(importlib.import_module(module), name)(*values, **options)
        return net

    return build


def hf(model: str, config: str, **values: Any) -> Callable[[], nn.Module]:
    """Builds a model of transformers from its configuration."""

    def build() -> nn.Module:
        library = importlib.import_module("transformers")
        net: nn.Module = getattr(library, model)(getattr(library, config)(**values))
        return net

    return build


def transformers_of_vision(net: Library) -> list[Expert]:
    """vit-pytorch, its author's other packages, and transformers."""

    def vit(label: str, module: str, answers: str, name: str = "ViT", **other: Any) -> Expert:
        options = {key: value for key, value in (VIT | other).items() if value is not None}
        return net(label, of(f"vit_pytorch.{module}", name, **options), 32, answers)

    moss = {"image_size": 32, "image_patch_size": 8, "frames": 4, "frame_patch_size": 2}
    moss |= {"num_classes": 5, "dim": 32, "spatial_depth": 1, "temporal_depth": 1, "heads": 2}
    stages = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}
    segformer = stages | {"num_attention_heads": [1, 1, 2, 2], "num_encoder_blocks": 4}
    perceiver = {"num_latents": 8, "d_latents": 16, "num_blocks": 1, "num_labels": 5}
    perceiver |= {"num_self_attends_per_block": 1, "num_self_attention_heads": 2}
    perceiver |= {"num_cross_attention_heads": 1, "image_size": 32}
    focal = {"image_size": 64, "embed_dim": 12, "depths": [1, 1], "focal_levels": [1, 1]}
    focal |= {"focal_windows": [3, 3], "hidden_sizes": [12, 24]}
    flava = SMALL | {"mask_token": False}
    return [
        vit("ViT-5, class token and registers", "vit_5", "mlp_head<"),
        vit("ViT-5, no head", "vit_5", ">token", num_classes=0),
        vit("ViTDetPool", "vit_detpool", "mlp_head<", "ViTDetPool"),
        vit("ViT, a second loss in training", "vit_with_decorr", "mlp_head<"),
        vit("looped ViT", "looped_vit", "mlp_head<", "LoopedViT", depth=None, pre_loop_depth=1,
            num_looped_blocks=1, post_loop_depth=1, loop_depth=2),
        vit("JetViT", "jet_vit", "mlp_head<", "JetViT", window_size=2, dim_head=16),
        vit("ViT, norms behind its blocks", "vit_with_keel_post_ln", "mlp_head<"),
        vit("SimpleViT, hyper-connections", "simple_vit_with_hyper_connections", "linear_head<",
            "SimpleViT", num_residual_streams=2),
        vit("ViT with learnable memories", "learnable_memory_vit", "mlp_head.1<"),
        vit("SimpleViT, its frequencies too", "simple_vit_with_fft", "linear_head<", "SimpleViT",
            freq_patch_size=8),
        vit("SimpleViT, a specialised token", "simple_vit_with_specialized_cls", "linear_head<",
            "SimpleViT"),
        net("ViViT with MOSS", of("vit_pytorch.vivit_with_moss", "ViViT", **moss, mlp_dim=48,
            moss_hidden_dim=8), CLIP, "mlp_head.1<"),
        net("MaxViT with registers", of("vit_pytorch.max_vit_with_registers", "MaxViT",
            num_classes=5, dim=16, depth=(1, 1), window_size=4, dim_head=8), 32, "mlp_head.2<"),
        net("MLP-Mixer", of("mlp_mixer_pytorch", "MLPMixer", image_size=32, channels=3,
            patch_size=8, dim=32, depth=1, num_classes=5), 32, "5<"),
        net("gMLP", of("g_mlp_pytorch", "gMLPVision", image_size=32, patch_size=8, dim=32, depth=1,
            num_classes=5), 32, "to_logits.2<"),
        net("ResMLP", of("res_mlp_pytorch", "ResMLP", image_size=32, patch_size=8, dim=32, depth=1,
            num_classes=5), 32, "5<"),
        net("TimeSformer, frames first", of("timesformer_pytorch", "TimeSformer", dim=32,
            num_frames=4, image_size=32, patch_size=8, depth=1, heads=2, num_classes=5),
            (4, 3, 32, 32), "to_out.1<"),
        net("UniFormer", of("uniformer_pytorch", "Uniformer", num_classes=5, dims=(16, 16, 32, 32),
            depths=(1, 1, 1, 1), dim_head=16), (3, 4, 64, 64), "to_logits.2<"),
        net("MLCDVisionModel", hf("MLCDVisionModel", "MLCDVisionConfig", **SMALL), 32, POOLED),
        net("AltCLIPVisionModel", hf("AltCLIPVisionModel", "AltCLIPVisionConfig", **SMALL), 32,
            POOLED),
        net("ChineseCLIPVisionModel", hf("ChineseCLIPVisionModel", "ChineseCLIPVisionConfig",
            **SMALL), 32, POOLED),
        net("OwlViTVisionModel", hf("OwlViTVisionModel", "OwlViTVisionConfig", **SMALL), 32,
            POOLED),
        net("GroupViTVisionModel", hf("GroupViTVisionModel", "GroupViTVisionConfig", **{k: v
            for k, v in SMALL.items() if k != "num_hidden_layers"}, depths=[1, 1, 1],
            num_group_tokens=[8, 4, 0], num_output_groups=[8, 4, 0], num_hidden_layers=3), 32,
            f">@pooler_output | {MEAN}"),
        net("FlavaImageModel", hf("FlavaImageModel", "FlavaImageConfig", **flava), 32, POOLED),
        net("MetaClip2, a projection", hf("MetaClip2VisionModelWithProjection",
            "MetaClip2VisionConfig", **SMALL), 32, "visual_projection< | >@image_embeds"),
        net("SegformerForImageClassification", hf("SegformerForImageClassification",
            "SegformerConfig", **segformer), 64, "classifier<"),
        net("SegformerModel", hf("SegformerModel", "SegformerConfig", **segformer), 64,
            ">mean@last_hidden_state"),
        net("PerceiverForImageClassificationLearned", hf("PerceiverForImageClassificationLearned",
            "PerceiverConfig", **perceiver), 32,
            "perceiver>tokens@last_hidden_state | perceiver.decoder.decoder.final_layer<tokens"),
        net("FocalNetForMaskedImageModeling", hf("FocalNetForMaskedImageModeling",
            "FocalNetConfig", **focal), 64,
            "focalnet>tokens@last_hidden_state | decoder.0<mean | refuse"),
        net("LevitModel", hf("LevitModel", "LevitConfig", image_size=64, hidden_sizes=[16, 24, 32],
            num_attention_heads=[1, 1, 2], depths=[1, 1, 1], key_dim=[8, 8, 8]), 64,
            f">@pooler_output | {MEAN}"),
        net("TextNetModel", hf("TextNetModel", "TextNetConfig"), 64,
            ">mean@pooler_output | >mean@last_hidden_state"),
    ]  # fmt: skip


def convolutional(net: Library) -> list[Expert]:
    """pytorchcv, torchvision, timm, fastai, resnest, and attention in convolutional nets."""
    get = partial(of, "pytorchcv.model_provider", "get_model", pretrained=False)

    def cv(name: str, answers: str, size: int = 224, **other: Any) -> Expert:
        return net(name, get(name, **other), size, answers)

    def in_resnet(layer: Callable[[], nn.Module], channels: int) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            children = list(importlib.import_module("torchvision").models.resnet18().children())
            return nn.Sequential(*children[:6], layer(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                                 nn.Linear(channels, 5))  # fmt: skip

        return build

    def fast() -> nn.Module:
        vision = importlib.import_module("fastai.vision.all")
        made: nn.Module = vision.create_vision_model(vision.resnet18, 5, pretrained=False)
        return made

    def fast_unet() -> nn.Module:
        vision = importlib.import_module("fastai.vision.all")
        made: nn.Module = vision.create_unet_model(vision.resnet18, 2, (64, 64), pretrained=False)
        return made

    timm = partial(of, "timm", "create_model")
    stack = of("bottleneck_transformer_pytorch", "BottleStack", dim=128, fmap_size=8, dim_out=64,
               num_layers=1, heads=2, dim_head=8, downsample=True)  # fmt: skip
    return [
        cv("seresnet10", "output<"),
        cv("airnet50_1x64d_r2", "output<"),
        cv("bagnet9", "output<"),
        cv("bninception", "output<"),
        cv("menet108_8x1_g3", "output<"),
        cv("squeezenet_v1_1", "output.final_conv<mean"),
        cv("squeezeresnet_v1_1", "output.final_conv<mean"),
        cv("darknet_tiny", "output.final_conv<mean"),
        cv("resnet56_cifar10", "output<", 32),
        cv("preresnet20_cifar10", "output<", 32),
        cv("ror3_56_cifar10", "output<", 32),
        cv("shakeshakeresnet20_2x16d_cifar10", "output<", 32),
        cv("diaresnet20_cifar10", "output<", 32),
        cv("xdensenet40_2_k24_bc_cifar10", "output<", 32),
        cv("msdnet22_cifar10", "classifiers.classifier10.output<", 32),
        cv("erfnet_cityscapes", "refuse", 128),
        cv("sinet_cityscapes", "refuse", 128),
        net("S3D (a convolution classifies)", of("torchvision.models.video", "s3d", weights=None),
            (3, 16, 224, 224), "classifier.1<mean"),
        net("mvit_v1_b", of("torchvision.models.video", "mvit_v1_b", weights=None),
            (3, 16, 224, 224), "head.1<"),
        net("resnet18, mean and maximum", timm("test_resnet", global_pool="catavgmax",
            num_classes=5), 64, "fc<"),
        net("hgnetv2, features_only", timm("hgnetv2_b0", features_only=True), 64, ">mean@-1"),
        net("inception_next, features_only", timm("inception_next_atto", features_only=True), 64,
            ">mean@-1"),
        net("coatnet, no head", timm("coatnet_pico_rw_224", num_classes=0), 224, ">"),
        net("fastai, resnet18 and its head", fast, 64, "1.8< | 1.4<"),
        net("fastai, U-Net", fast_unet, 64, "layers.0>mean | layers.3>mean | refuse"),
        net("fastai, xresnet18", of("fastai.vision.all", "xresnet18", n_out=5), 64, "11<"),
        net("ResNeSt", of("resnest.torch.resnest", "resnest50", num_classes=5), 64, "fc<"),
        net("bottleneck transformer in a ResNet", in_resnet(stack, 64), 64, "9<"),
        net("halo attention in a ResNet", in_resnet(of("halonet_pytorch", "HaloAttention", dim=128,
            block_size=4, halo_size=1, dim_head=8, heads=2), 128), 64, "9<"),
        net("lambda layer in a ResNet", in_resnet(of("lambda_networks", "LambdaLayer", dim=128,
            dim_k=8, r=5, heads=2, dim_out=64), 64), 64, "9<"),
    ]  # fmt: skip


def dense(net: Library) -> list[Expert]:
    """MONAI, unet, diffusers, kornia, torchgeo."""
    tiny = {"encoder_block_out_channels": (8, 8, 8, 8), "decoder_block_out_channels": (8,) * 4}
    tiny |= {"latent_channels": 4}
    patch = {"image_size": 64, "pretrained": False}
    return [
        net("RegUNet", of("monai.networks.nets", "RegUNet", 2, 1, 8, 2), 32,
            "bottom_block>mean | refuse", channels=1),
        net("VoxelMorphUNet", of("monai.networks.nets", "VoxelMorphUNet", 2, 2, 2, [8, 16, 16,
            32, 32, 16], [8, 8]), 64, "refuse", channels=2),
        net("HoVerNet, three branches", of("monai.networks.nets", "HoVerNet", mode="fast",
            out_classes=3), 256, "refuse"),
        net("discriminators of several scales", of("monai.networks.nets",
            "MultiScalePatchDiscriminator", 2, 2, 2, 8, 1, minimum_size_im=64), 64, "refuse",
            channels=1),
        net("UNet2D of unet", of("unet", "UNet2D", num_encoding_blocks=3,
            out_channels_first_layer=8, normalization="batch", padding=True), 32,
            "bottom_block>mean | refuse", channels=1),
        net("UNet3D of unet", of("unet", "UNet3D", num_encoding_blocks=3,
            out_channels_first_layer=8, padding=True), (1, 16, 16, 16),
            "bottom_block>mean | refuse"),
        net("AutoencoderTiny", of("diffusers.models", "AutoencoderTiny", **tiny), 32,
            "encoder>mean | refuse"),
        net("AsymmetricAutoencoderKL", of("diffusers.models", "AsymmetricAutoencoderKL",
            down_block_out_channels=(8, 16), up_block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
            up_block_types=("UpDecoderBlock2D",) * 2), 32, "refuse"),
        net("DISK (descriptors of places)", of("kornia.feature", "DISK", 16), 64, "refuse"),
        net("OriNet (an angle)", of("kornia.feature.orientation", "OriNet", False), 32,
            "features>mean | refuse", channels=1),
        net("EarthLoc, a descriptor", of("torchgeo.models", "EarthLoc", **patch, desc_dim=64), 64,
            "> | refuse"),
    ]  # fmt: skip


def signals(net: Library) -> list[Expert]:
    """tsai, braindecode, speechbrain, transformers: series and waves."""

    def series(module: str, name: str, answers: str, **options: Any) -> Expert:
        return net(f"{name} of tsai", of(f"tsai.models.{module}", name, 3, 4, 64, **options),
                   (3, 64), answers)  # fmt: skip

    def eeg(name: str, answers: str = "final_layer<", chans: int = 8, time: int = 1000,
            **other: Any) -> Expert:  # fmt: skip
        options = {"n_chans": chans, "n_outputs": 4, "n_times": time, "sfreq": 250} | other
        return net(name, of("braindecode.models", name, **options), (chans, time), answers)

    def wave(name: str, config: str, answers: str = ">tokens@last_hidden_state") -> Expert:
        return net(name, hf(name, config, **SOUND), (1600,), answers)

    mixer = {"context_length": 32, "patch_length": 8, "patch_stride": 8, "num_input_channels": 3}
    mixer |= {"d_model": 16, "num_layers": 1, "num_targets": 4}
    tst = {"context_length": 32, "patch_length": 8, "patch_stride": 8, "num_input_channels": 3}
    tst |= {"d_model": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 16}
    return [
        series("MLP", "MLP", "head.0<", layers=[32, 24], ps=[0.1, 0.1]),
        series("RNNAttention", "LSTMAttention", "head.2<", hidden_size=16, encoder_layers=1,
               n_heads=2, d_ff=16),
        series("TSPerceiver", "TSPerceiver", "head.2<", n_latents=8, d_latent=16, n_layers=1,
               self_n_heads=2),
        series("mWDN", "mWDN", "_model.head.0.1<", levels=2),
        series("ConvTranPlus", "ConvTranPlus", "head.2< | head.1<", d_model=16, n_heads=8,
               dim_ff=16),
        series("InceptionTimePlus", "InceptionTimePlus", "head.0.1<"),
        series("TransformerRNNPlus", "TransformerLSTMPlus", "head.1< | head.2< | refuse",
               d_model=16, nhead=2, dim_feedforward=16),
        eeg("DeepSleepNet", time=3000, chans=1, sfreq=100),
        eeg("HybridNet", "final_layer.0<mean | final_layer.0<flat | refuse"),
        eeg("EEGTCNet"),
        eeg("AttnSleep", time=3000, chans=1, sfreq=100, input_window_seconds=30),
        eeg("SCCNet"),
        eeg("IFNet"),
        eeg("SyncNet"),
        net("Cnn14 of speechbrain", of("speechbrain.lobes.models.Cnn14", "Cnn14", 64, 32),
            (64, 64), ">"),
        net("ResNet of speechbrain", of("speechbrain.lobes.models.ResNet", "ResNet", 40,
            channels=[8, 8, 16, 16], block_sizes=[1, 1, 1, 1], lin_neurons=24), (60, 40),
            "> | fc_embed> | norm_stats>"),
        wave("SEWModel", "SEWConfig"),
        wave("UniSpeechModel", "UniSpeechConfig"),
        wave("Wav2Vec2ConformerModel", "Wav2Vec2ConformerConfig"),
        wave("HubertForSequenceClassification", "HubertConfig", "classifier<"),
        net("PatchTSMixerForTimeSeriesClassification", hf("PatchTSMixerForTimeSeriesClassification",
            "PatchTSMixerConfig", **mixer), (32, 3), "head.projection< | refuse"),
        net("PatchTSTForPrediction", hf("PatchTSTForPrediction", "PatchTSTConfig", **tst,
            prediction_length=4), (32, 3), "refuse"),
    ]  # fmt: skip


def nets() -> list[Expert]:
    """All of them."""
    net = Library("second set, libraries")
    return transformers_of_vision(net) + convolutional(net) + dense(net) + signals(net)
