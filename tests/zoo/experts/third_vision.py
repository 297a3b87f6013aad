"""The third set: corners of timm, torchvision and transformers.

Written down before the rule that is judged on it was there.
"""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from experts.answer import Expert, Library
from experts.own_parts import mlp
from experts.second_nets import SMALL, TOKEN, hf, of
from experts.third_parts import Net, maps, tower

WORDS: dict[str, Any] = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 1}
WORDS |= {"num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 24}
WORDS |= {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
LAST = "@last_hidden_state"


class WithWords(nn.Module):
    """A model of images and words, for which the words are fixed."""

    def __init__(self, body: nn.Module, ids: Tensor, name: str = "input_ids") -> None:
        super().__init__()
        self.body, self.name = body, name
        self.register_buffer("ids", ids)

    def forward(self, x: Tensor) -> Any:
        assert isinstance(self.ids, Tensor)
        return self.body(pixel_values=x, **{self.name: self.ids})


class EachImage(WithWords):
    """The same words once for each image."""

    def forward(self, x: Tensor) -> Any:
        assert isinstance(self.ids, Tensor)
        return self.body(pixel_values=x, **{self.name: self.ids.expand(len(x), -1)})


def timm(net: Library) -> list[Expert]:
    """Newest families, distilled heads, encoders of language models."""
    create = partial(of, "timm", "create_model")
    vit = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 2}
    gemma = vit | {"head_dim": 24, "intermediate_size": 64, "pooling_kernel_size": 2}
    return [
        net("efficientvim_m1_dist", create("efficientvim_m1_dist", num_classes=5), 64,
            "heads.2< | heads.3< | refuse"),
        net("iformer, distilled", create("iformer_l2_distilled", dims=(16, 24, 32, 48),
            attn_groups=(0, 0, 1, 1), depths=(1, 1, 3, 3), num_classes=5), 64,
            "head.head.l< | head.head_dist.l< | head<"),
        net("naflexvit, attention pooling", create("naflexvit_base_patch16_map", embed_dim=48,
            depth=1, num_heads=2, num_classes=5), 64, "head<"),
        net("naflexvit, tokens", create("naflexvit_base_patch16_gap", embed_dim=48, depth=1,
            num_heads=2, num_classes=0, global_pool=""), 64, ">tokens | >skip4"),
        net("qwen3_vit, merged tokens", create("qwen3_vit_88m_merge", **vit, out_features=32,
            num_classes=5), 64,
            "head<"),
        net("qwen3_vit, encoder", create("qwen3_vit_88m_enc", **vit, out_features=32), 64,
            ">tokens"),
        net("deepseek_vit, aligned", create("deepseek_vit_412m_align", **vit | {"img_size": 56},
            out_features=32, num_classes=5), 56,
            "head<"),
        net("gemma4_vit, encoder of soft tokens", create("gemma4_vit_167m_enc", **gemma), 64,
            ">tokens"),
        net("csatv2, features_only", create("csatv2", features_only=True), 64,
            ">mean@-1 | refuse"),
        net("fasternet, features_only", create("fasternet_t0", features_only=True), 64,
            ">mean@-1"),
        net("hieradet, features_only", create("hieradet_small", features_only=True,
            embed_dim=16), 64, ">mean@-1"),
        net("samvit, neck and no head", create("samvit_base_patch16", img_size=64, embed_dim=32,
            depth=1, num_heads=2, neck_chans=24, num_classes=0, global_attn_indexes=(0,)), 64,
            ">"),
        net("vit_pe_core, attention pooling", create("vit_pe_core_tiny_patch16_384", **vit), 64,
            "> | head<"),
        net("resnet50_clip, attention pooling", create("resnet50_clip", num_classes=5,
            img_size=64), 64, "head.proj<token"),
        net("fastvit_mci0", create("fastvit_mci0", layers=(1, 1, 1, 1), num_classes=5), 64,
            "head.fc<"),
        net("volo, scores of the token and of patches", of("timm.models.volo", "VOLO",
            (1, 1, 1, 1), img_size=64, embed_dims=(32, 48, 48, 48), num_heads=(2, 2, 2, 2),
            num_classes=5), 64, "head<"),
    ]  # fmt: skip


def torchvision(net: Library) -> list[Expert]:
    """Optical flow, auxiliary heads, pyramids with a classifier, deformable convolutions."""

    def load(module: str, name: str, **options: Any) -> Callable[[], nn.Module]:
        return of(f"torchvision.{module}", name, **options)

    def flow() -> nn.Module:
        return Net(lambda f, x: f.raft(x[:, 0], x[:, 1], num_flow_updates=2),
                   raft=load("models.optical_flow", "raft_small", weights=None)())  # fmt: skip

    def deformable(f: Any, x: Tensor) -> Tensor:
        x = f.body(x)
        return f.fc(f.deform(x, f.offset(x)).relu().mean((2, 3)))

    def in_net() -> nn.Module:
        ops = importlib.import_module("torchvision.ops")
        return Net(deformable, body=maps(), offset=nn.Conv2d(24, 18, 3, 1, 1),
                   deform=ops.DeformConv2d(24, 32, 3, 1, 1), fc=nn.Linear(32, 5))  # fmt: skip

    def pooled(f: Any, x: Tensor) -> Tensor:
        levels = f.fpn(x)
        return f.fc(torch.cat([level.mean((2, 3)) for level in levels.values()], 1))

    def with_pyramid() -> nn.Module:
        utils = importlib.import_module("torchvision.models.detection.backbone_utils")
        body = utils.resnet_fpn_backbone(backbone_name="resnet18", weights=None)
        return Net(pooled, fpn=body, fc=nn.Linear(1280, 5))

    def blocks() -> nn.Module:
        ops = importlib.import_module("torchvision.ops")
        return nn.Sequential(tower(3), ops.MLP(24, [48, 24], dropout=0.1),
                             ops.StochasticDepth(0.2, "row"), nn.Linear(24, 5))  # fmt: skip

    plain: dict[str, Any] = {"weights": None, "weights_backbone": None}
    return [
        net("raft_small, flows of a pair", flow, (2, 3, 128, 128), "refuse"),
        net("googlenet, auxiliary heads", load("models", "googlenet", weights=None,
            num_classes=5, aux_logits=True, init_weights=False), 96, "fc< | dropout<"),
        net("resnet18, made to be quantised", load("models.quantization", "resnet18",
            weights=None), 64, "fc<"),
        net("mobilenet_v3, made to be quantised", load("models.quantization",
            "mobilenet_v3_large", weights=None, num_classes=5), 64,
            "classifier.3< | classifier.0<"),
        net("deformable convolution before a classifier", in_net, 32, "fc<"),
        net("pyramid of resnet18, classified", with_pyramid, 64, "fc<"),
        net("torchvision's MLP and stochastic depth", blocks, 32, "3<"),
        net("fcos, whole", load("models.detection", "fcos_resnet50_fpn", **plain), 64, "refuse"),
    ]  # fmt: skip


def transformers(net: Library) -> list[Expert]:
    """Images with words, images with several heads, codecs."""
    vision = SMALL | {"projection_dim": 16}
    dual = {"text_config": WORDS | {"projection_dim": 16}, "vision_config": vision}
    ids = torch.tensor([[0, 5, 6, 2], [0, 7, 8, 2], [0, 9, 4, 2]])
    vilt = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vilt |= {"intermediate_size": 48, "image_size": 32, "patch_size": 8}
    vilt |= {"max_position_embeddings": 24}
    layout = WORDS | {"input_size": 32, "patch_size": 8, "max_2d_position_embeddings": 64}
    layout |= {"coordinate_size": 4, "shape_size": 8, "visual_embed": True}
    text = WORDS | {"num_key_value_heads": 2}
    donut = {"image_size": 64, "embed_dim": 12, "depths": [1, 1], "num_heads": [1, 2]}
    donut |= {"window_size": 4}
    pose = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    pose |= {"image_size": [32, 32], "patch_size": [8, 8], "out_indices": [2]}
    letters = {"image_size": [32, 32], "patch_size": 8, "hidden_size": 32, "mlp_ratio": 2}
    letters |= {"num_hidden_layers": 1, "num_attention_heads": 2, "max_token_length": 6}
    letters |= {"num_bpe_labels": 20, "num_wordpiece_labels": 20, "num_character_labels": 10}
    sound = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sound |= {"intermediate_size": 48, "conv_dim": (16, 16), "conv_stride": (5, 2)}
    sound |= {"conv_kernel": (10, 3), "num_conv_pos_embeddings": 8, "num_feat_extract_layers": 2}
    sound |= {"num_conv_pos_embedding_groups": 2, "codevector_dim": 16, "proj_codevector_dim": 16}
    sound |= {"num_codevectors_per_group": 8}
    codec = {"encoder_hidden_size": 8, "downsampling_ratios": [2, 4], "decoder_hidden_size": 16}
    codec |= {"upsampling_ratios": [4, 2], "n_codebooks": 2, "codebook_size": 16}
    codec |= {"codebook_dim": 4}
    mask = {"image_size": 64, "embed_dim": 12, "depths": [1, 1, 1, 1], "window_size": 4}
    mask |= {"num_heads": [1, 1, 2, 2], "out_features": ["stage1", "stage2", "stage3", "stage4"]}

    def words(model: str, config: str, number: Tensor = ids, same: bool = False, name: str =
              "input_ids", **values: Any) -> Callable[[], nn.Module]:  # fmt: skip
        kind = EachImage if same else WithWords
        return lambda: kind(hf(model, config, **values)(), number, name)

    def llava() -> nn.Module:
        library = importlib.import_module("transformers")
        config = library.LlavaConfig(vision_config=library.CLIPVisionConfig(**vision),
            text_config=library.LlamaConfig(**text), image_token_index=39,
            vision_feature_layer=-1)  # fmt: skip
        number = torch.tensor([[0, *[39] * 16, 5, 6]])
        return EachImage(library.LlavaForConditionalGeneration(config), number)

    def captions() -> nn.Module:
        library = importlib.import_module("transformers")
        decoder = library.BertConfig(**WORDS, is_decoder=True, add_cross_attention=True)
        config = library.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
            library.ViTConfig(**SMALL), decoder)  # fmt: skip
        return EachImage(library.VisionEncoderDecoderModel(config), ids[:1], "decoder_input_ids")

    def heatmaps() -> nn.Module:
        library = importlib.import_module("transformers")
        backbone = library.VitPoseBackboneConfig(**pose)
        return library.VitPoseForPoseEstimation(library.VitPoseConfig(backbone_config=backbone,
            num_labels=4))  # fmt: skip

    def maskformer() -> nn.Module:
        library = importlib.import_module("transformers")
        small: dict[str, Any] = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32}
        small |= {"encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2}
        small |= {"dim_feedforward": 16, "encoder_feedforward_dim": 16, "num_queries": 4}
        config = library.Mask2FormerConfig(backbone_config=library.SwinConfig(**mask), **small)
        return library.Mask2FormerForUniversalSegmentation(config)

    def wrapper(model: str) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            library = importlib.import_module("transformers")
            config = library.TimmWrapperConfig.from_dict({"architecture": "test_resnet",
                "num_classes": 5, "num_labels": 5, "do_pooling": True})  # fmt: skip
            return getattr(library, model)(config)

        return build

    pooled = "body.vision_model>@pooler_output"
    return [
        net("CLIPModel with fixed captions", words("CLIPModel", "CLIPConfig", **dual,
            projection_dim=16), 32,
            f"body.visual_projection> | body.visual_projection< | {pooled} | >@image_embeds"),
        net("SiglipModel with fixed captions", words("SiglipModel", "SiglipConfig",
            **dual | {"text_config": WORDS}), 32, f"{pooled} | >@image_embeds"),
        net("ViltModel with a fixed sentence", words("ViltModel", "ViltConfig", ids[:1], True,
            **vilt), 32, f">@pooler_output | {TOKEN}"),
        net("ViltForQuestionAnswering, one question", words("ViltForQuestionAnswering",
            "ViltConfig", ids[:1], True, **vilt), 32,
            "body.classifier.0< | body.classifier.3<"),
        net("LayoutLMv3Model of images alone", lambda: Net(lambda f, x: f.body(pixel_values=x),
            body=hf("LayoutLMv3Model", "LayoutLMv3Config", **layout)()), 32,
            f"{TOKEN} | body>tokens{LAST}"),
        net("LLaVA with a fixed prompt", llava, 32,
            f"body.model.vision_tower>@pooler_output | body.model.vision_tower>tokens{LAST} | "
            f"body.model.vision_tower>token{LAST} | body.model.vision_tower>skip1{LAST} | refuse"),
        net("captions of a ViT and a decoder", captions, 32,
            f"body.encoder>token{LAST} | body.encoder>tokens{LAST} | refuse"),
        net("Blip2VisionModel", hf("Blip2VisionModel", "Blip2VisionConfig", **SMALL,
            initializer_range=0.02), 32,
            f">@pooler_output | {TOKEN}"),
        net("InstructBlipVisionModel", hf("InstructBlipVisionModel", "InstructBlipVisionConfig",
            **SMALL, initializer_range=0.02), 32, f">@pooler_output | {TOKEN}"),
        net("DonutSwinModel", hf("DonutSwinModel", "DonutSwinConfig", **donut), 64,
            f">@pooler_output | >tokens{LAST}"),
        net("VitPoseForPoseEstimation", heatmaps, 32,
            "backbone>tokens@feature_maps@-1 | backbone.layernorm>tokens | refuse"),
        net("MgpstrForSceneTextRecognition, three heads", hf("MgpstrForSceneTextRecognition",
            "MgpstrConfig", **letters), 32,
            f"mgp_str>tokens{LAST} | mgp_str>token{LAST} | mgp_str>skip1{LAST} | refuse"),
        net("Mask2FormerForUniversalSegmentation", maskformer, 64,
            "model.pixel_level_module.encoder>mean@feature_maps@-1 | refuse"),
        net("TimmWrapperModel", wrapper("TimmWrapperModel"), 64, ">@pooler_output"),
        net("TimmWrapperForImageClassification", wrapper("TimmWrapperForImageClassification"), 64,
            "timm_model.fc<"),
        net("Wav2Vec2ForPreTraining", hf("Wav2Vec2ForPreTraining", "Wav2Vec2Config", **sound,
            mask_time_prob=0.0), (1600,), f"wav2vec2>tokens{LAST} | refuse"),
        net("DacModel, codes of a wave", hf("DacModel", "DacConfig", **codec), (1, 800),
            "encoder>mean | refuse"),
        net("a body of transformers, a head by hand", lambda: Net(lambda f, x: f.head(f.drop(
            f.body(x).last_hidden_state[:, 0])), body=hf("Dinov2Model", "Dinov2Config", **SMALL)(),
            drop=nn.Dropout(0.1), head=mlp(32, 16, 5)), 32, "drop< | head.0< | head<"),
        net("mean and class token of DINOv2, by hand", lambda: Net(lambda f, x: (lambda h: f.fc(
            torch.cat([h[:, 0], h[:, 1:].mean(1)], 1)))(f.body(x).last_hidden_state), body=hf(
            "Dinov2Model", "Dinov2Config", **SMALL)(), fc=nn.Linear(64, 5)), 32, "fc<"),
    ]  # fmt: skip


def nets(net: Library) -> list[Expert]:
    """All of them."""
    return timm(net) + torchvision(net) + transformers(net)
