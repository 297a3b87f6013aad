"""Warnings that point to the user's own line."""

import os
import sys
import warnings
from types import FrameType

import torch

PACKAGE = os.path.join(os.path.dirname(__file__), "")
TORCH = os.path.join(os.path.dirname(torch.__file__), "")


def warn(message: str) -> None:
    """Give a ``UserWarning`` at the first line outside of this package, of torch and of kornia."""
    warnings.warn(message, UserWarning, stacklevel=_level())


def _level() -> int:
    """The ``stacklevel`` of that line, as seen from ``warn``."""
    frame: FrameType | None = sys._getframe(1)
    level = 0
    libraries = (PACKAGE, TORCH, f"{os.sep}kornia{os.sep}")
    while frame is not None:
        level += 1
        file = frame.f_code.co_filename
        if not (file.startswith(libraries[:2]) or libraries[2] in file):
            break
        frame = frame.f_back
    return level
