"""The third set, by hand: heads that are no Linear layer, or a strange one.

Written down before the rule that is judged on it was there.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from experts.answer import Expert, Library
from experts.own_parts import mlp
from experts.third_parts import (
    Blend,
    Made,
    Net,
    block,
    capsules,
    cosines,
    held,
    maps,
    small,
    tokens,
    tower,
)


def nets(net: Library) -> list[Expert]:
    """Classifiers that are no Linear layer, or a strange one."""

    def on_tower(forward: Callable[..., Any], **layers: nn.Module) -> Callable[[], nn.Module]:
        return lambda: Net(forward, body=tower(3), **layers)

    def hyper(f: Any, x: Tensor) -> Tensor:
        weight, bias = f.hyper(f.task).split([120, 5])
        return F.linear(f.body(x), weight.view(5, 24), bias)

    def bilinear(f: Any, x: Tensor) -> Tensor:
        x = f.body(x).flatten(2)
        x = (x @ x.transpose(1, 2) / x.shape[2]).flatten(1)
        return f.fc(F.normalize(x.sign() * (x.abs() + 1e-6).sqrt()))

    def caps(f: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        found = f.digits(f.primary(f.body(x)).unflatten(1, (4, 4)).flatten(3).transpose(2, 3)
                         .flatten(1, 2))  # fmt: skip
        return found.norm(dim=2), found

    def forest(f: Any, x: Tensor) -> Tensor:
        go = f.decision(f.body(x)).sigmoid()
        routes = [go[:, 0] * go[:, 1], go[:, 0] * (1 - go[:, 1])]
        routes += [(1 - go[:, 0]) * go[:, 2], (1 - go[:, 0]) * (1 - go[:, 2])]
        return torch.stack(routes, 1) @ f.leaves.softmax(1)

    def splines(f: Any, x: Tensor) -> Tensor:
        basis = torch.exp(-((x[..., None] - torch.linspace(-2, 2, 6)) ** 2))
        return torch.einsum("big,oig->bo", basis, f.weight) + F.silu(x) @ f.base.T

    def density(f: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = f.hidden(f.body(x))
        return f.pi(x).softmax(1), f.mu(x), f.sigma(x).exp()

    def ordinal(f: Any, x: Tensor) -> Tensor:
        return f.fc(f.body(x)) + f.steps

    def drops(f: Any, x: Tensor) -> Tensor:
        x = f.body(x)
        return torch.stack([f.fc(drop(x)) for drop in f.drops]).mean(0)

    def queries(f: Any, x: Tensor) -> Tensor:
        found = f.decoder(f.queries.expand(len(x), -1, -1), f.body(x))
        return torch.einsum("bkd,kd->bk", found, f.weight) + f.bias

    def reverse(f: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        x = f.features(x)
        return f.labels(x), f.domains(Blend.apply(x))

    def maps_of_classes(f: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        cams = f.classifier(f.body(x))
        return cams.mean((2, 3)), F.relu(cams)

    return [
        net("weights from another net", lambda: held(Net(hyper, body=tower(3), hyper=mlp(8, 16,
            125)), task=torch.randn(8)), 32, "body>"),
        net("einsum with a parameter", lambda: held(Net(lambda f, x: torch.einsum("bd,kd->bk",
            f.body(x), f.weight) + f.bias, body=tower(3)), weight=small(5, 24),
            bias=small(5)), 32, "body>"),
        net("bilinear pooling", lambda: Net(bilinear, body=nn.Sequential(block(3, 8), block(8,
            12)), fc=nn.Linear(144, 5)), 32, "fc<"),
        net("capsules", lambda: Net(caps, body=maps(), primary=nn.Conv2d(24, 16, 3, 2, 1),
            digits=capsules(64, 4, 5, 8)), 32, "digits>flat | digits<flat | body>mean | refuse"),
        net("forest of soft decisions", lambda: held(Net(forest, body=tower(3),
            decision=nn.Linear(24, 3)), leaves=small(4, 5)), 32, "decision<"),
        net("splines instead of a Linear layer", lambda: nn.Sequential(tower(3), Made(splines,
            weight=small(5, 24, 6), base=small(5, 24))), 32, "1<"),
        net("mixture of densities", on_tower(density, hidden=nn.Sequential(nn.Linear(24, 20),
            nn.Tanh()), pi=nn.Linear(20, 3), mu=nn.Linear(20, 3), sigma=nn.Linear(20, 3)), 32,
            "body> | hidden>"),
        net("ordered classes, one slope", lambda: held(Net(ordinal, body=tower(3),
            fc=nn.Linear(24, 1, bias=False)), steps=torch.randn(4)), 32, "fc<"),
        net("dropout five times, one classifier", on_tower(drops, drops=nn.ModuleList([nn.Dropout(
            0.5) for _ in range(5)]), fc=nn.Linear(24, 5)), 32, "body> | fc<"),
        net("a query a class", lambda: held(Net(queries, body=tokens(), decoder=
            nn.TransformerDecoderLayer(24, 2, 32, 0.0, batch_first=True)),
            queries=small(1, 5, 24), weight=small(5, 24), bias=small(5)), 32,
            "body>tokens | decoder>tokens | decoder>flat | refuse"),
        net("weight-normed head", on_tower(lambda f, x: f.fc(f.body(x)),
            fc=parametrizations.weight_norm(nn.Linear(24, 5))), 32, "fc<"),
        net("orthogonal head", on_tower(lambda f, x: f.fc(f.body(x)),
            fc=parametrizations.orthogonal(nn.Linear(24, 5))), 32, "fc<"),
        net("labels, and domains with gradients turned round", lambda: Net(reverse,
            features=tower(3), labels=mlp(24, 12, 5), domains=mlp(24, 12, 2)), 32, "features>"),
        net("scores and maps of classes", lambda: Net(maps_of_classes, body=maps(),
            classifier=nn.Conv2d(24, 5, 1, bias=False)), 32, "classifier<mean"),
        net("cosines of old and new classes", on_tower(lambda f, x: (lambda h: torch.cat([
            f.old(h), f.new(h)], 1))(f.body(x)), old=cosines(24, 5), new=cosines(24, 3)), 32,
            "body>"),
        net("evidence of classes", on_tower(lambda f, x: F.softplus(f.fc(f.body(x))) + 1,
            fc=nn.Linear(24, 5)), 32, "fc<"),
    ]  # fmt: skip
