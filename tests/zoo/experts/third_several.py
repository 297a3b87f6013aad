"""The third set, by hand: ensembles, mixtures of experts, exits, transforms within.

Written down before the rule that is judged on it was there.
"""

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experts.answer import Expert, Library
from experts.own_parts import mlp
from experts.third_parts import (
    Net,
    Scores,
    block,
    held,
    maps,
    tower,
)


def nets(net: Library) -> list[Expert]:
    """Ensembles, mixtures of experts, exits, transforms within."""

    def classifier(width: int = 12) -> nn.Module:
        return nn.Sequential(OrderedDict(body=tower(3, width), fc=nn.Linear(2 * width, 5)))

    def weighted(f: Any, x: Tensor) -> Tensor:
        scores = torch.stack([f.a(x), f.b(x), f.c(x)])
        return torch.einsum("n,nbk->bk", f.weights.softmax(0), scores)

    def stacked(f: Any, x: Tensor) -> Tensor:
        return f.meta(torch.cat([each(x).softmax(1) for each in (f.a, f.b, f.c)], 1))

    def projected(f: Any, x: Tensor) -> Tensor:
        return f.fc(F.relu(f.to_a(f.a(x)) + f.to_b(f.b(x))))

    def soft(f: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        x = f.body(x)
        gates = f.gate(x).softmax(1)
        scores = torch.stack([each(x) for each in f.experts], 1)
        return (gates[..., None] * scores).sum(1), gates.mean(0).var()

    def hard(f: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        x = f.body(x)
        weights, chosen = f.gate(x).softmax(1).max(1)
        found = torch.zeros_like(x)
        for index, expert in enumerate(f.experts):
            rows = (chosen == index).nonzero()[:, 0]
            if len(rows):
                found = found.index_add(0, rows, expert(x[rows]) * weights[rows, None])
        return f.fc(x + found), weights.mean()

    def exits(f: Any, x: Tensor) -> dict[str, Tensor]:
        one = f.one(x)
        two = f.two(one)
        three = f.three(two)
        scores = {"exit3": f.head3(three.mean((2, 3))), "exit2": f.head2(two.mean((2, 3)))}
        return scores | {"exit1": f.head1(one.mean((2, 3)))}

    def again(f: Any, x: Tensor) -> list[Tensor]:
        scores, state = [], f.body(x)
        for _ in range(3):
            state = F.relu(state + f.step(state))
            scores.append(f.fc(state.mean((2, 3))))
        return scores

    def flips_of_features(f: Any, x: Tensor) -> Tensor:
        return f.fc((f.body(x) + f.body(x.flip(3)) + f.body(x.flip(2))) / 3)

    def flips_of_scores(f: Any, x: Tensor) -> Tensor:
        return (f.model(x).softmax(1) + f.model(x.flip(3)).softmax(1)) / 2

    def auxiliary(f: Any, x: Tensor) -> Any:
        low = f.low(x)
        scores = f.fc(f.dropout(f.high(low).mean((2, 3))))
        return Scores(scores, f.aux(low.mean((2, 3)))) if f.training else scores

    def crops(f: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        whole = f.body(x)
        where = whole.mean(1).flatten(1).argmax(1)
        rows, columns = where // 8 * 2, where % 8 * 2
        parts = torch.stack([image[:, r : r + 16, c : c + 16] for image, r, c in zip(
            F.pad(x, (0, 2, 0, 2)), rows.tolist(), columns.tolist(), strict=True)])  # fmt: skip
        both = torch.cat([whole.mean((2, 3)), f.body(parts).mean((2, 3))], 1)
        return f.fc(both), f.fc_whole(whole.mean((2, 3)))

    def no_grad(f: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = f.body(x)
        return f.fc(x)

    def colours(f: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        light, rest = x.mean(1, keepdim=True), x - x.mean(1, keepdim=True)
        return F.normalize(f.l_fc(f.light(light))), F.normalize(f.ab_fc(f.rest(rest)))

    def eyes(f: Any, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 3)
        return f.gaze(torch.cat([f.eye(left), f.eye(right.flip(3))], 1))

    def teacher(f: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            goal = f.teacher(x + 0.05 * torch.randn_like(x) if f.training else x)
        return f.student(x), goal

    def frozen(width: int) -> nn.Module:
        return classifier(width).requires_grad_(False).eval()

    def adapted(f: Any, x: Tensor) -> Tensor:
        x = f.frozen(x)
        return f.fc((x + f.up(F.relu(f.down(x)))).mean((2, 3)))

    three = {"a": classifier, "b": lambda: classifier(10), "c": lambda: classifier(14)}

    def triple(**more: nn.Module) -> dict[str, nn.Module]:
        return {name: make() for name, make in three.items()} | more

    def fives(count: int) -> nn.ModuleList:
        return nn.ModuleList([mlp(24, 32, 5) for _ in range(count)])

    return [
        net("three nets, their scores weighed", lambda: held(Net(weighted, **triple()),
            weights=torch.zeros(3)), 32, "a.fc< | b.fc< | c.fc< | ask"),
        net("three nets, their scores classified", lambda: Net(stacked, **triple(meta=nn.Linear(15,
            5))), 32, "a.fc< | b.fc< | c.fc< | ask"),
        net("two nets that teach each other", lambda: Net(lambda f, x: (f.one(x), f.two(x)),
            one=classifier(), two=classifier()), 32, "one.fc< | two.fc< | ask"),
        net("two co-trained classifiers, averaged in eval mode", lambda: Net(lambda f, x: [f.one(x),
            f.two(x)] if f.training else (f.one(x) + f.two(x)) / 2, one=classifier(),
            two=classifier(16)), 32, "one.fc< | two.fc< | ask"),
        net("lightness and colours, contrasted", lambda: Net(colours, light=tower(1),
            rest=tower(3), l_fc=nn.Linear(24, 16), ab_fc=nn.Linear(24, 16)), 32,
            "light> | rest> | l_fc> | ab_fc> | >@0 | >@1 | ask"),
        net("left eye and right eye, one tower", lambda: Net(eyes, eye=tower(3), gaze=mlp(48, 32,
            2)), 32, "gaze< | gaze.2<"),
        net("a student and its mean teacher", lambda: Net(teacher, student=classifier(),
            teacher=frozen(12)), 32, "student.fc<"),
        net("a small student of a large frozen teacher", lambda: Net(teacher,
            student=classifier(8), teacher=frozen(20)), 32, "student.fc<"),
        net("frozen body with an adapter", lambda: Net(adapted, frozen=maps().requires_grad_(
            False), down=nn.Conv2d(24, 6, 1), up=nn.Conv2d(6, 24, 1), fc=nn.Linear(24, 5)), 32,
            "fc<"),
        net("two nets, projected and added", lambda: Net(projected, a=tower(3), b=tower(3, 16, 5),
            to_a=nn.Linear(24, 32), to_b=nn.Linear(32, 32), fc=nn.Linear(32, 5)), 32, "fc<"),
        net("soft experts, and their balance", lambda: Net(soft, body=tower(3), gate=nn.Linear(24,
            3), experts=fives(3)), 32, "body>"),
        net("hard experts, by rows", lambda: Net(hard, body=tower(3), gate=nn.Linear(24, 3),
            experts=nn.ModuleList([mlp(24, 32, 24) for _ in range(3)]), fc=nn.Linear(24, 5)), 32,
            "fc<"),
        net("exits, the deepest named first", lambda: Net(exits, one=block(3, 12), two=block(12,
            24), three=block(24, 32), head1=nn.Linear(12, 5), head2=nn.Linear(24, 5),
            head3=nn.Linear(32, 5)), 32, "head3<"),
        net("one block three times, scores each time", lambda: Net(again, body=maps(),
            step=nn.Conv2d(24, 24, 3, 1, 1), fc=nn.Linear(24, 5)), 32, "fc<"),
        net("flips within, features averaged", lambda: Net(flips_of_features, body=tower(3),
            fc=nn.Linear(24, 5)), 32, "fc<"),
        net("flips within, scores averaged", lambda: Net(flips_of_scores, model=classifier()), 32,
            "model.fc< | refuse"),
        net("an auxiliary classifier in training mode", lambda: Net(auxiliary, low=maps(),
            high=block(24, 32), dropout=nn.Dropout(0.2), fc=nn.Linear(32, 5), aux=nn.Linear(24,
            5)), 32, "fc< | dropout<"),
        net("the image and its best crop", lambda: Net(crops, body=maps(), fc=nn.Linear(48, 5),
            fc_whole=nn.Linear(24, 5)), 32, "fc<"),
        net("a body without gradients", lambda: Net(no_grad, body=tower(3), fc=nn.Linear(24, 5)),
            32, "fc< | refuse"),
    ]  # fmt: skip
