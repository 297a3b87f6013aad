"""All nets of the catalogue, by library."""

import importlib
from functools import cache

from experts.answer import Expert

LIBRARIES = {
    "vit-pytorch": "vit_pytorch_nets",
    "segmentation-models-pytorch": "segmentation_nets",
    "torchgeo": "satellite_nets",
    "MONAI": "medical_nets",
    "ultralytics": "yolo_nets",
    "open_clip": "clip_nets",
    "transformers": "transformers_nets",
    "transformers, backbones and dense heads": "transformers_dense",
    "transformers, sound, video, series": "transformers_time",
    "timm, other modes": "timm_modes",
    "torchvision, extractors and detectors": "torchvision_parts",
    "pytorchcv": "pytorchcv_nets",
    "braindecode": "brain_nets",
    "sound and series": "sound_nets",
    "others": "other_nets",
    "second set, libraries": "second_nets",
    "second set, by hand": "own_nets",
    "third set, libraries": "third_libraries",
    "third set, by hand": "third_own",
}


@cache
def catalogue(library: str) -> list[Expert]:
    """The nets of one library, which is imported here.

    Raises:
        ImportError: it is not installed.
    """
    module = importlib.import_module(f"experts.{LIBRARIES[library]}")
    found: list[Expert] = module.nets()
    return found
