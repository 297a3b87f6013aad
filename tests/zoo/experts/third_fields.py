"""The third set, by hand: video, sound, points, tables, games.

Written down before the rule that is judged on it was there.
"""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical, Normal

from experts.answer import Expert, Library
from experts.own_parts import mlp
from experts.third_parts import Net, block, held, maps, small, tower


def time(net: Library) -> list[Expert]:
    """Clips, waves, spectrograms."""

    def folded(f: Any, x: Tensor) -> Tensor:
        found = f.cnn(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return f.fc(f.dropout(f.rnn(found)[0][:, -1]))

    def slow_fast(f: Any, x: Tensor) -> Tensor:
        fast = f.fast(x)
        slow = f.slow(x[:, :, ::4]) + f.lateral(fast)
        return f.fc(torch.cat([f.slow2(slow).mean((2, 3, 4)), fast.mean((2, 3, 4))], 1))

    def best_frames(f: Any, x: Tensor) -> Tensor:
        found = f.cnn(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        found = found * f.context(found.mean(1)).sigmoid()[:, None]
        return f.experts(torch.cat([found.mean(1), found.amax(1)], 1))

    def events(f: Any, x: Tensor) -> dict[str, Tensor]:
        window = torch.hann_window(64, device=x.device)
        x = torch.stft(x, 64, 32, window=window, return_complex=True).abs().pow(2)
        x = f.bn0(torch.log(x + 1e-6)[:, None].transpose(1, 2)).transpose(1, 2)
        x = F.relu(f.fc1(f.cnn(x).mean(2).transpose(1, 2))).transpose(1, 2)
        frames = f.cla(x).sigmoid()
        return {"clipwise": (torch.tanh(f.att(x)).softmax(2) * frames).sum(2), "frames": frames}

    def sinc(f: Any, x: Tensor) -> Tensor:
        t = torch.arange(-20, 21, device=x.device)
        high = f.low.abs() + f.band.abs()
        kernels = 2 * (high * torch.sinc(2 * high * t) - f.low.abs() * torch.sinc(
            2 * f.low.abs() * t))  # fmt: skip
        x = F.conv1d(x[:, None], (kernels * torch.hamming_window(41))[:, None], stride=8)
        return f.fc2(f.fc1(f.body(x.abs())))

    def statistics(f: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        x = f.frames(x)
        x = f.segment6(torch.cat([x.mean(2), x.std(2)], 1))
        return f.output(F.relu(f.segment7(F.relu(x)))), x

    def slices(f: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        found = f.cnn(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        found = f.rnn(found)[0]
        whole = (f.attention(found).softmax(1) * found).sum(1)
        return f.slices(found), f.study(whole)

    def three(before: int, after: int, stride: tuple[int, int, int]) -> nn.Module:
        return nn.Sequential(nn.Conv3d(before, after, 3, stride, 1), nn.BatchNorm3d(after),
                             nn.ReLU())  # fmt: skip

    def line(before: int, after: int) -> nn.Module:
        return nn.Sequential(nn.Conv1d(before, after, 5, 2), nn.BatchNorm1d(after), nn.ReLU())

    return [
        net("frames folded into the batch, LSTM", lambda: Net(folded, cnn=tower(3),
            rnn=nn.LSTM(24, 20, batch_first=True), dropout=nn.Dropout(0.3), fc=nn.Linear(20, 5)),
            (4, 3, 32, 32), "fc< | dropout<"),
        net("a slow and a fast stream", lambda: Net(slow_fast, slow=three(3, 24, (1, 2, 2)),
            fast=three(3, 8, (1, 2, 2)), lateral=nn.Conv3d(8, 24, (4, 1, 1), (4, 1, 1)),
            slow2=three(24, 32, (1, 2, 2)), fc=nn.Linear(40, 5)), (3, 8, 32, 32), "fc<"),
        net("slices of a study, scores of each and of all", lambda: Net(slices, cnn=tower(3),
            rnn=nn.GRU(24, 12, batch_first=True, bidirectional=True), attention=nn.Linear(24, 1),
            slices=nn.Linear(24, 3), study=nn.Linear(24, 2)), (5, 3, 32, 32), "study< | refuse"),
        net("frames gated by their context", lambda: Net(best_frames, cnn=tower(3),
            context=nn.Linear(24, 24), experts=nn.Sequential(nn.Dropout(0.1), nn.Linear(48, 5))),
            (4, 3, 32, 32), "experts.1< | experts<"),
        net("sound events of a wave", lambda: Net(events, bn0=nn.BatchNorm2d(33),
            cnn=nn.Sequential(block(1, 12), block(12, 24)), fc1=nn.Linear(24, 32),
            att=nn.Conv1d(32, 5, 1), cla=nn.Conv1d(32, 5, 1)), (1600,),
            "cla<mean | att<mean | refuse"),
        net("learned bands of a wave", lambda: held(Net(sinc, body=nn.Sequential(line(10, 16),
            line(16, 24), nn.AdaptiveAvgPool1d(1), nn.Flatten()), fc1=mlp(24, 32),
            fc2=nn.Linear(32, 5)), low=torch.rand(10, 1) / 4, band=torch.rand(10, 1) / 8),
            (1600,), "fc2< | fc1<"),
        net("statistics of frames (x-vector)", lambda: Net(statistics, frames=nn.Sequential(
            line(16, 24), nn.Conv1d(24, 40, 1), nn.ReLU()), segment6=nn.Linear(80, 32),
            segment7=nn.Linear(32, 32), output=nn.Linear(32, 7)), (16, 60),
            "segment6> | output< | segment6< | >@1"),
    ]  # fmt: skip


def points_and_tables(net: Library) -> list[Expert]:
    """Points, graphs of patches, rows of numbers."""

    def grouped(f: Any, x: Tensor) -> Tensor:
        centres = x[:, :, ::4]
        near = torch.cdist(centres.mT, x.mT).topk(6, largest=False)[1].flatten(1)
        around = torch.gather(x, 2, near[:, None].expand(-1, 3, -1)).unflatten(2, (-1, 6))
        found = f.local(around - centres[..., None]).amax(3)
        found = f.whole(torch.cat([centres, found], 1)).amax(2)
        return F.log_softmax(f.fc2(f.drop(f.fc1(found))), 1)

    def patches(f: Any, x: Tensor) -> Tensor:
        x = (f.stem(x) + f.positions).flatten(2)
        near = torch.cdist(x.mT, x.mT).topk(4, largest=False)[1]
        around = torch.stack([item[:, index] for item, index in zip(x, near, strict=True)])
        x = x + f.mix(torch.cat([x, (around - x[..., None]).amax(3)], 1))
        return f.prediction(x.mean(2)[..., None, None]).flatten(1)

    def rows(f: Any, x: Tensor) -> Tensor:
        x = x[..., None] * f.weight + f.bias
        x = f.blocks(torch.cat([x, f.cls.expand(len(x), -1, -1)], 1))
        return f.head(x[:, -1])

    def crossed(f: Any, x: Tensor) -> Tensor:
        found = x
        for layer in f.cross:
            found = x * layer(found) + found
        return f.out(torch.cat([found, f.deep(x)], 1)).squeeze(1)

    def denoised(f: Any, x: Tensor) -> Tensor:
        swapped = torch.where(torch.rand_like(x) < 0.1, x.roll(1, 0), x) if f.training else x
        return f.decoder(f.encoder(swapped))

    def conv(*sizes: int, kind: Any = nn.Conv1d, norm: Any = nn.BatchNorm1d) -> nn.Module:
        parts = [nn.Sequential(kind(a, b, 1), norm(b), nn.ReLU()) for a, b in
                 pairwise(sizes)]  # fmt: skip
        return nn.Sequential(*parts)

    layer = nn.TransformerEncoderLayer(24, 2, 48, 0.0, batch_first=True, norm_first=True)
    return [
        net("points in groups, then all", lambda: Net(grouped, local=conv(3, 16, 24,
            kind=nn.Conv2d, norm=nn.BatchNorm2d), whole=conv(27, 32, 48), fc1=mlp(48, 24),
            drop=nn.Dropout(0.4), fc2=nn.Linear(24, 5)), (3, 40), "fc1< | fc2< | fc1>"),
        net("graph of patches, convolutions classify", lambda: held(Net(patches, stem=maps(),
            mix=conv(48, 24), prediction=nn.Sequential(nn.Conv2d(24, 48, 1), nn.BatchNorm2d(48),
            nn.GELU(), nn.Dropout(0.0), nn.Conv2d(48, 5, 1))), positions=small(1, 24, 8, 8)), 32,
            "prediction.4<mean | prediction<mean"),
        net("tokens of numbers, class token last", lambda: held(Net(rows,
            blocks=nn.TransformerEncoder(layer, 1, enable_nested_tensor=False),
            head=nn.Sequential(nn.LayerNorm(24), nn.ReLU(), nn.Linear(24, 2))),
            weight=small(10, 24), bias=small(10, 24), cls=small(1, 1, 24)), (10,),
            "head.2< | head< | head.0>"),
        net("crossed and deep", lambda: Net(crossed, cross=nn.ModuleList([nn.Linear(10, 10) for _
            in range(2)]), deep=nn.Sequential(mlp(10, 32), mlp(32, 16)), out=nn.Linear(26, 1)),
            (10,), "out<"),
        net("rows denoised", lambda: Net(denoised, encoder=nn.Sequential(mlp(20, 32), mlp(32,
            12)), decoder=nn.Sequential(mlp(12, 32), nn.Linear(32, 20))), (20,),
            "encoder> | refuse"),
    ]  # fmt: skip


def games(net: Library) -> list[Expert]:
    """Policies, values, models of worlds."""

    def nature(channels: int = 3) -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels, 8, 8, 4), nn.ReLU(), nn.Conv2d(8, 16, 4, 2),
                             nn.ReLU(), nn.Flatten(), nn.Linear(64, 32), nn.ReLU())  # fmt: skip

    def policy(f: Any, x: Tensor) -> tuple[Categorical, Tensor]:
        x = f.features(x / 255.0 if x.max() > 2 else x)
        return Categorical(logits=f.actor(x)), f.critic(x).squeeze(1)

    def dueling(f: Any, x: Tensor) -> Tensor:
        x = f.features(x)
        advantage = f.advantage(x)
        return f.value(x) + advantage - advantage.mean(1, keepdim=True)

    def recurrent(f: Any, x: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        state = f.core(f.features(x))
        return f.policy(state[0]), f.value(state[0]), state

    def atoms(f: Any, x: Tensor) -> Tensor:
        spread = f.head(f.features(x)).unflatten(1, (4, 11)).softmax(2)
        return (spread * torch.linspace(-10, 10, 11, device=x.device)).sum(2)

    def world(f: Any, x: Tensor) -> dict[str, Any]:
        mean, std = f.posterior(f.encoder(x - 0.5)).chunk(2, 1)
        code = Normal(mean, F.softplus(std) + 0.1).rsample()
        return {"image": f.decoder(code).view_as(x), "reward": f.reward(code), "mean": mean}

    def curious(f: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            goal = f.target(x)
        return (f.predictor(x) - goal).pow(2).mean(1)

    return [
        net("a distribution of actions, and a value", lambda: Net(policy, features=nature(),
            actor=nn.Linear(32, 4), critic=nn.Linear(32, 1)), 32, "features>"),
        net("dueling values", lambda: Net(dueling, features=nature(4), value=mlp(32, 24, 1),
            advantage=mlp(32, 24, 6)), 32, "features>", channels=4),
        net("policy with a recurrent core", lambda: Net(recurrent, features=nature(),
            core=nn.LSTMCell(32, 24), policy=nn.Linear(24, 4), value=nn.Linear(24, 1)), 32,
            "policy< | features>"),
        net("distributions of values", lambda: Net(atoms, features=nature(), head=nn.Linear(32,
            44)), 32, "head<"),
        net("model of a world", lambda: Net(world, encoder=nature(), posterior=nn.Linear(32, 24),
            decoder=mlp(12, 32, 3072), reward=nn.Linear(12, 1)), 32,
            "encoder> | >@mean | refuse"),
        net("a frozen random net, predicted", lambda: Net(curious,
            target=tower(3).requires_grad_(False), predictor=tower(3)), 32, "predictor> | refuse"),
    ]  # fmt: skip


def nets(net: Library) -> list[Expert]:
    """All of them."""
    return time(net) + points_and_tables(net) + games(net)
