"""Nets in the style of popular repositories: several streams, towers, heads and depths.

Written down before the rule that warns of equal candidates was run on any of them.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experts.answer import Expert, Library
from experts.own_parts import (
    Net,
    attention_pool,
    block,
    dense_layers,
    double,
    gated,
    hourglass,
    lstm,
    mlp,
    residual,
    skip_block,
    tower,
    transformer,
    tsn,
    unet,
)


def streams(net: Library) -> list[Expert]:
    """Two towers, or more: late fusion, early fusion, pairs, ensembles."""

    def two(forward: Callable[..., Any], **layers: nn.Module) -> Callable[[], nn.Module]:
        return lambda: Net(forward, rgb=tower(3), flow=tower(2), **layers)

    def split(f: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return f.rgb(x[:, :3]), f.flow(x[:, 3:])

    def late(f: Any, x: Tensor) -> Tensor:
        a, b = split(f, x)
        return (f.fc_rgb(a) + f.fc_flow(b)) / 2

    def both(f: Any, x: Tensor) -> Any:
        a, b = split(f, x)
        return f.fc_rgb(a), f.fc_flow(b)

    def pair(end: Callable[..., Any]) -> Callable[..., Any]:
        return lambda f, x: end(f, f.tower(x[:, 0]), f.tower(x[:, 1]))

    def experts(f: Any, x: Tensor) -> Tensor:
        weights = f.gate(x.mean((2, 3))).softmax(1)
        values = torch.stack([each(x) for each in f.each], 1)
        return f.fc((weights[..., None] * values).sum(1))

    def ensemble(f: Any, x: Tensor) -> Tensor:
        return torch.stack([each(x) for each in f.each]).mean(0)

    def classifier() -> nn.Module:
        return nn.Sequential(tower(3), nn.Linear(24, 5))

    def clip_like(f: Any, x: Tensor) -> Tensor:
        a, b = (F.normalize(v, dim=1) for v in split(f, x))
        return (a * b).sum(1, keepdim=True) * f.scale.exp()

    def scale() -> nn.Module:
        made = two(clip_like)()
        made.scale = nn.Parameter(torch.zeros(()))
        return made

    heads = {"fc_rgb": nn.Linear(24, 5), "fc_flow": nn.Linear(24, 5)}
    stereo = (2, 3, 32, 32)
    return [
        net("two streams, scores averaged", two(late, **heads), 32, "fc_rgb< | fc_flow< | ask",
            channels=5),
        net("two streams, two scores", two(both, **heads), 32, "fc_rgb< | fc_flow< | ask",
            channels=5),
        net("two streams, concatenated", two(lambda f, x: f.fc(torch.cat(split(f, x), 1)),
            fc=nn.Linear(48, 5)), 32, "fc<", channels=5),
        net("two streams, vectors as a tuple", two(split), 32, ">@0 | >@1 | ask", channels=5),
        net("two streams, vectors as a dict", two(lambda f, x: dict(zip("ab", split(f, x),
            strict=True))), 32, ">@a | >@b | ask", channels=5),
        net("two streams, maps as a tuple", lambda: Net(lambda f, x: (f.a(x), f.b(x)),
            a=nn.Sequential(block(3, 8), block(8, 16)), b=nn.Sequential(block(3, 8), block(8, 16))),
            32, ">mean@0 | >mean@1 | ask"),
        net("two streams, gated", lambda: gated(), 32, "fc<", channels=5),
        net("two towers, their product", scale, 32, "rgb> | flow> | ask", channels=5),
        net("Siamese, difference and classifier", lambda: Net(pair(lambda f, a, b: f.fc(
            (a - b).abs()).sigmoid()), tower=tower(3), fc=nn.Linear(24, 1)), stereo,
            "fc< | refuse"),
        net("Siamese, two vectors", lambda: Net(pair(lambda f, a, b: (a, b)), tower=tower(3)),
            stereo, ">@0 | >@1 | ask"),
        net("Siamese, a distance", lambda: Net(pair(lambda f, a, b: F.pairwise_distance(a, b,
            keepdim=True)), tower=tower(3)), stereo, "refuse"),
        net("ensemble, scores averaged", lambda: Net(ensemble, each=nn.ModuleList(
            [classifier() for _ in range(3)])), 32, "each.0.1< | each.1.1< | each.2.1< | ask"),
        net("ensemble, features concatenated", lambda: Net(lambda f, x: f.fc(torch.cat(
            [each(x) for each in f.each], 1)), each=nn.ModuleList([tower(3), tower(3)]),
            fc=nn.Linear(48, 5)), 32, "fc<"),
        net("mixture of experts", lambda: Net(experts, gate=nn.Linear(3, 2),
            each=nn.ModuleList([tower(3), tower(3)]), fc=nn.Linear(24, 5)), 32, "fc<"),
        net("two kernel sizes, concatenated, with a shortcut", lambda: Net(lambda f, x: (
            lambda y: f.fc(f.mix(y) + f.short(y)))(torch.cat([f.small(x), f.large(x)], 1)),
            small=tower(3), large=tower(3, kernel=5), mix=mlp(48, 32), short=nn.Linear(48, 32),
            fc=nn.Linear(32, 5)), 32, "fc<"),
        net("a large stream and a small one", lambda: Net(lambda f, x: f.a_fc(f.a(x))
            + f.b_fc(f.b(x)), a=tower(3), b=tower(3, width=2), a_fc=nn.Linear(24, 5),
            b_fc=nn.Linear(4, 5)), 32, "a_fc<"),
        net("views of an object, folded into the batch", lambda: Net(lambda f, x: f.fc(f.tower(
            x.flatten(0, 1)).view(len(x), -1, 24).amax(1)), tower=tower(3), fc=nn.Linear(24, 5)),
            (4, 3, 32, 32), "fc<"),
        net("frames, scores averaged", tsn, (4, 3, 32, 32), "fc<each4"),
    ]  # fmt: skip


def heads(net: Library) -> list[Expert]:
    """Several heads on one trunk, at several depths, or on towers of their own."""

    def exits(f: Any, x: Tensor) -> list[Tensor]:
        scores = []
        for i, stage in enumerate(f.stages):
            x = stage(x)
            scores.append(f.fc[i](x.mean((2, 3))))
        return scores

    def parts(f: Any, x: Tensor) -> list[Tensor]:
        maps = F.adaptive_avg_pool2d(f.body(x), (4, 1)).flatten(2)
        return [f.fc[i](maps[:, :, i]) for i in range(4)]

    def hydra(f: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        x = f.stem(x)
        return f.fc_a(f.a(x)), f.fc_b(f.b(x))

    def arc(f: Any, x: Tensor) -> Tensor:
        return 16 * F.linear(F.normalize(f.embed(f.body(x))), F.normalize(f.weight))

    def arcface() -> nn.Module:
        made = Net(arc, body=tower(3), embed=nn.Linear(24, 16))
        made.weight = nn.Parameter(torch.randn(5, 16))
        return made

    def reid(f: Any, x: Tensor) -> Any:
        pooled = f.body(x)
        return (f.fc(f.neck(pooled)), pooled) if f.training else f.neck(pooled)

    def trunk(*names: str, classes: int = 3) -> Callable[[], nn.Module]:
        def forward(f: Any, x: Tensor) -> dict[str, Tensor]:
            x = f.body(x)
            return {name: getattr(f, name)(x) for name in names}

        return lambda: Net(forward, body=tower(3), **{n: mlp(24, 12, classes) for n in names})

    return [
        net("two tasks", trunk("age", "gender"), 32, "body>"),
        net("five tasks", trunk("a", "b", "c", "d", "e", classes=1), 32, "body>"),
        net("exits at three depths", lambda: Net(exits, stages=nn.ModuleList([block(3, 8),
            block(8, 16), block(16, 32)]), fc=nn.ModuleList([nn.Linear(n, 5) for n in (8, 16, 32)]
            )), 32, "fc.2<"),
        net("stripes, a classifier each", lambda: Net(parts, body=nn.Sequential(block(3, 8),
            block(8, 16)), fc=nn.ModuleList([nn.Linear(16, 5) for _ in range(4)])), 32,
            "body>mean | refuse"),
        net("a small stem and two large towers", lambda: Net(hydra, stem=block(3, 4),
            a=tower(4), b=tower(4), fc_a=nn.Linear(24, 5), fc_b=nn.Linear(24, 5)), 32,
            "fc_a< | fc_b< | ask"),
        net("a margin head", arcface, 32, "embed>"),
        net("person re-identification", lambda: Net(reid, body=tower(3), neck=nn.BatchNorm1d(24),
            fc=nn.Linear(24, 5, bias=False)), 32, "neck> | body>"),
        net("features and projection", lambda: Net(lambda f, x: (lambda h: (F.normalize(h, dim=1),
            F.normalize(f.g(h), dim=1)))(f.f(x)), f=tower(3), g=nn.Sequential(nn.Linear(24, 32,
            bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16))), 32,
            "f> | >@0 | refuse"),
        net("features and scores", lambda: Net(lambda f, x: (lambda h: (h, f.fc(h)))(f.f(x)),
            f=tower(3), fc=nn.Linear(24, 5)), 32, "fc<"),
        net("scores and features as a dict", lambda: Net(lambda f, x: (lambda h: {
            "clipwise": f.fc(h).sigmoid(), "embedding": h})(f.act(f.embed(f.f(x)))), f=tower(3),
            embed=nn.Linear(24, 32), act=nn.ReLU(), fc=nn.Linear(32, 5)), 32, "fc<"),
        net("wide and deep (table)", lambda: Net(lambda f, x: f.wide(x) + f.deep(x),
            wide=nn.Linear(10, 1), deep=nn.Sequential(mlp(10, 32), mlp(32, 16), nn.Linear(16, 1))),
            (10,), "deep.2< | deep.1.0<"),
        net("localiser and classifier", lambda: Net(lambda f, x: f.fc2(F.relu(f.fc1(f.conv(
            F.grid_sample(x, F.affine_grid(f.loc(x).view(-1, 2, 3), list(x.shape),
            align_corners=False), align_corners=False)).flatten(1)))), loc=nn.Sequential(tower(3),
            nn.Linear(24, 6)), conv=nn.Sequential(block(3, 8), block(8, 16)),
            fc1=nn.Linear(16 * 64, 50), fc2=nn.Linear(50, 5)), 32, "fc2<"),
        net("a convolution and its norm classify", lambda: nn.Sequential(block(3, 16),
            block(16, 32), nn.Conv2d(32, 5, 1, bias=False), nn.BatchNorm2d(5),
            nn.AdaptiveAvgPool2d(1), nn.Flatten()), 32, "2<mean"),
        net("a convolution and its norm classify 10", lambda: nn.Sequential(block(3, 16),
            block(16, 32), nn.Conv2d(32, 10, 1, bias=False), nn.BatchNorm2d(10),
            nn.AvgPool2d(8), nn.Flatten()), 32, "2<mean"),
        net("a Linear and its norm classify", lambda: nn.Sequential(tower(3), nn.Linear(24, 5),
            nn.BatchNorm1d(5)), 32, "1<"),
        net("an embedding and its norm", lambda: nn.Sequential(tower(3), nn.Linear(24, 24,
            bias=False), nn.BatchNorm1d(24)), 32, "> | 1> | 1<"),
    ]  # fmt: skip


def dense(net: Library) -> list[Expert]:
    """Values of places: the bottleneck, with a warning."""

    def both(f: Any, x: Tensor) -> Any:
        one = f.down1(x)
        deep = f.down2(one)
        mask = f.out(f.up(torch.cat([one, F.interpolate(deep, scale_factor=2)], 1)))
        return mask, f.fc(deep.mean((2, 3)))

    def decoder() -> nn.Module:
        return nn.Sequential(nn.ConvTranspose2d(32, 8, 2, 2), nn.ReLU(),
                             nn.ConvTranspose2d(8, 1, 2, 2))  # fmt: skip

    def vae(f: Any, x: Tensor) -> dict[str, Tensor]:
        mean, log = f.encoder(x).chunk(2, 1)
        code = mean + (log / 2).exp() * torch.randn_like(log)
        return {"recon": f.decoder(f.up(code).view(-1, 32, 8, 8)), "mu": mean, "logvar": log}

    def fused(f: Any, x: Tensor) -> Tensor:
        return f.decoder(f.fuse(torch.cat([f.rgb(x[:, :3]), f.depth(x[:, 3:])], 1)))

    def body(channels: int = 3) -> nn.Module:
        return nn.Sequential(block(channels, 8), block(8, 32))

    return [
        net("U-Net of double convolutions", lambda: unet(nn.Conv2d, double), 32,
            "deep>mean | refuse"),
        net("U-Net of residual blocks", lambda: unet(nn.Conv2d, residual), 32,
            "deep>mean | refuse"),
        net("U-Net, 1-D", lambda: unet(nn.Conv1d, double), (3, 64), "deep>mean | refuse"),
        net("U-Net of nested blocks", lambda: nn.Sequential(skip_block(3, 8, skip_block(8, 16,
            skip_block(16, 32, None))), nn.Conv2d(11, 3, 1)), 32,
            "0.sub.sub.down>mean | refuse"),
        net("mask and label", lambda: Net(both, down1=block(3, 8), down2=block(8, 32),
            up=block(40, 8, 1), out=nn.Conv2d(8, 1, 1), fc=nn.Linear(32, 5)), 32,
            "fc< | down2>mean | refuse"),
        net("depth and segments", lambda: Net(lambda f, x: (lambda h: (f.depth(h), f.seg(h)))(
            f.body(x)), body=body(), depth=decoder(), seg=decoder()), 32, "body>mean | refuse"),
        net("two encoders, one decoder", lambda: Net(fused, rgb=body(), depth=body(1),
            fuse=nn.Conv2d(64, 32, 1), decoder=decoder()), 32, "fuse>mean | refuse", channels=4),
        net("variational autoencoder, a dict", lambda: Net(vae, encoder=nn.Sequential(body(),
            nn.Flatten(), nn.Linear(2048, 32)), up=nn.Linear(16, 2048), decoder=decoder()), 32,
            ">@mu | refuse"),
        net("autoencoder (table)", lambda: Net(lambda f, x: f.decoder(f.encoder(x)),
            encoder=nn.Sequential(mlp(20, 16), mlp(16, 8)), decoder=nn.Sequential(mlp(8, 16),
            nn.Linear(16, 20))), (20,), "encoder> | refuse"),
        net("generator of residual blocks", lambda: nn.Sequential(block(3, 8, 1), block(8, 16),
            block(16, 32), *(residual(nn.Conv2d, 32, 32) for _ in range(3)), decoder(),
            nn.Tanh()), 32, "5>mean | refuse"),
        net("discriminator of patches", lambda: nn.Sequential(block(3, 8), block(8, 16),
            nn.Conv2d(16, 1, 3, 1, 1)), 32, "2<mean | refuse"),
        net("super-resolution", lambda: Net(lambda f, x: F.pixel_shuffle(f.out(f.body(f.head(x))
            + f.head(x)), 2), head=nn.Conv2d(3, 16, 3, 1, 1), body=nn.Sequential(*(residual(
            nn.Conv2d, 16, 16) for _ in range(2))), out=nn.Conv2d(16, 12, 3, 1, 1)), 32, "refuse"),
        net("hourglass, two stacks of heatmaps", hourglass, 32, "refuse"),
        net("detector of three scales", lambda: Net(lambda f, x: (lambda a: (lambda b: (lambda c: [
            f.h1(a), f.h2(b), f.h3(c)])(f.c(b)))(f.b(a)))(f.a(x)), a=block(3, 8), b=block(8, 16),
            c=block(16, 32), h1=nn.Conv2d(8, 10, 1), h2=nn.Conv2d(16, 10, 1),
            h3=nn.Conv2d(32, 10, 1)), 32, "c>mean | refuse"),
    ]  # fmt: skip


def signals(net: Library) -> list[Expert]:
    """Waves, series, points and graphs."""

    def wave(before: int, after: int, kernel: int, stride: int) -> nn.Module:
        return nn.Sequential(nn.Conv1d(before, after, kernel, stride), nn.BatchNorm1d(after),
                             nn.ReLU(), nn.MaxPool1d(2))  # fmt: skip

    def m5(f: Any, x: Tensor) -> Tensor:
        x = F.avg_pool1d(x := f.body(x), x.shape[-1]).permute(0, 2, 1)
        return F.log_softmax(f.fc1(x), dim=2)

    def points(f: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        turn = f.turn(x.amax(2)).view(-1, 3, 3)
        x = f.conv(torch.bmm(turn, x)).amax(2)
        return F.log_softmax(f.fc3(F.relu(f.fc2(F.relu(f.fc1(x))))), 1), turn

    def edges(f: Any, x: Tensor) -> Tensor:
        near = torch.cdist(x.transpose(1, 2), x.transpose(1, 2)).topk(4, largest=False)[1]
        around = torch.stack([x[i][:, near[i]] for i in range(len(x))])
        x = f.edge(torch.cat([around - x[..., None], x[..., None].expand_as(around)], 1)).amax(3)
        x = torch.cat([x.amax(2), x.mean(2)], 1)
        return f.fc2(F.leaky_relu(f.fc1(x)))

    def graph(f: Any, x: Tensor) -> Tensor:
        for layer in f.layers:
            x = torch.relu(f.links @ layer(x))
        return x

    def gcn(end: Callable[..., Tensor], **last: nn.Module) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            made = Net(lambda f, x: end(f, graph(f, x)), layers=nn.ModuleList(
                [nn.Linear(6, 16), nn.Linear(16, 24)]), **last)  # fmt: skip
            made.register_buffer("links", torch.eye(7) / 2 + 0.07)
            return made

        return build

    def skeleton(f: Any, x: Tensor) -> Tensor:
        x = f.time(torch.einsum("nctv,vw->nctw", f.space(x), f.links))
        return f.fcn(F.avg_pool2d(x, x.shape[2:])).flatten(1)

    def with_links() -> nn.Module:
        made = Net(skeleton, space=nn.Conv2d(3, 16, 1), time=nn.Sequential(nn.Conv2d(16, 24,
            (3, 1), padding=(1, 0)), nn.BatchNorm2d(24), nn.ReLU()), fcn=nn.Conv2d(24, 5, 1)
            )  # fmt: skip
        made.links = nn.Parameter(torch.eye(5) + 0.05)
        return made

    def forecast(f: Any, x: Tensor) -> Tensor:
        level = F.avg_pool1d(F.pad(x, (2, 2), "replicate"), 5, 1)
        return f.season(x - level) + f.trend(level)

    def beats(f: Any, x: Tensor) -> Tensor:
        total: Any = 0
        for each in f.each:
            back, ahead = each(x).split([32, 8], 1)
            x, total = x - back, total + ahead
        return total

    def letters(f: Any, x: Tensor) -> Tensor:
        y, _ = f.rnn(f.body(x).mean(2).permute(2, 0, 1))
        return f.fc(y).log_softmax(2)

    def sets(f: Any, x: Tensor) -> Tensor:
        return f.rho(f.phi(x).sum(1))

    return [
        net("M5 (waves)", lambda: Net(m5, body=nn.Sequential(wave(1, 8, 16, 4), wave(8, 16, 3, 1),
            wave(16, 16, 3, 1)), fc1=nn.Linear(16, 5)), (1, 800), "fc1<"),
        net("dilated convolutions, a value a sample", lambda: nn.Sequential(*(nn.Sequential(
            nn.Conv1d(n, 16, 3, padding=2**i, dilation=2**i), nn.ReLU()) for i, n in enumerate(
            (1, 16, 16))), nn.Conv1d(16, 32, 1)), (1, 100), "3<mean | refuse"),
        net("LSTM, its last state", lambda: lstm("state"), (12, 6), "fc<"),
        net("LSTM, its last step", lambda: lstm("last"), (12, 6), "fc<"),
        net("LSTM with attention", lambda: lstm("attention"), (12, 6), "fc<"),
        net("transformer, mean of steps", lambda: transformer("mean"), (12, 6), "fc<"),
        net("transformer, a score a step", lambda: transformer("steps"), (12, 6),
            "fc<tokens | refuse"),
        net("tokens pooled by a learned query", attention_pool, 32, "fc<"),
        net("season and trend (forecast)", lambda: Net(forecast, season=nn.Linear(32, 8),
            trend=nn.Linear(32, 8)), (32,), "refuse"),
        net("blocks of forecasts", lambda: Net(beats, each=nn.ModuleList([nn.Sequential(mlp(32,
            24), nn.Linear(24, 40)) for _ in range(3)])), (32,),
            "each.0.1< | each.1.1< | each.2.1< | refuse"),
        net("letters of a line, steps first", lambda: Net(letters, body=nn.Sequential(block(1, 8),
            block(8, 16)), rnn=nn.LSTM(16, 12, bidirectional=True), fc=nn.Linear(24, 9)),
            (1, 16, 48), "refuse"),
        net("PointNet by hand", lambda: Net(points, turn=nn.Linear(3, 9), conv=nn.Sequential(
            nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 64, 1)),
            fc1=nn.Linear(64, 32), fc2=nn.Linear(32, 16), fc3=nn.Linear(16, 5)), (3, 40),
            "fc3< | fc1<"),
        net("edge convolutions of points", lambda: Net(edges, edge=nn.Sequential(nn.Conv2d(6, 24,
            1), nn.BatchNorm2d(24), nn.LeakyReLU()), fc1=nn.Linear(48, 32), fc2=nn.Linear(32, 5)),
            (3, 20), "fc2< | fc1<"),
        net("deep sets", lambda: Net(sets, phi=nn.Sequential(mlp(4, 24), mlp(24, 24)),
            rho=nn.Sequential(mlp(24, 16), nn.Linear(16, 3))), (9, 4), "rho.1< | rho.0.0<"),
        net("graph convolutions, a score a graph", gcn(lambda f, x: f.fc(x.mean(1)),
            fc=nn.Linear(24, 3)), (7, 6), "fc<"),
        net("graph convolutions, a score a node", gcn(lambda f, x: f.fc(x), fc=nn.Linear(24, 3)),
            (7, 6), "fc<tokens | refuse"),
        net("graph convolutions, nodes", gcn(lambda f, x: x), (7, 6), ">tokens"),
        net("skeletons over time", with_links, (3, 10, 5), "fcn<"),
    ]  # fmt: skip


def plain(net: Library) -> list[Expert]:
    """Nets that everyone writes: no warning is due."""
    return [
        net("VGG by hand", lambda: nn.Sequential(block(3, 8), block(8, 16), nn.Flatten(),
            nn.Linear(1024, 40), nn.ReLU(), nn.Dropout(), nn.Linear(40, 5)), 32, "6< | 3<"),
        net("ResNet by hand", lambda: nn.Sequential(block(3, 8, 1), residual(nn.Conv2d, 8, 16, 2),
            residual(nn.Conv2d, 16, 32, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(32, 5)), 32, "5<"),
        net("DenseNet by hand", dense_layers, 32, "fc<"),
        net("encoder and projector", lambda: nn.Sequential(tower(3), nn.Linear(24, 48),
            nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 16)), 32, "1< | 4< | refuse"),
        net("normalised embedding", lambda: Net(lambda f, x: F.normalize(f.fc(f.body(x))),
            body=tower(3), fc=nn.Linear(24, 16)), 32, "> | fc> | fc<"),
    ]  # fmt: skip


def nets() -> list[Expert]:
    """All of them."""
    net = Library("second set, by hand")
    return streams(net) + heads(net) + dense(net) + signals(net) + plain(net)
