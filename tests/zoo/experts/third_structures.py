"""The third set, by hand: wrappers, kinds of output, unusual layers.

Written down before the rule that is judged on it was there.
"""

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import DeQuantStub, QuantStub
from torch.utils.checkpoint import checkpoint

from experts.answer import Expert, Library
from experts.own_parts import mlp
from experts.third_parts import (
    Made,
    Net,
    Output,
    Result,
    Scores,
    block,
    held,
    maps,
    shuffle,
    small,
    tower,
)


def wrapped(net: Library) -> list[Expert]:
    """Normalised, scripted, checkpointed, quantised; what comes out is an object."""

    def scaled() -> nn.Module:
        made = Net(lambda f, x: f.model((F.interpolate(x, size=24, mode="bilinear",
            antialias=True) - f.mean) / f.std), model=nn.Sequential(OrderedDict(body=tower(3),
            drop=nn.Dropout(0.2), fc=nn.Linear(24, 5))))  # fmt: skip
        made.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None])
        made.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None])
        return made

    def hugging(f: Any, x: Tensor) -> Output:
        found = f.body(x)
        pooled = found.mean((2, 3))
        return Output(logits=f.classifier(f.norm(pooled)), hidden_states=(found, pooled))

    def remembers(f: Any, x: Tensor) -> Tensor:
        f.activations = f.body(x)
        return f.fc(f.activations.mean((2, 3)))

    def checkpointed(f: Any, x: Tensor) -> Tensor:
        x = f.stem(x)
        for stage in f.stages:
            x = checkpoint(stage, x, use_reentrant=False) if f.training else stage(x)
        return f.fc(x.mean((2, 3)))

    def quantised(f: Any, x: Tensor) -> Tensor:
        x = f.stem(f.quant(x))
        x = f.add.add(x, f.body(x))
        return f.dequant(f.fc(x.mean((2, 3))))

    def functional(f: Any, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, f.conv1, stride=2, padding=1))
        x = F.relu(F.conv2d(x, f.conv2, stride=2, padding=1))
        return F.linear(x.mean((2, 3)), f.weight, f.bias)

    def loss_too(f: Any, x: Tensor) -> dict[str, Any]:
        x = f.body(x)
        decay = sum(weight.pow(2).sum() for weight in f.fc.parameters())
        return {"logits": f.fc(x), "regularization_loss": decay, "num_classes": 5}

    return [
        net("scaled and resized within", scaled, 32, "model.fc< | model.drop<"),
        net("a dataclass without a loss", lambda: Net(hugging, body=maps(),
            norm=nn.LayerNorm(24), classifier=nn.Linear(24, 5)), 32, "classifier<"),
        net("a named tuple of scores and embedding", lambda: Net(lambda f, x: (lambda h: Scores(
            f.fc(h), h))(f.embed(f.body(x))), body=tower(3), embed=mlp(24, 32), fc=nn.Linear(32,
            5)), 32, "fc<"),
        net("an object of scores and features", lambda: Net(lambda f, x: (lambda h: Result(f.fc(h),
            h))(f.body(x)), body=tower(3), fc=nn.Linear(24, 5)), 32, "fc<"),
        net("scores, a loss and a number", lambda: Net(loss_too, body=tower(3), fc=nn.Linear(24,
            5)), 32, "fc<"),
        net("activations kept on the net", lambda: Net(remembers, body=maps(), fc=nn.Linear(24,
            5)), 32, "fc<"),
        net("stages with checkpoints", lambda: Net(checkpointed, stem=block(3, 12),
            stages=nn.ModuleList([block(12, 24), block(24, 32)]), fc=nn.Linear(32, 5)), 32, "fc<"),
        net("a scripted body", lambda: Net(lambda f, x: f.fc(f.body(x)),
            body=torch.jit.script(tower(3)), fc=nn.Linear(24, 5)), 32, "fc<"),
        net("a scripted body, einsum behind it", lambda: held(Net(lambda f, x: torch.einsum(
            "bd,dk->bk", f.body(x), f.weight), body=nn.Sequential(torch.jit.script(tower(3)),
            nn.Identity())), weight=small(24, 5)), 32, "body>"),
        net("stubs of quantisation", lambda: Net(quantised, quant=QuantStub(), stem=block(3, 24),
            body=block(24, 24, 1), add=FloatFunctional(), fc=nn.Linear(24, 5),
            dequant=DeQuantStub()), 32, "fc<"),
        net("functions and parameters alone", lambda: held(Net(functional), conv1=small(12, 3, 3,
            3), conv2=small(24, 12, 3, 3), weight=small(5, 24), bias=small(5)), 32, "refuse"),
    ]  # fmt: skip


def layers(net: Library) -> list[Expert]:
    """Convolutions of many kinds before an ordinary classifier."""

    def fourier(f: Any, x: Tensor) -> Tensor:
        x = f.patch(x)
        found = torch.fft.rfft2(x, norm="ortho") * torch.view_as_complex(f.filter)
        x = f.mix(x + torch.fft.irfft2(found, s=x.shape[2:], norm="ortho"))
        return f.head(f.norm(x.mean((2, 3))))

    def complex_layers(f: Any, x: Tensor) -> Tensor:
        x = f.conv1(torch.fft.fft2(x, norm="ortho"))
        x = f.conv2(torch.complex(F.relu(x.real), F.relu(x.imag)))
        return f.fc(x.abs().mean((2, 3)))

    def dynamic(f: Any, x: Tensor) -> Tensor:
        x = f.stem(x)
        mix = f.route(x.mean((2, 3))).sigmoid()
        kernels = torch.einsum("be,eoikl->boikl", mix, f.kernels).flatten(0, 1)
        found = F.conv2d(x.flatten(0, 1)[None], kernels, padding=1, groups=len(x))
        return f.fc(F.relu(found.view_as(x)).mean((2, 3)))

    def shuffled(f: Any, x: Tensor) -> Tensor:
        x = f.stem(x)
        for unit in f.units:
            kept, worked = x.chunk(2, 1)
            x = shuffle(torch.cat([kept, unit(worked)], 1), 2)
        return f.fc(f.last(x).mean((2, 3)))

    def octaves(f: Any, x: Tensor) -> Tensor:
        high, low = f.high(x), f.low(F.avg_pool2d(x, 2))
        high, low = (high + F.interpolate(f.up(low), scale_factor=2),
                     low + f.down(F.avg_pool2d(high, 2)))  # fmt: skip
        return f.fc(torch.cat([F.relu(high).mean((2, 3)), F.relu(low).mean((2, 3))], 1))

    def reversible(f: Any, x: Tensor) -> Tensor:
        one, two = f.stem(x).chunk(2, 1)
        for a, b in zip(f.a, f.b, strict=True):
            one = one + a(two)
            two = two + b(one)
        return f.fc(torch.cat([one, two], 1).mean((2, 3)))

    def searched(f: Any, x: Tensor) -> tuple[Tensor, Tensor | None]:
        x = f.stem(x)
        for alpha in f.alphas:
            x = sum(w * op(x) for w, op in zip(alpha.softmax(0), f.ops, strict=True))
        scores = f.classifier(x.mean((2, 3)))
        return scores, f.auxiliary(x.mean((2, 3))) if f.training else None

    def drop(f: Any, x: Tensor) -> Tensor:
        if not f.training:
            return x
        holes = (torch.rand_like(x[:, :1]) < 0.05).to(x)
        return x * (1 - F.max_pool2d(holes, 3, 1, 1))

    def unit() -> nn.Module:
        return nn.Sequential(nn.Conv2d(12, 12, 3, 1, 1, groups=12), nn.BatchNorm2d(12),
                             nn.Conv2d(12, 12, 1), nn.ReLU())  # fmt: skip

    cfloat = torch.cfloat
    return [
        net("filters of frequencies", lambda: held(Net(fourier, patch=nn.Conv2d(3, 24, 4, 4),
            mix=nn.Sequential(nn.BatchNorm2d(24), nn.Conv2d(24, 24, 1), nn.GELU()),
            norm=nn.LayerNorm(24), head=nn.Linear(24, 5)), filter=small(24, 8, 5, 2)), 32,
            "head<"),
        net("complex convolutions", lambda: Net(complex_layers, conv1=nn.Conv2d(3, 12, 3, 2, 1,
            dtype=cfloat), conv2=nn.Conv2d(12, 24, 3, 2, 1, dtype=cfloat), fc=nn.Linear(24, 5)),
            32, "fc<"),
        net("kernels mixed for each image", lambda: held(Net(dynamic, stem=maps(),
            route=nn.Linear(24, 3), fc=nn.Linear(24, 5)), kernels=small(3, 24, 24, 3, 3)), 32,
            "fc<"),
        net("grouped and shuffled channels", lambda: Net(shuffled, stem=maps(),
            units=nn.ModuleList([unit(), unit()]), last=block(24, 40, 1, 1), fc=nn.Linear(40, 5)),
            32, "fc<"),
        net("two frequencies side by side", lambda: Net(octaves, high=block(3, 16), low=block(3,
            8), up=nn.Conv2d(8, 16, 1), down=nn.Conv2d(16, 8, 1), fc=nn.Linear(24, 5)), 32, "fc<"),
        net("reversible blocks", lambda: Net(reversible, stem=maps(), a=nn.ModuleList([block(12,
            12, 1) for _ in range(2)]), b=nn.ModuleList([block(12, 12, 1) for _ in range(2)]),
            fc=nn.Linear(24, 5)), 32, "fc<"),
        net("searched operations, and an auxiliary head", lambda: held(Net(searched, stem=maps(),
            ops=nn.ModuleList([nn.Identity(), block(24, 24, 1), nn.AvgPool2d(3, 1, 1)]),
            classifier=nn.Linear(24, 5), auxiliary=nn.Linear(24, 5)), alphas=small(2, 3)), 32,
            "classifier<"),
        net("blocks dropped, a convolution classifies", lambda: nn.Sequential(maps(), Made(drop),
            nn.Conv2d(24, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 32, "2<mean"),
    ]  # fmt: skip


def nets(net: Library) -> list[Expert]:
    """All of them."""
    return wrapped(net) + layers(net)
