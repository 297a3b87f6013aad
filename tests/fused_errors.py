"""How far fused views are from those made step by step: a line of JSON.

On a machine without a GPU, TRITON_INTERPRET=1 has to be set before this starts.
"""

import json
import sys
from dataclasses import replace

import torch
from torch import nn

from byol_wrap.views import VIEW2, apply, draw, fused

CASES = ("floats", "bytes, channels last", "a list", "steps off")
SIZES = [(24, 36), (20, 50), (40, 21)] * 2
# Which of six images each step is for: each of them with and without the others.
CHOSEN: dict[str, tuple[int, ...]] = {
    "flip": (0, 2, 4),
    "jitter": (0, 1, 3, 4),
    "greyscale": (1, 5),
    "blur": (0, 1, 5),
    "solarize": (1, 2, 3),
}


def images(batch: int, height: int, width: int) -> torch.Tensor:
    """Smooth coloured noise."""
    coarse = torch.rand(batch, 3, 7, 7)
    return nn.functional.interpolate(coarse, (height, width), mode="bilinear")


def errors(device: str) -> dict[str, float]:
    """The largest difference of a pixel, case by case, from views made on the CPU."""
    torch.manual_seed(0)
    found = {}
    for case in CASES:
        if device == "cpu":  # where a program costs more than its pixels
            tile = (32, 16, 1024) if case == "floats" else (64, 64, 2048)
            fused.ROWS, fused.COLUMNS, fused.PIXELS = tile
        size = (20, 44) if case == "a list" else (40, 30)
        sizes = SIZES if case == "a list" else [(24, 36)] * 6
        off = ("jitter", "greyscale", "blur") if case == "steps off" else ()
        chosen = CHOSEN | dict.fromkeys(off, ())
        columns = {name: torch.tensor([i in of for i in range(6)]) for name, of in chosen.items()}
        draws = replace(draw(VIEW2, 6, *torch.tensor(sizes).T), **columns)
        layout = torch.contiguous_format
        if case == "a list":
            parts = [images(1, *sides)[0] for sides in sizes]
            expected = apply(draws, parts, size)
            out = fused.apply(draws, [part.to(device) for part in parts], size)
        else:
            given = images(6, *sizes[0])
            if case == "bytes, channels last":
                layout = torch.channels_last
                given = (255 * given).to(torch.uint8).contiguous(memory_format=layout)
            expected = apply(draws, given, size)
            out = fused.apply(draws, given.to(device), size, layout)
            assert out.is_contiguous(memory_format=layout)
        found[case] = (out.cpu() - expected).abs().max().item()
    return found


if __name__ == "__main__":
    print(json.dumps(errors(sys.argv[1])))
