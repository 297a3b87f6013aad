"""What the nets of ``own_nets`` are made of."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Net(nn.Module):
    """Layers, and a forward that is a function of them and the input."""

    def __init__(self, forward: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.function = forward

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


NORMS = {nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d}
UPS = {nn.Conv1d: nn.ConvTranspose1d, nn.Conv2d: nn.ConvTranspose2d}


def block(before: int, after: int, stride: int = 2, kernel: int = 3, conv: Any = nn.Conv2d) -> Any:
    """Convolution, norm, ReLU."""
    layer = conv(before, after, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(layer, NORMS[conv](after), nn.ReLU(inplace=True))


def tower(channels: int, width: int = 12, kernel: int = 3) -> nn.Module:
    """Images to vectors of twice the width."""
    return nn.Sequential(block(channels, width, 2, kernel), block(width, 2 * width, 2, kernel),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten())  # fmt: skip


def mlp(before: int, hidden: int, after: int = 0) -> nn.Module:
    """Linear and ReLU, and another Linear where it is asked for."""
    last = [nn.Linear(hidden, after)] if after else []
    return nn.Sequential(nn.Linear(before, hidden), nn.ReLU(), *last)


def double(conv: Any, before: int, after: int, stride: int = 1) -> nn.Module:
    """Two convolutions."""
    return nn.Sequential(block(before, after, stride, conv=conv), block(after, after, 1, conv=conv))


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, conv: Any, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(block(before, after, stride, conv=conv), conv(after, after, 3, 1,
            1, bias=False), NORMS[conv](after))  # fmt: skip
        same = before == after and stride == 1
        self.short = nn.Identity() if same else conv(before, after, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.short(x))


def residual(conv: Any, before: int, after: int, stride: int = 1) -> nn.Module:
    """A block of a ResNet."""
    return Residual(conv, before, after, stride)


class UNet(nn.Module):
    """Down twice, up twice."""

    def __init__(self, conv: Any, part: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.one, self.two = part(conv, 3, 8), part(conv, 8, 16, 2)
        self.deep = part(conv, 16, 32, 2)
        self.up2, self.up1 = UPS[conv](32, 16, 2, 2), UPS[conv](16, 8, 2, 2)
        self.mix2, self.mix1 = part(conv, 32, 16), part(conv, 16, 8)
        self.out = conv(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x)
        two = self.two(one)
        y = self.mix2(torch.cat([two, self.up2(self.deep(two))], 1))
        y = self.mix1(torch.cat([one, self.up1(y)], 1))
        return self.out(y)


def unet(conv: Any, part: Callable[..., nn.Module]) -> nn.Module:
    """A U-Net of some blocks."""
    return UNet(conv, part)


class Skip(nn.Module):
    """As in pix2pix: down, whatever is within, up, and the input beside it."""

    def __init__(self, before: int, inner: int, sub: nn.Module | None) -> None:
        super().__init__()
        self.down = block(before, inner)
        self.sub = sub or nn.Identity()
        wide = inner if sub is None else 2 * inner
        self.up = nn.ConvTranspose2d(wide, before if before > 3 else 8, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.up(self.sub(self.down(x)))], 1)


def skip_block(before: int, inner: int, sub: nn.Module | None) -> nn.Module:
    """A block that holds the next."""
    return Skip(before, inner, sub)


class Hourglass(nn.Module):
    """Two stacks, each down and up with a heatmap."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 16)
        self.downs = nn.ModuleList([block(16, 16) for _ in range(2)])
        self.lows = nn.ModuleList([block(16, 16, 1) for _ in range(2)])
        self.heat = nn.ModuleList([nn.Conv2d(16, 4, 1) for _ in range(2)])
        self.back = nn.Conv2d(4, 16, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        x, maps = self.stem(x), []
        for down, low, heat in zip(self.downs, self.lows, self.heat, strict=True):
            y = x + F.interpolate(low(down(x)), scale_factor=2)
            maps.append(heat(y))
            x = x + y + self.back(maps[-1])
        return maps


def hourglass() -> nn.Module:
    """Heatmaps of joints."""
    return Hourglass()


def gated() -> nn.Module:
    """One stream weighs the channels of the other."""

    def forward(f: Any, x: Tensor) -> Tensor:
        return f.fc(f.rgb(x[:, :3]) * f.flow(x[:, 3:]).sigmoid())

    return Net(forward, rgb=tower(3), flow=tower(2), fc=nn.Linear(24, 5))


def tsn() -> nn.Module:
    """Frames are classified one by one, and their scores averaged."""

    def forward(f: Any, x: Tensor) -> Tensor:
        return f.fc(f.tower(x.flatten(0, 1))).view(len(x), -1, 5).mean(1)

    return Net(forward, tower=tower(3), fc=nn.Linear(24, 5))


def lstm(reads: str) -> nn.Module:
    """A classifier of series (B, T, 6)."""

    def forward(f: Any, x: Tensor) -> Tensor:
        steps, (state, _) = f.rnn(x)
        if reads == "state":
            return f.fc(state[-1])
        if reads == "last":
            return f.fc(steps[:, -1])
        weights = f.score(steps.tanh()).softmax(1)
        return f.fc((weights * steps).sum(1))

    rnn = nn.LSTM(6, 16, batch_first=True)
    score = {"score": nn.Linear(16, 1)} if reads == "attention" else {}
    return Net(forward, rnn=rnn, fc=nn.Linear(16, 3), **score)


def transformer(reads: str) -> nn.Module:
    """Series (B, T, 6), with learned positions."""

    def forward(f: Any, x: Tensor) -> Tensor:
        x = f.body(f.embed(x) + f.positions)
        return f.fc(x.mean(1)) if reads == "mean" else f.fc(x)

    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    made = Net(forward, embed=nn.Linear(6, 16), body=nn.TransformerEncoder(layer, 1),
               fc=nn.Linear(16, 3))  # fmt: skip
    made.positions = nn.Parameter(torch.randn(1, 12, 16) / 10)
    return made


def attention_pool() -> nn.Module:
    """A learned query attends to the tokens of an image."""

    def forward(f: Any, x: Tensor) -> Tensor:
        tokens = f.patch(x).flatten(2).transpose(1, 2)
        pooled, _ = f.attend(f.query.expand(len(x), -1, -1), tokens, tokens)
        return f.fc(f.norm(pooled[:, 0]))

    attend = nn.MultiheadAttention(16, 2, batch_first=True)
    made = Net(forward, patch=nn.Conv2d(3, 16, 8, 8), norm=nn.LayerNorm(16), attend=attend,
               fc=nn.Linear(16, 5))  # fmt: skip
    made.query = nn.Parameter(torch.randn(1, 1, 16))
    return made


def dense_layers() -> nn.Module:
    """Each layer reads all before it."""

    def forward(f: Any, x: Tensor) -> Tensor:
        x = f.stem(x)
        for layer in f.layers:
            x = torch.cat([x, layer(x)], 1)
        return f.fc(f.norm(x).relu().mean((2, 3)))

    layers = nn.ModuleList([block(8 + 4 * i, 4, 1) for i in range(3)])
    return Net(forward, stem=block(3, 8), layers=layers, norm=nn.BatchNorm2d(20),
               fc=nn.Linear(20, 5))  # fmt: skip
