"""vit-pytorch: every head is a Linear behind a pooling; many nets have no convolution first."""

from typing import Any

from torch import nn

from experts.answer import Expert, Library

SMALL: dict[str, Any] = {"image_size": 32, "patch_size": 8, "num_classes": 5, "dim": 32}
SMALL |= {"depth": 2, "heads": 2, "mlp_dim": 48, "dim_head": 16}
CLIP: dict[str, Any] = {"image_size": 32, "image_patch_size": 8, "frames": 4, "num_classes": 5}
CLIP |= {"frame_patch_size": 2, "dim": 36, "heads": 2, "mlp_dim": 48, "dim_head": 16}
SERIES: dict[str, Any] = {"seq_len": 64, "patch_size": 8, "num_classes": 5, "dim": 32, "depth": 2}
SERIES |= {"heads": 2, "mlp_dim": 48}


def small(**other: Any) -> dict[str, Any]:
    """The usual small configuration, with changes; None leaves a key out."""
    return {key: value for key, value in (SMALL | other).items() if value is not None}


def stages(prefixes: str, **values: tuple[int, ...]) -> dict[str, int]:
    """CvT and Twins name each stage's options by its number."""
    return {f"s{p}_{k}": v[i] for i, p in enumerate(prefixes) for k, v in values.items()}


def make(module: str, name: str, **options: Any) -> Any:
    """Builds a class of one of the library's modules later."""

    def build() -> nn.Module:
        import importlib

        cls = getattr(importlib.import_module(f"vit_pytorch.{module}"), name)
        net: nn.Module = cls(**options)
        return net

    return build


def encoder_of_torch() -> nn.Module:
    """The library's ViT around torch's own encoder, which has a fast path in eval mode."""
    layer = nn.TransformerEncoderLayer(32, 2, 48, batch_first=True)
    net: nn.Module = make(
        "efficient", "ViT", image_size=32, patch_size=8, num_classes=5, dim=32,
        transformer=nn.TransformerEncoder(layer, 2),
    )()  # fmt: skip
    return net


def around(module: str, name: str, **options: Any) -> Any:
    """One of the library's wrappers around a ViT."""

    def build() -> nn.Module:
        vit = make("vit" if name == "Extractor" else "deepvit",
                   "ViT" if name == "Extractor" else "DeepViT", **SMALL)()  # fmt: skip
        key = "vit" if name == "Extractor" else "encoder"
        net: nn.Module = make(module, name, **{key: vit}, **options)()
        return net

    return build


def nets() -> list[Expert]:
    """Each with its smallest configuration that keeps all parts."""
    net = Library("vit-pytorch")
    four = {"dim": (32, 32, 64, 64), "depth": (1, 1, 1, 1), "num_classes": 5}
    cvt = stages("123", emb_dim=(8, 16, 32), heads=(1, 1, 2), depth=(1, 1, 1))
    twins = stages("1234", emb_dim=(8, 16, 24, 32), local_patch_size=(2, 2, 2, 1),
                   global_k=(2, 2, 2, 1), depth=(1, 1, 1, 1), patch_size=(4, 2, 2, 1))  # fmt: skip
    crossvit = {"image_size": 32, "num_classes": 5, "sm_dim": 24, "lg_dim": 32, "depth": 1}
    crossvit |= {"sm_patch_size": 4, "lg_patch_size": 8, "lg_enc_depth": 1}
    mobile = {"image_size": (64, 64), "dims": [16, 24, 32], "num_classes": 5, "depths": (1, 1, 1)}
    mobile |= {"channels": [8, 8, 16, 16, 24, 24, 32, 32, 40, 40, 64]}
    vivit = {**CLIP, "spatial_depth": 1, "temporal_depth": 1}
    cct = {"embedding_dim": 32, "num_layers": 2, "num_heads": 2, "mlp_ratio": 2, "num_classes": 5}
    jumbo = small(num_jumbo_cls=1, jumbo_cls_k=2)
    return [
        net("ViT, class token", make("vit", "ViT", **SMALL), 32, "mlp_head<"),
        net("ViT, mean", make("vit", "ViT", **small(pool="mean")), 32, "mlp_head<"),
        net("ViT, no head", make("vit", "ViT", **small(num_classes=0)), 32, ">token"),
        net("ViT, mean, no head", make("vit", "ViT", **small(num_classes=0, pool="mean")), 32,
            ">tokens"),
        net("ViT, 2 classes", make("vit", "ViT", **small(num_classes=2)), 32, "mlp_head<"),
        net("SimpleViT", make("simple_vit", "SimpleViT", **SMALL), 32, "linear_head<"),
        net("DeepViT", make("deepvit", "DeepViT", **SMALL), 32, "mlp_head.1<"),
        net("CaiT", make("cait", "CaiT", **small(cls_depth=1)), 32, "mlp_head.1<"),
        net("CCT", make("cct", "CCT", img_size=32, **cct), 32, "classifier.fc<"),
        net("CCT, 3-D", make("cct_3d", "CCT", img_size=32, num_frames=4, **cct), (3, 4, 32, 32),
            "classifier.fc<"),
        net("CrossViT", make("cross_vit", "CrossViT", **crossvit), 32,
            "lg_mlp_head.1< | sm_mlp_head.1<"),
        net("CrossFormer", make("crossformer", "CrossFormer", **four,
            global_window_size=(2, 2, 2, 1), local_window_size=(2, 2, 2, 1)), 32, "to_logits.1<"),
        net("CvT", make("cvt", "CvT", num_classes=5, **cvt), 32, "to_logits.2<"),
        net("LeViT", make("levit", "LeViT", **small(patch_size=None, mlp_dim=None, dim_head=None,
            dim=(16, 24, 32), depth=1, mlp_mult=2)), 32, "mlp_head<"),
        net("LeViT with a distillation head", make("levit", "LeViT", **small(patch_size=None,
            mlp_dim=None, dim_head=None, dim=(16, 24, 32), depth=1, mlp_mult=2,
            num_distill_classes=5)), 32, "mlp_head< | distill_head<"),
        net("MaxViT", make("max_vit", "MaxViT", num_classes=5, dim=16, depth=(1, 1), window_size=4,
            dim_head=8), 32, "mlp_head.2<"),
        net("MobileViT", make("mobile_vit", "MobileViT", **mobile), 64, "to_logits.2<"),
        net("NesT", make("nest", "NesT", **small(depth=None, mlp_dim=None, num_hierarchies=2,
            block_repeats=(1, 1))), 32, "mlp_head.2<"),
        net("parallel ViT", make("parallel_vit", "ViT", **SMALL), 32, "mlp_head.1<"),
        net("PiT", make("pit", "PiT", **small(depth=(1, 1))), 32, "mlp_head.1<"),
        net("RegionViT", make("regionvit", "RegionViT", **four, window_size=2, local_patch_size=4),
            64, "to_logits.2<"),
        net("RvT", make("rvt", "RvT", **SMALL), 32, "mlp_head.1<"),
        net("ScalableViT", make("scalable_vit", "ScalableViT", num_classes=5, dim=16, heads=(1, 2),
            depth=(1, 1), reduction_factor=(2, 1), window_size=(2, None)), 32, "mlp_head.2<"),
        net("SepViT", make("sep_vit", "SepViT", num_classes=5, dim=16, heads=(1, 2), depth=(1, 1),
            dim_head=8), 56, "mlp_head.2<"),
        net("SimpleUViT", make("simple_uvit", "SimpleUViT", **SMALL), 32, "linear_head<"),
        net("T2T-ViT", make("t2t", "T2TViT", **small(patch_size=None),
            t2t_layers=((3, 2), (3, 2))), 32, "mlp_head<"),
        net("Twins-SVT", make("twins_svt", "TwinsSVT", num_classes=5, **twins), 32, "layers.6<"),
        net("XCiT", make("xcit", "XCiT", **small(cls_depth=1)), 32, "mlp_head.1<"),
        net("ViT with patch merger", make("vit_with_patch_merger", "ViT", **small(
            patch_merge_layer=1, patch_merge_num_tokens=4)), 32, "mlp_head.1<"),
        net("ViT with patch dropout", make("vit_with_patch_dropout", "ViT", **SMALL), 32,
            "mlp_head.1<"),
        net("ViT for small datasets", make("vit_for_small_dataset", "ViT", **SMALL), 32,
            "mlp_head.1<"),
        net("ATS-ViT", make("ats_vit", "ViT", **small(max_tokens_per_depth=(12, 8))), 32,
            "mlp_head.1<"),
        net("LookViT", make("look_vit", "LookViT", **small(mlp_dim=None, patch_size=16,
            highres_patch_size=8)), 32, "to_logits<"),
        net("JumboViT", make("jumbo_vit", "JumboViT", **jumbo), 32, "linear_head<"),
        net("nViT", make("normalized_vit", "nViT", **SMALL), 32, "to_pred<"),
        net("SimpleViT with registers", make("simple_vit_with_register_tokens", "SimpleViT",
            **SMALL), 32, "linear_head<"),
        net("ViT around torch's encoder", encoder_of_torch, 32, "mlp_head.1<"),
        net("ViT, 1-D", make("vit_1d", "ViT", **SERIES), (3, 64), "mlp_head.1<"),
        net("SimpleViT, 1-D", make("simple_vit_1d", "SimpleViT", **SERIES), (3, 64),
            "linear_head<"),
        net("ViT, 3-D", make("vit_3d", "ViT", **CLIP, depth=1), (3, 4, 32, 32), "mlp_head.1<"),
        net("SimpleViT, 3-D", make("simple_vit_3d", "SimpleViT", **CLIP, depth=1), (3, 4, 32, 32),
            "linear_head<"),
        net("ViViT", make("vivit", "ViViT", **vivit), (3, 4, 32, 32), "mlp_head<"),
        net("ViViT, factorized attention", make("vivit", "ViViT", **vivit,
            variant="factorized_self_attention"), (3, 4, 32, 32), "mlp_head<"),
        net("ViT in an extractor, tokens only", around("extractor", "Extractor",
            return_embeddings_only=True), 32, "vit.transformer>token | refuse"),
        net("ViT in an extractor", around("extractor", "Extractor"), 32, "vit.mlp_head<"),
        net("MAE, which returns its loss", around("mae", "MAE", decoder_dim=16), 32, "refuse"),
        net("SimMIM, which returns its loss", around("simmim", "SimMIM"), 32, "refuse"),
    ]  # fmt: skip
