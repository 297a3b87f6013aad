"""The third set, by hand: generative nets, values of places.

Written down before the rule that is judged on it was there.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from experts.answer import Expert, Library
from experts.own_parts import mlp
from experts.third_parts import Made, Net, block, held, maps, small, tokens, tower


@dataclass
class Latent:
    """What a variational autoencoder returns."""

    reconstruction: Tensor
    mu: Tensor
    logvar: Tensor


def generative(net: Library) -> list[Expert]:
    """Discriminators, codes, flows, energies."""

    def projection(f: Any, x: Tensor) -> Tensor:
        x = f.body(x).sum((2, 3))
        return f.linear(x) + (f.classes.weight.mean(0) * x).sum(1, keepdim=True)

    def sn(before: int, after: int) -> nn.Module:
        return nn.Sequential(spectral_norm(nn.Conv2d(before, after, 4, 2, 1)),
                             nn.LeakyReLU(0.2))  # fmt: skip

    def batch_std(f: Any, x: Tensor) -> Tensor:
        x = f.body(x)
        std = x.std(0, unbiased=False).mean().expand(len(x), 1, *x.shape[2:])
        return f.out(f.fc(f.conv(torch.cat([x, std], 1)).flatten(1)))

    def auxiliary(f: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        x = f.body(x)
        return f.real(x).sigmoid(), f.kind(x).log_softmax(1)

    def quantise(f: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = x.movedim(1, -1)
        ids = torch.cdist(rows.flatten(1, 2), f.codes).argmin(2).view(rows.shape[:3])
        found = f.codes[ids].movedim(-1, 1)
        loss = F.mse_loss(found.detach(), x) + F.mse_loss(found, x.detach())
        return x + (found - x).detach(), loss, ids

    def codes(f: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        code, loss, ids = f.quantize(f.pre(f.encoder(x)))
        return loss, f.decoder(code), ids

    def beta(f: Any, x: Tensor) -> Latent:
        found = f.encoder(x)
        mu, logvar = f.mu(found), f.logvar(found)
        code = mu + torch.randn_like(mu) * (logvar / 2).exp() if f.training else mu
        return Latent(f.decoder(code).view_as(x), mu, logvar)

    def flow(f: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        x, total = F.pixel_unshuffle(x, 4), x.new_zeros(len(x))
        for couple in f.couples:
            kept, changed = x.chunk(2, 1)
            scale, shift = couple(kept).chunk(2, 1)
            scale = torch.tanh(scale)
            total = total + scale.flatten(1).sum(1)
            x = torch.cat([changed * scale.exp() + shift, kept], 1)
        return x, total

    def noise(f: Any, x: Tensor) -> Tensor:
        t = torch.rand(len(x), device=x.device)
        eps = torch.randn_like(x)
        low = f.down(x * (1 - t.view(-1, 1, 1, 1)) + eps * t.view(-1, 1, 1, 1))
        middle = f.middle(low + f.time(t[:, None])[..., None, None])
        return F.mse_loss(f.up(torch.cat([low, middle], 1)), eps)

    decoder = nn.ConvTranspose2d
    return [
        net("spectral norm and projected classes", lambda: Net(projection, body=nn.Sequential(sn(3,
            12), sn(12, 24)), linear=spectral_norm(nn.Linear(24, 1)), classes=nn.Embedding(5,
            24)), 32, "linear<"),
        net("discriminator with the batch's deviation", lambda: Net(batch_std,
            body=nn.Sequential(sn(3, 12), sn(12, 24)), conv=sn(25, 24), fc=mlp(384, 32),
            out=nn.Linear(32, 1)), 32, "out< | fc<"),
        net("discriminator, real or not and the class", lambda: Net(auxiliary, body=tower(3),
            real=nn.Linear(24, 1), kind=nn.Linear(24, 5)), 32, "body>"),
        net("codes of a book", lambda: Net(codes, encoder=maps(), pre=nn.Conv2d(24, 16, 1,
            bias=False), quantize=Made(quantise, codes=small(20, 16) / 10), decoder=nn.Sequential(
            decoder(16, 8, 2, 2), nn.ReLU(), decoder(8, 3, 2, 2))), 32,
            "encoder>mean | pre>mean | quantize>mean | refuse"),
        net("variational, a dataclass", lambda: Net(beta, encoder=tower(3), mu=nn.Linear(24, 12),
            logvar=nn.Linear(24, 12), decoder=mlp(12, 32, 3072)), 32, "mu> | encoder> | refuse"),
        net("invertible couplings", lambda: Net(flow, couples=nn.ModuleList([nn.Sequential(
            nn.Conv2d(24, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 48, 3, 1, 1)) for _ in
            range(3)])), 32, "refuse"),
        net("noise predicted, a loss", lambda: Net(noise, down=maps(), middle=block(24, 24, 1),
            time=mlp(1, 16, 24), up=nn.Sequential(decoder(48, 8, 2, 2), nn.ReLU(), decoder(8, 3, 2,
            2))), 32, "middle>mean | refuse"),
        net("an energy of class scores", lambda: Net(lambda f, x: -f.fc(f.body(x)).logsumexp(1),
            body=tower(3), fc=nn.Linear(24, 10)), 32, "fc<"),
    ]  # fmt: skip


def places(net: Library) -> list[Expert]:
    """Pyramids, masks, joints, letters, objects."""

    def pyramid(f: Any, x: Tensor) -> tuple[Tensor, ...]:
        one = f.c1(x)
        two = f.c2(one)
        three = f.c3(two)
        p3 = f.l3(three)
        p2 = f.l2(two) + F.interpolate(p3, scale_factor=2)
        p1 = f.l1(one) + F.interpolate(p2, scale_factor=2)
        return p1, p2, p3

    def classified(f: Any, x: Tensor) -> Tensor:
        return f.fc(torch.cat([level.mean((2, 3)) for level in pyramid(f, x)], 1))

    def columns(f: Any, x: Tensor) -> Tensor:
        one = f.c1(x)
        two = f.c2(one)
        three = f.c3(two)
        found = [F.interpolate(m, one.shape[2:], mode="bilinear") for m in (one, two, three)]
        return f.fc(f.mix(torch.cat(found, 1)).mean((2, 3)))

    def joints(f: Any, x: Tensor) -> Tensor:
        heat = f.heat(f.body(x)).flatten(2).softmax(2).unflatten(2, (8, 8))
        line = torch.linspace(-1, 1, 8, device=x.device)
        return torch.cat([(heat.sum(2) * line).sum(2), (heat.sum(3) * line).sum(2)], 1)

    def street(f: Any, x: Tensor) -> dict[str, Tensor]:
        deep = f.encoder(x)
        places = F.interpolate(f.decoder(deep), scale_factor=4)
        scene = f.scene(deep.mean((2, 3)))
        return {"mask": f.mask(places), "depth": f.depth(places).relu(), "scene": scene}

    def reader(f: Any, x: Tensor) -> Tensor:
        found = f.encoder(x)
        weights = (f.queries @ found.mT).softmax(2)
        return f.letters(weights @ found)

    def slots(f: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        found = f.norm(f.encoder(x))
        slot = f.start.expand(len(x), -1, -1)
        for _ in range(2):
            weights = (f.k(found) @ f.q(slot).mT).softmax(2)
            update = (weights / weights.sum(1, keepdim=True)).mT @ f.v(found)
            slot = f.gru(update.flatten(0, 1), slot.flatten(0, 1)).view_as(slot)
        return f.decoder(slot).mean(1).view_as(x), slot

    def last_four(f: Any, x: Tensor) -> Tensor:
        x = f.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([f.cls.expand(len(x), -1, -1), x], 1)
        found = []
        for layer in f.blocks:
            x = layer(x)
            found.append(f.norm(x)[:, 0])
        return f.linear(torch.cat(found, 1))

    def supervised(f: Any, x: Tensor) -> list[Tensor]:
        one = f.c1(x)
        two = f.c2(one)
        deep = f.c3(two)
        up2 = f.mix2(torch.cat([two, F.interpolate(deep, scale_factor=2)], 1))
        up1 = f.mix1(torch.cat([one, F.interpolate(up2, scale_factor=2)], 1))
        found = zip((f.out1, f.out2, f.out3), (up1, up2, deep), strict=True)
        return [F.interpolate(out(level), x.shape[2:]) for out, level in found]

    def anchors(f: Any, x: Tensor) -> dict[str, Tensor]:
        found = [f.tower(level) for level in pyramid(f, x)]
        kinds = [f.kinds(level).flatten(2).mT for level in found]
        boxes = [f.boxes(level).flatten(2).mT for level in found]
        return {"cls_logits": torch.cat(kinds, 1), "bbox_regression": torch.cat(boxes, 1)}

    def levels() -> dict[str, nn.Module]:
        return {"c1": block(3, 8), "c2": block(8, 16), "c3": block(16, 32)}

    def side() -> dict[str, nn.Module]:
        return {f"l{i + 1}": nn.Conv2d(n, 16, 1) for i, n in enumerate((8, 16, 32))}

    def layer() -> nn.Module:
        return nn.TransformerEncoderLayer(24, 2, 48, 0.0, batch_first=True)

    lines = dict.fromkeys("qkv", nn.Linear)
    return [
        net("pyramid, its levels classified together", lambda: Net(classified, **levels(),
            **side(), fc=nn.Linear(48, 5)), 32, "fc<"),
        net("pyramid of maps by hand", lambda: Net(pyramid, **levels(), **side()), 32,
            "c3>mean | >mean@2 | refuse"),
        net("masks at each level (deep supervision)", lambda: Net(supervised, **levels(),
            mix2=block(48, 16, 1), mix1=block(24, 8, 1), out1=nn.Conv2d(8, 2, 1), out2=nn.Conv2d(
            16, 2, 1), out3=nn.Conv2d(32, 2, 1)), 32, "c3>mean | refuse"),
        net("anchors of all levels, shared heads", lambda: Net(anchors, **levels(), **side(),
            tower=block(16, 16, 1), kinds=nn.Conv2d(16, 5, 1), boxes=nn.Conv2d(16, 4, 1)), 32,
            "c3>mean | refuse"),
        net("columns of three depths, classified", lambda: Net(columns, **levels(), mix=block(56,
            24, 1, 1), fc=nn.Linear(24, 5)), 32, "fc<"),
        net("joints as expected places", lambda: Net(joints, body=maps(), heat=nn.Conv2d(24, 6,
            1)), 32, "body>mean | refuse"),
        net("joints by a Linear layer", lambda: Net(lambda f, x: f.fc(f.body(x)).view(-1, 6, 2),
            body=tower(3), fc=nn.Linear(24, 12)), 32, "fc<"),
        net("mask, depth and scene", lambda: Net(street, encoder=maps(), decoder=block(24, 16, 1),
            mask=nn.Conv2d(16, 3, 1), depth=nn.Conv2d(16, 1, 1), scene=nn.Linear(24, 5)), 32,
            "scene< | refuse"),
        net("letters by learned queries", lambda: held(Net(reader, encoder=tokens(),
            letters=nn.Linear(24, 12)), queries=small(1, 8, 24)), 32,
            "encoder>tokens | letters<tokens | refuse"),
        net("slots of objects", lambda: held(Net(slots, encoder=tokens(), norm=nn.LayerNorm(24),
            gru=nn.GRUCell(24, 24), decoder=nn.Linear(24, 3072), **{name: kind(24, 24) for name,
            kind in lines.items()}), start=small(1, 4, 24)), 32,
            "norm>tokens | encoder>tokens | >tokens@1 | refuse"),
        net("class tokens of three blocks, concatenated", lambda: held(Net(last_four,
            patch=nn.Conv2d(3, 24, 8, 8), blocks=nn.ModuleList([layer() for _ in range(3)]),
            norm=nn.LayerNorm(24), linear=nn.Linear(72, 5)), cls=small(1, 1, 24)), 32, "linear<"),
    ]  # fmt: skip


def nets(net: Library) -> list[Expert]:
    """All of them."""
    return generative(net) + places(net)
