"""open_clip: the image tower's token before the projection, or the projected vector."""

from functools import partial
from typing import Any

from open_clip.model import CLIP, CustomTextCLIP
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import nn

from experts.answer import Expert, Library

VISION = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32}
TEXT = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
TOWER = (32, 8, 32, 2, 2, 2.0)
TOKEN = "ln_post>token | >"
WHOLE = "visual.ln_post>token | visual> | >@{}"


def tower(**options: Any) -> partial[nn.Module]:
    """A small image tower."""
    return partial(VisionTransformer, *TOWER, output_dim=24, **options)


def nets() -> list[Expert]:
    """Towers of each kind, and whole models that are given images alone."""
    net = Library("open_clip")
    asked = {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2}
    return [
        net("ViT tower", tower(), 32, TOKEN),
        net("ViT tower, mean", tower(pool_type="avg", final_ln_after_pool=True), 32,
            "ln_post> | >"),
        net("ViT tower, mean of normalised patches", tower(pool_type="avg"), 32,
            "ln_post>skip1 | >"),
        net("ViT tower, with tokens", tower(output_tokens=True), 32, "ln_post>token | >@0"),
        net("ViT tower, attention pooling", tower(**asked), 32, "ln_post>token | >"),
        net("ViT tower, no pooling", tower(pool_type="none"), 32,
            "ln_post>token | >token | >tokens | refuse"),
        net("ResNet tower", partial(ModifiedResNet, (1, 1, 1, 1), 24, 4, 64, 8), 64,
            "attnpool> | layer4>mean"),
        net("timm tower, linear", partial(TimmModel, "test_resnet", 24, image_size=64), 64,
            "trunk> | >"),
        net("timm tower, MLP", partial(TimmModel, "test_vit", 24, image_size=160, pool="",
            proj="mlp"), 160, "trunk> | >"),
        net("CLIP given images alone", partial(CLIP, 32, VISION, TEXT), 32, WHOLE.format(0)),
        net("CLIP given images alone, as a dict", partial(CustomTextCLIP, 32, VISION, TEXT,
            output_dict=True), 32, WHOLE.format("image_features")),
        net("CLIP given images alone, with a bias", partial(CustomTextCLIP, 32, VISION, TEXT,
            init_logit_bias=-10.0), 32, WHOLE.format(0)),
    ]  # fmt: skip
