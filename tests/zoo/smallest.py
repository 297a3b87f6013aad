"""Which model of each timm module has the fewest parameters; writes timm.json.

python tests/zoo/smallest.py            # some minutes; nothing is downloaded
"""

import contextlib
import json
import warnings
from pathlib import Path

import timm
import torch

LIST = Path(__file__).with_name("timm.json")


def parameters(name: str) -> int:
    """How many the model has, built without memory for them where that is possible."""
    try:
        with torch.device("meta"):
            net = timm.create_model(name, pretrained=False)
    except (NotImplementedError, RuntimeError):
        net = timm.create_model(name, pretrained=False)
    return sum(parameter.numel() for parameter in net.parameters())


def main() -> None:
    """Build every model of every module."""
    warnings.simplefilter("ignore")
    found = {}
    for module in timm.list_modules():
        sizes = {}
        for name in timm.list_models(module=module):
            with contextlib.suppress(Exception):  # some need what is not here; others stand for it
                sizes[name] = parameters(name)
        if sizes:
            found[module] = min(sizes, key=lambda name: (sizes[name], name))
            print(f"{module}: {found[module]} of {len(sizes)}", flush=True)
    LIST.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
