"""The third set, by hand: metric learning, pooling, text, self-supervision.

Written down before the rule that is judged on it was there.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from experts.answer import Expert, Library
from experts.own_parts import mlp
from experts.third_parts import (
    Made,
    Net,
    block,
    cosines,
    gated_attention,
    gem,
    held,
    maps,
    small,
    tower,
    vlad,
)


def metric(net: Library) -> list[Expert]:
    """Embeddings compared with centres, proxies, one another; bags of instances."""

    def margin(f: Any, x: Tensor) -> Tensor:
        return f.margin(f.neck(f.embed(f.pool(f.body(x)))))

    def landmarks(f: Any, x: Tensor) -> Any:
        found = f.embed(f.body(x))
        return {"scores": f.margin(found), "embedding": found} if f.training else found

    def proxies(f: Any, x: Tensor) -> Tensor:
        found = F.normalize(f.embed(f.body(x)))
        return -torch.cdist(found, F.normalize(f.proxies)).pow(2)

    def triplet(f: Any, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(f.head(f.body(image)) for image in x.unbind(1))

    def any_number(f: Any, *images: Tensor) -> tuple[Tensor, ...]:
        return tuple(f.embed(f.body(image)) for image in images)

    def each(f: Any, x: Tensor) -> Tensor:
        return f.body(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    def bag(f: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = each(f, x)
        weights = f.attention(found)
        scores = f.classifier((weights * found).sum(1))
        return scores.sigmoid(), (scores > 0).float(), weights

    def critical(f: Any, x: Tensor) -> tuple[Tensor, ...]:
        found = each(f, x)
        scores = f.instance(found)
        worst = torch.gather(found, 1, scores.argmax(1)[..., None].expand(-1, -1, 24))
        weights = torch.einsum("bnd,bkd->bnk", f.q(found), f.q(worst)).softmax(1)
        bags = torch.einsum("bnk,bnd->bkd", weights, f.v(found))
        return scores.amax(1), f.fcc(bags).flatten(1), weights

    def hashing(f: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        code = torch.tanh(f.hash(f.body(x)))
        return f.classifier(code), code

    def face(f: Any, x: Tensor) -> Tensor:
        return f.features(f.fc(f.dropout(f.bn2(f.body(x)).flatten(1))))

    bags = (6, 3, 16, 16)
    return [
        net("GeM, neck, margin (landmarks)", lambda: Net(margin, body=maps(), pool=gem(),
            embed=nn.Linear(24, 20), neck=nn.BatchNorm1d(20), margin=cosines(20, 7)), 32,
            "margin< | embed>"),
        net("sub-centres, one vector in eval mode", lambda: Net(landmarks, body=tower(3),
            embed=nn.Linear(24, 20), margin=cosines(20, 7, 3)), 32, "embed>"),
        net("GeM and a classifier", lambda: nn.Sequential(maps(), gem(), nn.Linear(24, 5)), 32,
            "2<"),
        net("distances to proxies", lambda: held(Net(proxies, body=tower(3), embed=nn.Linear(24,
            20)), proxies=torch.randn(7, 20)), 32, "embed>"),
        net("distances to prototypes of the features", lambda: held(Net(lambda f, x: -torch.cdist(
            f.body(x), f.prototypes), body=tower(3)), prototypes=torch.randn(5, 24)), 32, "body>"),
        net("VLAD, whitened", lambda: Net(lambda f, x: F.normalize(f.whiten(f.pool(f.body(x)))),
            body=maps(), pool=vlad(24, 4), whiten=nn.Linear(96, 32)), 32, "> | whiten> | whiten<"),
        net("VLAD, as it is", lambda: Net(lambda f, x: f.pool(F.normalize(f.body(x))), body=maps(),
            pool=vlad(24, 4)), 32, ">"),
        net("triplet, three embeddings", lambda: Net(triplet, body=tower(3), head=nn.Linear(24,
            16)), (3, 3, 32, 32), ">@0 | >@1 | >@2 | ask"),
        net("triplet, given one image, a tuple of one", lambda: Net(any_number, body=tower(3),
            embed=nn.Linear(24, 20)), 32, ">@0 | body>"),
        net("bag with gated attention", lambda: Net(bag, body=tower(3),
            attention=gated_attention(24, 8), classifier=nn.Linear(24, 1)), bags, "classifier<"),
        net("bag, its highest score", lambda: Net(lambda f, x: f.fc(each(f, x)).amax(1),
            body=tower(3), fc=nn.Linear(24, 2)), bags, "fc<tokens | refuse"),
        net("bag, by its critical instances", lambda: Net(critical, body=tower(3),
            instance=nn.Linear(24, 4), q=nn.Linear(24, 8), v=nn.Linear(24, 24),
            fcc=nn.Conv1d(4, 4, 24)), bags, "fcc<flat | refuse"),
        net("hash codes and a classifier", lambda: Net(hashing, body=tower(3), hash=nn.Linear(24,
            16), classifier=nn.Linear(16, 5)), 32, "hash< | classifier< | >@1"),
        net("face embedding of flattened maps", lambda: Net(face, body=nn.Sequential(block(3, 8),
            block(8, 16), block(16, 16)), bn2=nn.BatchNorm2d(16), dropout=nn.Dropout(0.4),
            fc=nn.Linear(256, 32), features=nn.BatchNorm1d(32)), 32, "> | fc>"),
        net("two numbers before the classifier (centre loss)", lambda: Net(lambda f, x: (
            lambda h: (f.fc(h), h))(f.two(f.body(x))), body=tower(3), two=nn.Linear(24, 2),
            fc=nn.Linear(2, 5)), 32, "two<"),
    ]  # fmt: skip


def text(net: Library) -> list[Expert]:
    """Images beside words that are fixed or learned."""

    def visual(after: int = 16) -> nn.Module:
        return held(Net(lambda f, x: f.ln(f.body(x)) @ f.proj, body=tower(3), ln=nn.LayerNorm(24)),
                    proj=small(24, after))  # fmt: skip

    def buffers(made: nn.Module, **values: Tensor) -> nn.Module:
        for name, value in values.items():
            made.register_buffer(name, value)
        return made

    def zero_shot(f: Any, x: Tensor) -> Tensor:
        return 100 * F.normalize(f.visual(x)) @ f.words.T

    def prompts(f: Any, x: Tensor) -> Tensor:
        context = f.context.expand(len(f.names), -1, -1)
        words = F.normalize(f.text(torch.cat([f.start, context, f.names], 1))[:, -1])
        return f.scale.exp() * F.normalize(f.visual(x)) @ words.T

    def adapter(f: Any, x: Tensor) -> Tensor:
        found = f.visual(x)
        return f.classify(0.2 * f.adapter(found) + 0.8 * found)

    def both(f: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        words = f.table(f.ids).mean(1)
        return F.normalize(f.visual(x)), F.normalize(words), f.scale.exp()

    def labels(f: Any, x: Tensor) -> Tensor:
        graph = f.links @ F.leaky_relu(f.gc1(f.links @ f.words), 0.2)
        return f.body(x) @ f.gc2(graph).T

    def layer() -> nn.Module:
        return nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)

    scale = torch.zeros(())
    return [
        net("zero-shot, words as a buffer", lambda: buffers(Net(zero_shot, visual=visual()),
            words=F.normalize(torch.randn(5, 16))), 32, "visual> | visual.ln>"),
        net("learned prompts of a frozen text net", lambda: held(buffers(Net(prompts,
            visual=visual(), text=layer().requires_grad_(False)), start=small(5, 1, 16),
            names=small(5, 2, 16)), context=small(1, 4, 16), scale=scale), 32,
            "visual> | visual.ln>"),
        net("adapter before fixed words", lambda: Net(adapter, visual=visual(), adapter=mlp(16, 4,
            16), classify=cosines(16, 5)), 32, "classify< | visual> | visual.ln>"),
        net("vectors of images and of fixed captions", lambda: held(buffers(Net(both,
            visual=visual(), table=nn.Embedding(20, 16)), ids=torch.randint(20, (4, 6))),
            scale=scale), 32, "visual> | >@0 | visual.ln>"),
        net("classifier made by a graph of labels", lambda: buffers(Net(labels, body=tower(3),
            gc1=nn.Linear(8, 16), gc2=nn.Linear(16, 24)), words=torch.randn(5, 8),
            links=torch.rand(5, 5)), 32, "body>"),
    ]  # fmt: skip


def supervised_by_itself(net: Library) -> list[Expert]:
    """The encoder, and neither projection nor prototypes."""

    def dino() -> nn.Module:
        last = parametrizations.weight_norm(nn.Linear(16, 40, bias=False))
        return nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 48), nn.GELU(),
                             nn.Linear(48, 16), Made(lambda f, x: F.normalize(x)), last
                             )  # fmt: skip

    def moco(f: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        q = F.normalize(f.encoder_q(x))
        with torch.no_grad():
            k = F.normalize(f.encoder_k(x.flip(3)))
        positive = (q * k).sum(1, keepdim=True)
        return torch.cat([positive, q @ f.queue], 1) / 0.07, torch.zeros(len(x), dtype=torch.long)

    def encoder() -> nn.Module:
        return Net(lambda f, x: f.fc(f.body(x)), body=tower(3), fc=mlp(24, 24, 16))

    def queue() -> nn.Module:
        made = Net(moco, encoder_q=encoder(), encoder_k=encoder().requires_grad_(False))
        made.register_buffer("queue", F.normalize(torch.randn(16, 32), dim=0))
        return made

    def swav(f: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        found = F.normalize(f.projection(f.body(x)))
        return found, f.prototypes(found)

    def barlow(f: Any, x: Tensor) -> Tensor:
        one, two = (f.bn(f.projector(f.encoder(view))) for view in x.unbind(1))
        c = one.T @ two / len(one)
        return (c.diagonal() - 1).pow(2).sum() + 5e-3 * c.fill_diagonal_(0).pow(2).sum()

    def rotations(f: Any, x: Tensor) -> Tensor:
        return f.fc(f.body(torch.cat([x.rot90(k, (2, 3)) for k in range(4)])))

    def jigsaw(f: Any, x: Tensor) -> Tensor:
        pieces = x.unfold(2, 16, 16).unfold(3, 16, 16).flatten(2, 3).transpose(1, 2)
        found = f.fc6(f.body(pieces.flatten(0, 1))).unflatten(0, (len(x), 4)).flatten(1)
        return f.fc8(f.fc7(found))

    def probe(f: Any, x: Tensor) -> dict[str, Tensor]:
        found = f.body(x)
        return {"probe": f.probe(found.detach()), "projection": f.projector(found)}

    def masked(f: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        found = f.patch(x).flatten(2).transpose(1, 2)
        hide = (torch.rand(found.shape[:2]) < 0.5).to(x)[..., None]
        found = f.encoder(found * (1 - hide) + f.token * hide)
        return f.decoder(found), hide

    def simsiam(f: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        z = f.projector(f.encoder(x))
        return f.predictor(z), z.detach()

    layer = nn.TransformerEncoderLayer(24, 2, 48, 0.0, batch_first=True)
    return [
        net("DINO, backbone and head", lambda: Net(lambda f, x: f.head(f.backbone(x)),
            backbone=tower(3), head=dino()), 32, "backbone>"),
        net("MoCo with a queue", queue, 32, "encoder_q.body>"),
        net("SwAV, vectors and prototypes", lambda: Net(swav, body=tower(3), projection=mlp(24, 32,
            16), prototypes=nn.Linear(16, 30, bias=False)), 32, "body>"),
        net("Barlow Twins, a loss of two views", lambda: Net(barlow, encoder=tower(3),
            projector=mlp(24, 32, 32), bn=nn.BatchNorm1d(32, affine=False)), (2, 3, 32, 32),
            "encoder> | refuse"),
        net("rotations, four times the batch", lambda: Net(rotations, body=tower(3),
            fc=nn.Linear(24, 4)), 32, "refuse"),
        net("jigsaw, pieces folded into the batch", lambda: Net(jigsaw, body=tower(3),
            fc6=mlp(24, 32), fc7=mlp(128, 48), fc8=nn.Linear(48, 24)), 32, "fc8< | fc7<"),
        net("projection, and a probe of what is detached", lambda: Net(probe, body=tower(3),
            probe=nn.Linear(24, 5), projector=mlp(24, 48, 16)), 32, "body>"),
        net("masked patches, their pixels", lambda: held(Net(masked, patch=nn.Conv2d(3, 24, 8, 8),
            encoder=nn.TransformerEncoder(layer, 1), decoder=nn.Linear(24, 192)),
            token=small(1, 1, 24)), 32, "encoder>tokens | refuse"),
        net("SimSiam, prediction and projection", lambda: Net(simsiam, encoder=tower(3),
            projector=nn.Sequential(mlp(24, 32, 32), nn.BatchNorm1d(32)), predictor=mlp(32, 8,
            32)), 32, "encoder>"),
    ]  # fmt: skip


def nets(net: Library) -> list[Expert]:
    """All of them."""
    return metric(net) + text(net) + supervised_by_itself(net)
