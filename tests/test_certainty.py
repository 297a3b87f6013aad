"""Nets that are no backbone and classifier in a row: read rightly, or told. Oracles are hooks."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import Function, block, conv_net, encoder
from oracles import IMAGE, Oracle, check, mean, same, wrap
from torch import Tensor, nn

CLASSES = 40


class TwoTowers(nn.Module):
    """CLIP: how well images fit descriptions of classes."""

    def __init__(self, described: str, product: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.image, self.project = conv_net(12), nn.Linear(12, 16)
        self.text, self.words = nn.Linear(6, 16), nn.Embedding(9, 6)
        self.scale, self.described, self.product = nn.Parameter(torch.ones(())), described, product
        self.prototypes = nn.Parameter(torch.randn(CLASSES, 16))
        self.register_buffer("features", torch.randn(CLASSES, 16))
        self.register_buffer("tokens", torch.randint(0, 9, (CLASSES, 3)))

    def forward(self, x: Tensor) -> Tensor:
        image = F.normalize(self.project(self.image(x)), dim=1)
        texts = {
            "a buffer": lambda: self.features,
            "a parameter": lambda: F.normalize(self.prototypes, dim=1),
            "a tower": lambda: F.normalize(self.text(self.words(self.tokens).mean(1)), dim=1),
        }
        return self.product(self.scale.exp() * image, texts[self.described]())


PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "matmul": lambda image, text: image @ text.t(),
    "text first": lambda image, text: (text @ image.t()).t(),
    "einsum": lambda image, text: torch.einsum("bd,kd->bk", image, text),
    "a sum of products": lambda image, text: (image[:, None] * text).sum(-1),
}


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("described", ["a buffer", "a parameter", "a tower"])
def test_scores_by_another_towers_features_are_read_before(described: str, product: str) -> None:
    check(TwoTowers(described, PRODUCTS[product]), IMAGE, ("project", "output", same))


def dropped_often(net: Any, x: Tensor) -> Tensor:
    features = net.body(x).mean((2, 3))
    return torch.stack([net.fc(net.drop(features)) for _ in range(4)]).mean(0)


class Experts(nn.Module):
    """An expert is picked for each image, or for the batch."""

    def __init__(self, each: bool, hidden: bool = True) -> None:
        super().__init__()
        self.body, self.gate, self.each = encoder(), nn.Linear(16, 5), each
        hidden_layers = [nn.Linear(16, 16), nn.ReLU()] if hidden else []
        self.experts = nn.ModuleList(
            nn.Sequential(*hidden_layers, nn.Linear(16, CLASSES)) for _ in range(5)
        )

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x).mean((2, 3))
        picked = self.gate(features).argmax(1)
        if not self.each:
            return self.experts[int(picked[0])](features)
        scores = features.new_zeros(len(x), CLASSES)
        for i in picked.unique():
            scores[picked == i] = self.experts[i](features[picked == i])
        return scores


class Queries(nn.Module):
    """ML-Decoder: a query for each class attends to the map."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.queries = encoder(), nn.Parameter(torch.randn(CLASSES, 16))
        self.attend = nn.MultiheadAttention(16, 2, batch_first=True)
        self.weight = nn.Parameter(torch.randn(CLASSES, 16))

    def forward(self, x: Tensor) -> Tensor:
        places = self.body(x).flatten(2).transpose(1, 2)
        answers, _ = self.attend(self.queries.expand(len(x), -1, -1), places, places)
        return (answers * self.weight).sum(-1)


def activated(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    scores = net.fc(net.body(x))
    return scores.mean((2, 3)), scores


def fc(reads: int, kernel: bool = False) -> nn.Module:
    return nn.Conv2d(reads, CLASSES, 1) if kernel else nn.Linear(reads, CLASSES)


class OwnLinear(nn.Module):
    """A Linear that is no ``nn.Linear``."""

    def __init__(self, reads: int = 12, gives: int = CLASSES) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(gives, reads))
        self.bias = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Cosines(nn.Module):
    """A classifier that normalises what it reads itself."""

    def __init__(self, reads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CLASSES, reads))

    def forward(self, x: Tensor) -> Tensor:
        return 16 * F.linear(F.normalize(x), F.normalize(self.weight))


def adapted(net: Any, x: Tensor) -> Tensor:
    features = net.body(x)
    return net.fc(0.2 * net.adapter(features) + 0.8 * features)


def adapted_within(net: Any, x: Tensor) -> Tensor:
    features = net.body(x)
    mixed = 0.2 * net.adapter(features) + 0.8 * features
    return F.linear(F.normalize(mixed), F.normalize(net.prototypes.weight))


def distances(net: Any, x: Tensor) -> Tensor:
    return -torch.cdist(net.body(x), net.prototypes.weight).pow(2)


def expected(net: Any, x: Tensor) -> Tensor:
    likely = net.fc(net.body(x)).unflatten(1, (4, 10)).softmax(2)
    return (likely * torch.linspace(-1, 1, 10)).sum(2)


def compared(net: Any, x: Tensor) -> Any:
    found = net.embed(net.body(x))
    return {"scores": net.fc(found), "embedding": found} if net.training else found


def projected_class(net: Any, x: Tensor) -> Tensor:
    features = net.body(x).sum((2, 3))
    return net.fc(features) + (net.prototypes.weight.mean(0) * features).sum(1, keepdim=True)


def rectified_maps(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    scores = net.fc(net.body(x))
    return scores.mean((2, 3)), scores.relu()


def averaged_tokens(net: Any, x: Tensor) -> Tensor:
    tokens = net.body(x).flatten(2).transpose(1, 2)
    return torch.full((1, 4, tokens.shape[1]), 0.1).expand(len(x), -1, -1) @ net.norm(tokens)


def by_rows(net: Any, x: Tensor) -> Tensor:
    features = net.body(x)
    rows = (features.sum(1) >= 0).nonzero()[:, 0]
    return net.fc(features.index_add(0, rows, net.expert(features[rows])))


class OwnRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * (ctx.saved_tensors[0] > 0)


class Binarised(torch.autograd.Function):
    """A Linear whose weights are signs, with a gradient straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.sign().t()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return gradient @ weight.sign(), gradient.t() @ x


def residual_tokens(net: Any, x: Tensor) -> Tensor:
    tokens = net.one(net.body(x).flatten(2).mT)
    return (tokens + net.two(tokens))[:, 0]


def corrected(net: Any, x: Tensor) -> Tensor:
    features, found = net.body(x), x.new_zeros(len(x), CLASSES)
    for _ in range(3):
        found = found + net.fc(torch.cat([features, found], 1))
    return found


def said(net: Any, x: Tensor) -> Tensor:
    state, words = net.body(x).mean((2, 3)), []
    for _ in range(3):
        state = net.cell(torch.ones(len(x), 2), state)
        words.append(net.fc(state))
    return torch.stack(words, 1)


def by_parameters(net: Any, x: Tensor) -> Tensor:
    return (net.body(x) @ net.weights["one"]).relu() @ net.weights["two"]


def complex_scores(net: Any, x: Tensor) -> Tensor:
    pairs = torch.view_as_complex(net.body(x).unflatten(1, (6, 2)).contiguous())
    return (pairs @ torch.view_as_complex(net.weights["all"])).abs()


def weights(**shapes: tuple[int, ...]) -> nn.Module:
    return nn.ParameterDict({name: torch.randn(shape) for name, shape in shapes.items()})


def duel(net: Any, x: Tensor) -> Tensor:
    x = net.body(x)
    value, gain = net.value2(F.relu(net.value(x))), net.gain2(F.relu(net.gain(x)))
    return value + gain


def with_own(net: nn.Module, *shape: int, is_trained: bool = False) -> nn.Module:
    """The net with numbers of its own, which it may train."""
    numbers = torch.rand(shape)
    if is_trained:
        net.own = nn.Parameter(numbers)
    else:
        net.register_buffer("own", numbers)
    return net


def products_of_channels(net: Any, x: Tensor) -> Tensor:
    """Image by image: their values come into no other's."""
    return net.fc(torch.stack([(m @ m.t()).flatten() for m in net.body(x).flatten(2)]))


def beside_anchors(net: Any, x: Tensor) -> Tensor:
    features = net.body(x)
    return net.fc(torch.cat([features, features @ net.own.t()], 1))


def masked_rows(net: Any, x: Tensor) -> Tensor:
    features = net.body(x)
    return net.fc(net.expert(features[torch.ones(len(x), dtype=torch.bool)]))


def reordered_tokens(net: Any, x: Tensor) -> Tensor:
    tokens = net.body(x).flatten(2).mT
    order = torch.arange(tokens.shape[1]).flip(0).expand(len(x), -1)
    return net.norm(tokens[torch.arange(len(x))[:, None], order])


def swapped_rows(net: Any, x: Tensor) -> Tensor:
    """As many rows of a map as images, in another order."""
    rows = F.adaptive_avg_pool2d(net.body(x), (len(x), 1)).flatten(2).mT
    return net.norm(rows[:, torch.arange(len(x)).flip(0)])


def backwards(net: Any, x: Tensor) -> Tensor:
    return net.norm(net.rnn(net.body(x).flatten(2).permute(2, 0, 1).flip(0))[0][-1])


def by_table(net: Any, x: Tensor) -> Tensor:
    features = net.body(x)
    return net.fc(features + net.own[features.argmax(1)])


def deep_heads(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    features = next(iter(net.parts.children()))(net.body(x))
    return net.one(features), net.two(features)


def of_frames(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The batch, one image after the other, is fed as clips of one frame."""
    features = net.body(torch.stack([x, x], 1).flatten(0, 1)).unflatten(0, (-1, 2)).mean(1)
    return net.one(features), net.two(features)


def on_scores(function: Callable[[Any, Tensor], Any], *, gives: int = CLASSES, **own: Any) -> Any:
    """A net that goes on from what its only Linear gives."""

    def forward(net: Any, x: Tensor) -> Any:
        return function(net, net.fc(net.body(x)))

    return Function(forward, body=conv_net(12), fc=nn.Linear(12, gives), **own)


def waves(z: Tensor) -> Tensor:
    """Of lengths and angles."""
    length, angle = z.chunk(2, 1)
    return torch.cat([length * angle.cos(), length * angle.sin()], 1)


SQUASHES: dict[str, Callable[[Tensor], Tensor]] = {
    "clamped": F.hardtanh,
    "of levels": lambda z: F.relu6(z) / 6,
    "of several labels": F.hardsigmoid,
    "softsign": F.softsign,
    "of lengths and angles": waves,
    "weighed by their halves": lambda z: (lambda a, b: a * b.sigmoid())(*z.chunk(2, 1)),
    "weighed by their errors": lambda z: (lambda a, b: a * (-b).exp())(*z.chunk(2, 1)),
    "weighed by their probabilities": lambda z: z * z.softmax(1),
    "squared": lambda z: z * z,
}


@pytest.mark.parametrize("name", SQUASHES)
def test_scores_that_are_squashed_or_gated_are_read_before(name: str) -> None:
    squash = SQUASHES[name]
    check(on_scores(lambda _, z: squash(z)), IMAGE, ("fc", "input", same))


def prototypes(size: int) -> nn.Module:
    return nn.Embedding(CLASSES, size)


READ: dict[str, tuple[Callable[[], nn.Module], Oracle]] = {
    "a classifier that runs often behind dropout": (
        lambda: Function(dropped_often, body=encoder(), drop=nn.Dropout(0.2), fc=fc(16)),
        ("body", "output", mean),
    ),
    "an expert for each image": (lambda: Experts(True), ("body", "output", mean)),
    "an expert for the batch": (lambda: Experts(False), ("body", "output", mean)),
    "experts of one layer": (lambda: Experts(False, False), ("body", "output", mean)),
    "queries of classes": (Queries, ("attend", "output", lambda out: out[0].mean(1))),
    "a Linear of the net's own": (
        lambda: Function(lambda net, x: net.fc(net.body(x)), body=conv_net(12), fc=OwnLinear()),
        ("body", "output", same),
    ),
    "a number for each image": (
        lambda: Function(
            lambda net, x: net.fc(net.body(x)).squeeze(1), body=conv_net(12), fc=nn.Linear(12, 1)
        ),
        ("fc", "input", same),
    ),
    "scores beside their map": (
        lambda: Function(activated, body=encoder(), fc=fc(16, True)),
        ("fc", "input", mean),
    ),
    "scores beside their map, rectified": (
        lambda: Function(rectified_maps, body=encoder(), fc=nn.Conv2d(16, CLASSES, 1, bias=False)),
        ("fc", "input", mean),
    ),
    "a sum, read by a classifier of another kind": (
        lambda: Function(adapted, body=conv_net(12), adapter=nn.Linear(12, 12), fc=Cosines(12)),
        ("fc", "input", same),
    ),
    "a sum that no layer gives or reads": (
        lambda: Function(
            adapted_within, body=conv_net(12), adapter=nn.Linear(12, 12), prototypes=prototypes(12)
        ),
        ("body", "output", same),
    ),
    "distances to prototypes": (
        lambda: Function(distances, body=conv_net(12), prototypes=prototypes(12)),
        ("body", "output", same),
    ),
    "an expectation": (
        lambda: Function(expected, body=conv_net(12), fc=fc(12)),
        ("fc", "input", same),
    ),
    "vectors beside their comparisons": (
        lambda: Function(compared, body=conv_net(12), embed=nn.Linear(12, 20), fc=Cosines(20)),
        ("embed", "output", same),
    ),
    "a sum over places, read by a layer and by a product": (
        lambda: Function(
            projected_class, body=encoder(), fc=nn.Linear(16, 1), prototypes=prototypes(16)
        ),
        ("fc", "input", same),
    ),
    "tokens that are averaged in groups": (
        lambda: Function(averaged_tokens, body=encoder(), norm=nn.LayerNorm(16)),
        ("", "output", lambda out: out.mean(1)),
    ),
    "logarithms": (
        lambda: Function(
            lambda net, x: net.fc((net.body(x).pow(2).mean((2, 3)) + 1e-3).log()),
            body=encoder(),
            fc=fc(16),
        ),
        ("fc", "input", same),
    ),
    "experts that read some images": (
        lambda: Function(by_rows, body=conv_net(12), expert=nn.Linear(12, 12), fc=fc(12)),
        ("fc", "input", same),
    ),
    "products of channels": (
        lambda: Function(products_of_channels, body=encoder(), fc=fc(256)),
        ("fc", "input", same),
    ),
    "features beside products with as many anchors as images": (
        lambda: with_own(Function(beside_anchors, body=conv_net(12), fc=fc(14)), 2, 12),
        ("fc", "input", same),
    ),
    "products with as many prototypes as images": (
        lambda: with_own(
            Function(lambda net, x: net.body(x) @ net.own.t(), body=conv_net(12)), 2, 12
        ),
        ("body", "output", same),
    ),
    "features rectified as the largest of two": (
        lambda: Function(
            lambda net, x: net.fc(torch.maximum(*net.body(x).chunk(2, 1))),
            body=conv_net(24),
            fc=fc(12),
        ),
        ("fc", "input", same),
    ),
    "waves that are added": (
        lambda: Function(
            lambda net, x: (lambda y: y.sin() + y.cos())(net.body(x)), body=conv_net()
        ),
        ("body", "output", lambda out: out.sin() + out.cos()),
    ),
    "a map of a convolution of the net's own": (
        lambda: with_own(
            Function(lambda net, x: F.conv2d(net.body(x), net.own), body=encoder()), 24, 16, 3, 3
        ),
        ("", "output", mean),
    ),
    "places weighed by a parameter": (
        lambda: with_own(
            Function(lambda net, x: (net.body(x).flatten(2) * net.own).sum(-1), body=encoder()),
            64,
            is_trained=True,
        ),
        ("", "output", same),
    ),
    "tokens weighed by a parameter": (
        lambda: with_own(
            Function(lambda net, x: (net.body(x).flatten(2).mT * net.own).sum(1), body=encoder()),
            64,
            1,
            is_trained=True,
        ),
        ("", "output", same),
    ),
    "an order of tokens in each image": (
        lambda: Function(reordered_tokens, body=encoder(), norm=nn.LayerNorm(16)),
        ("", "output", lambda out: out.mean(1)),
    ),
    "an order of rows, as many as images": (
        lambda: Function(swapped_rows, body=encoder(), norm=nn.LayerNorm(16)),
        ("", "output", lambda out: out.mean(1)),
    ),
    "all rows, by a mask": (
        lambda: Function(masked_rows, body=conv_net(12), expert=nn.Linear(12, 12), fc=fc(12)),
        ("fc", "input", same),
    ),
    "a recurrent net from the last step to the first": (
        lambda: Function(backwards, body=encoder(), rnn=nn.GRU(16, 12), norm=nn.LayerNorm(12)),
        ("", "output", same),
    ),
    "rows of a table": (
        lambda: with_own(Function(by_table, body=conv_net(12), fc=fc(12)), 12, 12, is_trained=True),
        ("fc", "input", same),
    ),
    "one of several kinds": (
        lambda: Function(
            lambda net, x: net.parts["image"](x),
            parts=nn.ModuleDict(
                {"image": conv_net(12, classes=CLASSES), "text": nn.Sequential(nn.Linear(5, 12))}
            ),
        ),
        ("parts.image.8", "input", same),
    ),
    "one of two kinds of norms": (
        lambda: Function(
            deep_heads,
            body=conv_net(12),
            parts=nn.ModuleDict({"b": nn.BatchNorm1d(12), "l": nn.LayerNorm(12)}),
            one=mlp(),
            two=mlp(),
        ),
        ("parts.b", "output", same),
    ),
    "one of two layers without parameters": (
        lambda: Function(
            deep_heads,
            body=conv_net(12),
            parts=nn.ModuleList([nn.Hardtanh(0, 1), nn.Hardtanh(0, 2)]),
            one=mlp(),
            two=mlp(),
        ),
        ("parts.0", "output", same),
    ),
    "clips for several heads of two layers": (
        lambda: Function(of_frames, body=conv_net(12), one=mlp(), two=mlp()),
        ("one.0", "input", same),
    ),
    "an activation that the net writes itself": (
        lambda: on_scores(lambda _, y: y * y.sigmoid()),
        ("", "output", same),
    ),
    "an activation of the net's own": (
        lambda: on_scores(lambda _, y: OwnRelu.apply(y)),
        ("", "output", same),
    ),
    "complex scores": (
        lambda: Function(complex_scores, body=conv_net(12), weights=weights(all=(6, 5, 2))),
        ("body", "output", same),
    ),
    "a residual block of tokens": (
        lambda: Function(residual_tokens, body=encoder(), one=nn.Linear(16, 16), two=mlp(16)),
        ("", "output", same),
    ),
    "a part that ends in a narrow layer": (
        lambda: nn.Sequential(
            nn.Sequential(conv_net(32), nn.Linear(32, 12), nn.ReLU()), nn.Linear(12, CLASSES)
        ),
        ("1", "input", same),
    ),
    "a convolution over all that is left, and layers behind it": (
        lambda: nn.Sequential(
            *encoder(),
            nn.Conv2d(16, 14, 8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(14, 12),
            nn.ReLU(),
            nn.Linear(12, CLASSES),
        ),
        ("5", "input", same),
    ),
}


@pytest.mark.parametrize("name", READ)
def test_what_an_expert_would_read_is_read_without_a_word(name: str) -> None:
    build, oracle = READ[name]
    check(build(), IMAGE, oracle)


def flipped(net: Any, x: Tensor) -> Tensor:
    return net.fc(net.body(x)) + net.fc(net.body(x.flip(-1)))


def projected(net: Any, x: Tensor) -> Tensor:
    return F.normalize(net.head(net.body(x)), dim=1)


def by_prototypes(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    found = projected(net, x)
    return found, net.prototypes(found)


def by_queue(net: Any, x: Tensor) -> Tensor:
    query = projected(net, x)
    with torch.no_grad():
        key = F.normalize(net.key(x))
    return torch.cat([(query * key).sum(1, keepdim=True), query @ torch.ones(CLASSES, 30)], 1)


def predicted(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    found = net.norm(net.head(net.body(x)))
    return net.predictor(found), found.detach()


def probed(net: Any, x: Tensor) -> dict[str, Tensor]:
    features = net.body(x)
    return {"probe": net.probe(features.detach()), "projection": net.head(features)}


def coupled(net: Any, x: Tensor) -> Tensor:
    kept, changed = F.pixel_unshuffle(x, 4).chunk(2, 1)
    return torch.cat([kept, changed + net.body(kept)], 1)


def mask_twice(net: Any, x: Tensor) -> Tensor:
    return net.body(x) + net.body(x.flip(3)).flip(3)


def mixed(net: Any, x: Tensor) -> Tensor:
    features = net.body(x)
    if net.training:
        features = 0.7 * features + 0.3 * features[torch.randperm(len(x))]
    return net.fc(features)


def detached(net: Any, x: Tensor) -> Tensor:
    return net.fc(net.late(F.relu(net.early(x)).detach()).mean((2, 3)))


def lengths(net: Any, x: Tensor) -> Tensor:
    return net.body(x).unflatten(1, (CLASSES, 4)).norm(dim=-1)


def repeated(net: Any, x: Tensor) -> list[Tensor]:
    x, scores = net.stem(x), []
    for _ in range(3):
        x = net.again(x)
        scores.append(net.fc(x.mean((2, 3))))
    return scores


def head(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


def mlp(size: int | None = None) -> nn.Module:
    if size:
        return head(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size))
    return head(nn.Linear(12, 12), nn.ReLU(), fc(12))


def stages(net: Any, x: Tensor) -> Tensor:
    rest, total = x.flatten(1), 0
    for stage in net.stages:
        hidden = stage["body"](rest)
        rest, total = rest - stage["back"](hidden), total + stage["fore"](hidden)
    return total


def stage() -> nn.ModuleDict:
    body = nn.Sequential(nn.Linear(3 * 32 * 32, 16), nn.ReLU())
    back, fore = nn.Linear(16, 3 * 32 * 32), nn.Linear(16, CLASSES)
    return nn.ModuleDict({"body": body, "back": back, "fore": fore})


def projector() -> nn.Module:
    return head(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 12))


def pooled_probe(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    f = net.body(x).mean((2, 3))
    return net.head(f), net.probe(f.detach())


def own_target(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    z = net.head(net.body(x).mean((2, 3)))
    return net.predictor(z), z.detach()


def by_own_weights(net: Any, x: Tensor) -> Tensor:
    features = net.body(x)
    weights = net.make(features).view(-1, CLASSES, 12)
    return torch.bmm(weights, features[:, :, None]).squeeze(2)


def beside_others(net: Any, x: Tensor) -> Tensor:
    features = net.body(x)
    likeness = (features @ features.t()).mean(1, keepdim=True)
    return net.fc(torch.cat([features, likeness], 1))


def bag(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The largest scores of instances, and what these ask of all."""
    crops = torch.stack([x, x.flip(2), x.flip(3)], 1)
    instances = net.body(crops.flatten(0, 1)).view(len(x), 3, 12)
    scores = net.instance(instances)
    asked = instances.gather(1, scores.argmax(1)[..., None].expand(-1, -1, 12))
    weights = (net.q(instances) @ net.q(asked).mT).softmax(1)
    return scores.amax(1), net.fcc(weights.mT @ net.v(instances)).flatten(1)


def dense_heads(net: Any, x: Tensor) -> tuple[Tensor, ...]:
    f = net.body(x)
    return tuple(head(f) for head in net.heads)


def over_places(*gives: int) -> nn.Module:
    heads = nn.ModuleList(nn.Conv2d(48, channels, 1) for channels in gives)
    return Function(dense_heads, body=block(3, 48), heads=heads)


TOLD: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "an image and its mirror image": (
        lambda: Function(flipped, body=conv_net(12), fc=fc(12)),
        "may be scores of layer 'fc', which runs 2 times",
    ),
    "a projection head": (
        lambda: Function(projected, body=conv_net(12), head=mlp()),
        r"the input of layer 'head.0', .* vectors that it normalises.*hidden_layer=''",
    ),
    "a projection head that ends in a norm": (
        lambda: nn.Sequential(
            conv_net(12), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 16), nn.BatchNorm1d(16)
        ),
        r"the input of layer '1', .* vectors that it normalises.*hidden_layer='4'",
    ),
    "a projection head, and prototypes": (
        lambda: Function(
            by_prototypes,
            body=conv_net(12),
            head=mlp(),
            prototypes=nn.Linear(CLASSES, 30, bias=False),
        ),
        r"the input of layer 'head.0', .* vectors that it normalises",
    ),
    "a projection head, and a queue": (
        lambda: Function(
            by_queue, body=conv_net(12), head=mlp(), key=conv_net(12, classes=CLASSES)
        ),
        r"the input of layer 'head.0', .* vectors that it normalises",
    ),
    "a projection head, and a predictor": (
        lambda: Function(
            predicted,
            body=conv_net(12),
            head=mlp(),
            norm=nn.BatchNorm1d(CLASSES),
            predictor=head(nn.Linear(CLASSES, 6), nn.ReLU(), fc(6)),
        ),
        r"the input of layer 'head.0', .* vectors that it normalises",
    ),
    "a probe of detached features": (
        lambda: Function(probed, body=conv_net(12), head=mlp(), probe=fc(12)),
        "layer 'probe' reads the output of 'body', detached",
    ),
    "another form of the images": (
        lambda: Function(coupled, body=nn.Conv2d(24, 24, 3, padding=1)),
        "as many numbers as what the net is fed",
    ),
    "masks of two classes by a net that runs twice": (
        lambda: Function(mask_twice, body=nn.Conv2d(3, 2, 3, padding=1)),
        "as many places as what the net is fed",
    ),
    "mixup within": (
        lambda: Function(mixed, body=conv_net(12), fc=fc(12)),
        "mixes the images of a batch",
    ),
    "a small part that is detached": (
        lambda: Function(detached, early=block(3, 4), late=block(4, 64), fc=fc(64)),
        "no gradient passes to what lies before layer 'late', 'early.0' among it",
    ),
    "lengths of capsules": (
        lambda: Function(lengths, body=conv_net(4 * CLASSES)),
        "is none that is known to give features",
    ),
    "lengths of capsules, scaled": (
        lambda: Function(lambda net, x: 0.5 * lengths(net, x), body=conv_net(4 * CLASSES)),
        "its last step, LinalgVectorNorm, is none",
    ),
    "the largest of all channels at each place": (
        lambda: Function(lambda net, x: net.body(x).amax(1).flatten(1), body=encoder()),
        "its last step, Amax, is none",
    ),
    "weights of a classifier that are made of each image": (
        lambda: Function(by_own_weights, body=conv_net(12), make=nn.Linear(12, 12 * CLASSES)),
        "its last step, Bmm, is none",
    ),
    "the largest of several scores": (
        lambda: Function(
            lambda net, x: (lambda f: torch.maximum(net.one(f), net.two(f)))(net.body(x)),
            body=conv_net(12),
            one=fc(12),
            two=fc(12),
        ),
        "its last step, Maximum, is none",
    ),
    "a bag of instances": (
        lambda: Function(
            bag,
            body=conv_net(12),
            instance=nn.Linear(12, 4),
            q=nn.Linear(12, 8),
            v=nn.Linear(12, 12),
            fcc=nn.Conv1d(4, 4, 12),
        ),
        "the input of layer 'fcc', .* 4 numbers hardly tell",
    ),
    "images compared, beside what is read": (
        lambda: Function(beside_others, body=conv_net(12), fc=fc(13)),
        "mixes the images of a batch",
    ),
    "scores of a block that is repeated": (
        lambda: Function(repeated, stem=block(3, 12), again=block(12, 12, 1), fc=fc(12)),
        "layer 'fc', which runs 3 times",
    ),
    "a convolution with a parameter": (
        lambda: Function(
            lambda net, x: F.conv2d(net.body(x), net.weights["all"][:, :, None, None]).mean((2, 3)),
            body=encoder(),
            weights=nn.ParameterDict({"all": torch.randn(CLASSES, 16)}),
        ),
        "its last step, Convolution",
    ),
    "images compared with each other": (
        lambda: Function(
            lambda net, x: net.fc((lambda y: (y @ y.t()).softmax(1) @ y)(net.body(x))),
            body=conv_net(12),
            fc=fc(12),
        ),
        "mixes the images of a batch",
    ),
    "one of several nets": (
        lambda: Function(
            lambda net, x: net.nets[int(x.mean() > 0.5)](x),
            nets=nn.ModuleList(conv_net(12, classes=CLASSES) for _ in range(2)),
        ),
        "may be scores of layer 'nets.[01].8'",
    ),
    "products with a parameter": (
        lambda: Function(
            lambda net, x: net.body(x).relu() @ net.weights["all"],
            body=conv_net(12),
            weights=nn.ParameterDict({"all": torch.randn(12, CLASSES)}),
        ),
        "a product with a parameter",
    ),
    "a probe of what is pooled and detached": (
        lambda: Function(pooled_probe, body=block(3, 12), head=mlp(), probe=fc(12)),
        "layer 'probe' reads the input of 'head', detached",
    ),
    "a target of its own": (
        lambda: Function(own_target, body=block(3, 12), head=projector(), predictor=projector()),
        "the net gives the output of 'head', detached",
    ),
    "stages that read what is left": (
        lambda: Function(stages, stages=nn.ModuleList([stage(), stage()])),
        "a part of it was made by no layer",
    ),
    "scores that a second layer adds to": (
        lambda: on_scores(lambda net, z: z + net.two(z.relu()), two=fc(CLASSES)),
        "its numbers may be scores of layer 'fc' and layer 'two'",
    ),
    "scores that others correct": (
        lambda: with_own(
            on_scores(lambda net, z: z + z.sigmoid() @ net.own), CLASSES, CLASSES, is_trained=True
        ),
        "its numbers may be scores of layer 'fc'",
    ),
    "scores that are corrected step by step": (
        lambda: Function(corrected, body=conv_net(12), fc=fc(12 + CLASSES)),
        "may be scores of layer 'fc', which runs 3 times",
    ),
    "words of a decoder": (
        lambda: Function(said, body=encoder(), cell=nn.GRUCell(2, 16), fc=fc(16)),
        "may be scores of layer 'fc', which runs 3 times",
    ),
    "a binarised Linear": (
        lambda: Function(
            lambda net, x: Binarised.apply(net.body(x), net.fc.weight),
            body=conv_net(12),
            fc=fc(12),
        ),
        "its last step, Binarised, is none",
    ),
    "two products with parameters": (
        lambda: Function(
            by_parameters, body=conv_net(12), weights=weights(one=(12, 48), two=(48, CLASSES))
        ),
        "a product with a parameter",
    ),
    "decisions that weigh leaves": (
        lambda: with_own(
            on_scores(lambda net, z: z.sigmoid() @ net.own.softmax(1)),
            CLASSES,
            5,
            is_trained=True,
        ),
        "the output of layer 'fc', .* the net squashes it",
    ),
    "coefficients of fixed curves": (
        lambda: with_own(on_scores(lambda net, z: z @ net.own), CLASSES, 30),
        "the output of layer 'fc', .* multiplies it with fixed numbers",
    ),
    "two heads of layers of the net's own": (
        lambda: Function(
            duel,
            body=conv_net(12),
            value=OwnLinear(12, 300),
            value2=OwnLinear(300),
            gain=OwnLinear(12, 300),
            gain2=OwnLinear(300),
        ),
        "the input of layer '(value|gain)2' may do as well",
    ),
    "boxes of each place": (lambda: over_places(125), "gives 125 numbers for each place of a map"),
    "fewer scores of each place": (lambda: over_places(40), "gives 40 numbers for each place"),
    "scores and boxes of each place": (lambda: over_places(56, 64), "numbers for each place"),
}


def asked(net: Any, x: Tensor) -> Tensor:
    tokens = net.body(x).flatten(2).mT
    query = net.query.weight.expand(len(x), 1, -1)
    return net.out(F.scaled_dot_product_attention(query, net.key(tokens), tokens).mean(1))


def test_what_an_attention_pools_and_projects_is_read_behind_its_last_layer() -> None:
    parts = {"query": nn.Embedding(1, 16), "key": nn.Linear(16, 16), "out": nn.Linear(16, 16)}
    learner = wrap(Function(asked, body=encoder(), **parts))  # without a warning
    assert (learner.representation.layer, learner.representation.size) == ("", 16)


@pytest.mark.parametrize("channels", [48, 64])
def test_a_map_of_a_last_convolution_is_a_backbones(channels: int) -> None:
    learner = wrap(over_places(channels))  # without a warning
    assert learner.representation.size == channels


@pytest.mark.parametrize("name", TOLD)
def test_what_is_not_known_to_be_features_is_told_once(name: str) -> None:
    build, words = TOLD[name]
    with pytest.warns(UserWarning, match=words) as told:
        wrap(build())
    assert len(told) == 1
    assert "hidden_layer=" in str(told[0].message)


class Scaled(nn.Module):
    """A net that prepares its images itself."""

    def __init__(self, prepare: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.prepare, self.body = prepare, conv_net(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.prepare(x))


PREPARED: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "for 0 to 255": (lambda x: (x - 120) / 58, 1 / 255),
    "normalised": (lambda x: (x - 0.45) / 0.225, 1.0),
    "to -1 to 1": (lambda x: 2 * x - 1, 1.0),
}


@pytest.mark.parametrize("name", PREPARED)
def test_a_net_that_normalises_once_more_is_told_what_to_give(name: str) -> None:
    prepare, std = PREPARED[name]
    images = torch.rand(4, *IMAGE)
    learner = wrap(Scaled(prepare))
    with pytest.warns(UserWarning, match="scales what it is fed itself.*std=") as told:
        learner(images)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner(images)
        wrap(Scaled(prepare), mean=(0, 0, 0), std=(std,) * 3)(images)


def test_a_net_that_goes_on_from_normalised_images_is_not_told() -> None:
    """As torchvision's GoogLeNet with its weights."""
    wrap(Scaled(lambda x: 0.45 * x - 0.06))(torch.rand(4, *IMAGE))


def test_images_mixed_before_the_first_layer_are_told() -> None:
    with pytest.warns(UserWarning, match="mixes the images of a batch"):
        wrap(Scaled(lambda x: 0.8 * x + 0.2 * x.flip(0)))


class Masked(nn.Module):
    """Of its patches it keeps some that it draws."""

    def __init__(self, always: bool = True) -> None:
        super().__init__()
        self.patch, self.norm, self.always = nn.Conv2d(3, 12, 8, 8), nn.LayerNorm(12), always

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        order = torch.rand(tokens.shape[:2]) if self.always or self.training else tokens.mean(2)
        kept = order.argsort(1)[:, :4, None].expand(-1, -1, 12)
        return self.norm(tokens.gather(1, kept))


def test_tokens_that_are_drawn_in_eval_mode_are_told() -> None:
    with pytest.warns(UserWarning, match="another in each call"):
        wrap(Masked())
    wrap(Masked(always=False))


class Answer:
    """What some nets return: an object of no known kind."""

    def __init__(self, **held: Tensor) -> None:
        self.__dict__.update(held)


def test_an_object_that_holds_scores_is_looked_into() -> None:
    net = Function(lambda net, x: Answer(logits=net.fc(net.body(x))), body=conv_net(12), fc=fc(12))
    check(net, IMAGE, ("fc", "input", same))


def with_label(net: nn.Module) -> nn.Module:
    def forward(x: Tensor, label: Tensor) -> Tensor:
        raise NotImplementedError

    net.forward = forward  # type: ignore[method-assign]
    return net


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "one more image in the batch": (
        lambda: Function(
            lambda net, x: net.fc(net.body(torch.cat([x, x[:1]])))[:-1],
            body=conv_net(12),
            fc=fc(12),
        ),
        "No layer gives an entry for each image.*wrap the part",
    ),
    "steps first": (
        lambda: Function(
            lambda net, x: net.fc(net.body(x).flatten(2).permute(2, 0, 1)),
            body=encoder(),
            fc=fc(16),
        ),
        r"There are .*hidden_layer='body' \(B, 16, 8, 8\)",
    ),
    "channels last": (
        lambda: Function(lambda net, x: net.body(x.permute(0, 3, 1, 2)), body=conv_net(12)),
        r"takes \(B, H, W, C\): wrap it in a module whose forward",
    ),
    "a loss": (
        lambda: Function(lambda net, x: net.body(x).square().mean(), body=conv_net(12)),
        r"has shape \(\).*There are .*hidden_layer='body'",
    ),
    "labels, too": (lambda: with_label(conv_net(12)), "takes images alone"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_to_do(name: str) -> None:
    build, words = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        wrap(build())


KNOWN: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a norm": lambda net, x: net.norm(net.body(x).mean((2, 3))),
    "a gate": lambda net, x: (lambda y: y * y.mean((2, 3), keepdim=True).sigmoid())(net.body(x)),
    "a sum over places": lambda net, x: net.body(x).sum((2, 3)),
    "several joined": lambda net, x: (
        (lambda y: torch.cat([y.mean((2, 3)), y.amax((2, 3))], 1))(net.body(x))
    ),
    "a length of 1": lambda net, x: F.normalize(net.body(x).mean((2, 3))),
    "a norm of channels, rectified in place": lambda net, x: (
        F.relu(net.norm(net.body(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2), True).mean((2, 3))
    ),
    "generalised mean": lambda net, x: (net.body(x) + 1e-3).pow(3).mean((2, 3)).pow(1 / 3),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_features_are_known(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner = wrap(Function(KNOWN[name], body=encoder(), norm=nn.LayerNorm(16)))
    assert learner.representation is not None
    assert learner.representation.layer == ""
