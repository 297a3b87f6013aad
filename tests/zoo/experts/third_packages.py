"""The third set: nets and layers of packages that no other file has.

Written down before the rule that is judged on it was there.
"""

import importlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experts.answer import Expert, Library
from experts.own_parts import mlp
from experts.second_nets import of
from experts.third_parts import Net, block, maps, tower


def module(name: str) -> Any:
    """A module, imported when a net of it is built."""
    return importlib.import_module(name)


def layers(net: Library) -> list[Expert]:
    """Layers of packages in nets by hand."""

    def in_tokens(layer: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        def forward(f: Any, x: Tensor) -> Any:
            x = f.patch(x).flatten(2).mT
            found = f.layer(x)
            return f.fc(f.norm(x + (found[0] if isinstance(found, tuple) else found)).mean(1))

        return lambda: Net(forward, patch=nn.Conv2d(3, 24, 8, 8), layer=layer(),
                           norm=nn.LayerNorm(24), fc=nn.Linear(24, 5))  # fmt: skip

    def in_maps(layer: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        return lambda: nn.Sequential(maps(), layer(), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                                     nn.Flatten(), nn.Linear(24, 5))  # fmt: skip

    def experts() -> nn.Module:
        def forward(f: Any, x: Tensor) -> tuple[Tensor, Tensor]:
            x, loss = f.moe(f.patch(x).flatten(2).mT)
            return f.fc(x.mean(1)), loss

        moe = module("mixture_of_experts").MoE(24, num_experts=2, hidden_dim=32)
        return Net(forward, patch=nn.Conv2d(3, 24, 8, 8), moe=moe, fc=nn.Linear(24, 5))

    def mamba() -> nn.Module:
        package = module("mambapy.mamba")
        return package.Mamba(package.MambaConfig(d_model=24, n_layers=1))

    def ode() -> nn.Module:
        def forward(f: Any, x: Tensor) -> Tensor:
            times = torch.tensor([0.0, 1.0], device=x.device)
            solve = module("torchdiffeq").odeint
            x = solve(lambda t, y: f.change(y), f.down(x), times, method="euler")[-1]
            return f.fc_layers(x)

        change = nn.Sequential(nn.GroupNorm(4, 24), nn.ReLU(), nn.Conv2d(24, 24, 3, 1, 1))
        return Net(forward, down=maps(), change=change, fc_layers=nn.Sequential(nn.GroupNorm(4,
            24), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5)))  # fmt: skip

    def kan() -> nn.Module:
        head = module("kan").KAN(width=[24, 5], grid=3, k=2, auto_save=False, save_act=False)
        return Net(lambda f, x: f.head(f.body(x)), body=tower(3), head=head)

    def bayesian() -> nn.Module:
        blitz = module("blitz.modules")
        return nn.Sequential(blitz.BayesianConv2d(3, 8, (5, 5)), nn.ReLU(), nn.MaxPool2d(2),
            blitz.BayesianConv2d(8, 16, (5, 5)), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            blitz.BayesianLinear(400, 60), nn.ReLU(), blitz.BayesianLinear(60, 5)
            )  # fmt: skip

    def spiking() -> nn.Module:
        package = module("snntorch")

        def forward(f: Any, x: Tensor) -> tuple[Tensor, Tensor]:
            one, two = f.lif1.init_leaky(), f.lif2.init_leaky()
            spikes, current = [], f.conv(x)
            for _ in range(4):
                found, one = f.lif1(current, one)
                found, two = f.lif2(f.fc(found.flatten(1)), two)
                spikes.append(found)
            return torch.stack(spikes), two

        return Net(forward, conv=nn.Sequential(block(3, 8), nn.AvgPool2d(4)), lif1=package.Leaky(
            beta=0.9), fc=nn.Linear(128, 5), lif2=package.Leaky(beta=0.9))  # fmt: skip

    def complex_net() -> nn.Module:
        layer = module("complexPyTorch.complexLayers")
        relu = module("complexPyTorch.complexFunctions").complex_relu

        def forward(f: Any, x: Tensor) -> Tensor:
            x = relu(f.bn(f.conv1(torch.complex(x, torch.zeros_like(x)))))
            x = relu(f.conv2(x)).abs().mean((2, 3))
            return F.log_softmax(f.fc(x), 1)

        return Net(forward, conv1=layer.ComplexConv2d(3, 12, 3, 2, 1),
            bn=layer.NaiveComplexBatchNorm2d(12), conv2=layer.ComplexConv2d(12, 24, 3, 2, 1),
            fc=nn.Linear(24, 5))  # fmt: skip

    def equivariant() -> nn.Module:
        e2cnn = module("e2cnn.nn")
        act = module("e2cnn.gspaces").Rot2dOnR2(N=4)
        kinds = [e2cnn.FieldType(act, n * [r]) for n, r in ((3, act.trivial_repr),
                 (4, act.regular_repr), (8, act.regular_repr))]  # fmt: skip
        steps = [e2cnn.SequentialModule(e2cnn.R2Conv(a, b, 3, padding=1), e2cnn.InnerBatchNorm(b),
                 e2cnn.ReLU(b), e2cnn.PointwiseAvgPool(b, 2)) for a, b in
                 pairwise(kinds)]  # fmt: skip

        def forward(f: Any, x: Tensor) -> Tensor:
            found = f.gpool(f.two(f.one(e2cnn.GeometricTensor(x, kinds[0])))).tensor
            return f.fully_net(found.mean((2, 3)))

        return Net(forward, one=steps[0], two=steps[1], gpool=e2cnn.GroupPooling(kinds[2]),
            fully_net=nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ELU(), nn.Linear(16,
            5)))  # fmt: skip

    return [
        net("soft mixture of experts in a transformer", in_tokens(of("soft_moe_pytorch", "SoftMoE",
            24, num_experts=2, num_slots=4)), 32, "fc<"),
        net("sparse mixture of experts, and its loss", experts, 32, "fc<"),
        net("Mamba on patches", in_tokens(mamba), 32, "fc<"),
        net("Conformer on patches", in_tokens(of("conformer", "Conformer", 24, depth=1,
            dim_head=12, heads=2, conv_kernel_size=3)), 32, "fc<"),
        net("closed-form cells on patches", in_tokens(of("ncps.torch", "CfC", 24, 24)), 32, "fc<"),
        net("scalar codes on patches", in_tokens(of("vector_quantize_pytorch", "FSQ", [5, 5,
            5], dim=24)), 32, "fc<"),
        net("axial attention", in_maps(of("axial_attention", "AxialAttention", 24, dim_index=1,
            heads=2)), 32, "5<"),
        net("deformable attention", in_maps(of("deformable_attention", "DeformableAttention",
            dim=24, dim_head=12, heads=2, downsample_factor=2, offset_kernel_size=4)), 32, "5<"),
        net("DropBlock of a package", in_maps(of("dropblock", "DropBlock2D", 0.1, 3)), 32, "5<"),
        net("neural ODE", ode, 32, "fc_layers.4<"),
        net("KAN as a head", kan, 32, "body>"),
        net("Bayesian LeNet", bayesian, 32, "9< | 7<"),
        net("spiking net, steps first", spiking, 32, "fc< | lif1>flat@0 | conv>mean | refuse"),
        net("complex net of a package", complex_net, 32, "fc<"),
        net("rotation-equivariant net", equivariant, 32, "fully_net.3< | fully_net.0<"),
    ]  # fmt: skip


def whole(net: Library) -> list[Expert]:
    """Nets of packages."""

    def nature(name: str = "NatureCNN") -> nn.Module:
        space = module("gymnasium").spaces.Box(0, 1, (3, 36, 36))
        package = module("stable_baselines3.common.torch_layers")
        return getattr(package, name)(space, features_dim=32, normalized_image=True)

    def policy(name: str) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            spaces = module("gymnasium").spaces
            kind = getattr(module(name.rpartition(".")[0]), name.rpartition(".")[2])
            options: dict[str, Any] = {"features_extractor_kwargs": {"features_dim": 32}}
            image = spaces.Box(0, 1, (3, 36, 36))
            options["features_extractor_kwargs"]["normalized_image"] = True
            made = kind(image, spaces.Discrete(4), lambda _: 1e-3, normalize_images=False,
                        **options)  # fmt: skip
            return made.q_net if hasattr(made, "q_net") else made

        return build

    def flips() -> nn.Module:
        ttach = module("ttach")
        model = nn.Sequential(tower(3), nn.Dropout(0.2), nn.Linear(24, 5))
        return ttach.ClassificationTTAWrapper(model, ttach.aliases.flip_transform())

    def codes() -> nn.Module:
        quantise = module("vector_quantize_pytorch").VectorQuantize(16, 32,
            accept_image_fmap=True)  # fmt: skip

        def forward(f: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            code, ids, loss = f.quantise(f.encoder(x))
            return f.decoder(code), ids, loss

        return Net(forward, encoder=nn.Sequential(maps(), nn.Conv2d(24, 16, 1)),
            quantise=quantise, decoder=nn.ConvTranspose2d(16, 3, 4, 4))  # fmt: skip

    def flow() -> nn.Module:
        package = module("normflows")
        parts = [package.flows.MaskedAffineFlow(torch.tensor([1.0, 0.0] * 5), package.nets.MLP(
                 [10, 16, 10]), package.nets.MLP([10, 16, 10])) for _ in range(2)]  # fmt: skip
        base = package.distributions.base.DiagGaussian(10)
        return package.NormalizingFlow(base, parts)

    def diffpool() -> nn.Module:
        package = module("torch_geometric.nn")

        def forward(f: Any, x: Tensor) -> tuple[Tensor, Tensor]:
            links = f.links.expand(len(x), -1, -1)
            found, assigned = f.embed(x, links).relu(), f.pool(x, links)
            found, links, loss, other = package.dense_diff_pool(found, links, assigned)
            found = f.embed2(found, links).relu().mean(1)
            return F.log_softmax(f.lin2(f.lin1(found).relu()), 1), loss + other

        made = Net(forward, embed=package.DenseGCNConv(6, 24), pool=package.DenseGCNConv(6, 3),
            embed2=package.DenseSAGEConv(24, 32), lin1=nn.Linear(32, 24), lin2=nn.Linear(24, 3)
            )  # fmt: skip
        made.register_buffer("links", (torch.rand(1, 8, 8) > 0.5).float())
        return made

    def grid() -> nn.Module:
        package = module("torch_geometric.nn")

        def forward(f: Any, x: Tensor) -> Tensor:
            x = f.patch(x).flatten(2).mT
            x = f.conv2(f.conv1(x, f.edges).relu(), f.edges).relu()
            return f.lin(F.dropout(x.mean(1), 0.5, f.training))

        made = Net(forward, patch=nn.Conv2d(3, 16, 8, 8), conv1=package.GCNConv(16, 24),
                   conv2=package.GraphConv(24, 24), lin=nn.Linear(24, 5))  # fmt: skip
        made.register_buffer("edges", torch.randint(16, (2, 40)))
        return made

    def molecules() -> nn.Module:
        package = module("egnn_pytorch")

        def forward(f: Any, x: Tensor) -> Tensor:
            feats, _ = f.net(f.embed(x[..., 3:]), x[..., :3])
            return f.energy(feats.sum(1)).squeeze(1)

        body = package.EGNN_Network(depth=2, dim=24)
        return Net(forward, embed=nn.Linear(4, 24), net=body, energy=mlp(24, 16, 1))

    def clouds() -> nn.Module:
        layer = module("point_transformer_pytorch").PointTransformerLayer(dim=24,
            pos_mlp_hidden_dim=16, attn_mlp_hidden_mult=2, num_neighbors=6)  # fmt: skip

        def forward(f: Any, x: Tensor) -> Tensor:
            found = f.lift(x)
            found = found + f.layer(found, x, mask=torch.ones(x.shape[:2]).bool())
            return f.cls(f.norm(found).amax(1))

        return Net(forward, lift=nn.Linear(3, 24), layer=layer, norm=nn.LayerNorm(24),
                   cls=nn.Linear(24, 5))  # fmt: skip

    def mel() -> nn.Module:
        frontend = module("nnAudio.features").MelSpectrogram(sr=8000, n_fft=128, n_mels=32,
            hop_length=32, verbose=False, trainable_mel=True)  # fmt: skip
        return Net(lambda f, x: f.fc(f.body((f.mel(x) + 1e-6).log()[:, None])), mel=frontend,
                   body=tower(1), fc=nn.Linear(24, 5))  # fmt: skip

    def objects() -> nn.Module:
        slots = module("slot_attention").SlotAttention(num_slots=3, dim=24, hidden_dim=32)

        def forward(f: Any, x: Tensor) -> Tensor:
            return f.decoder(f.slots(f.norm(f.body(x).flatten(2).mT)))

        return Net(forward, body=maps(), norm=nn.LayerNorm(24), slots=slots,
                   decoder=nn.Linear(24, 10))  # fmt: skip

    actor = "stable_baselines3.common.policies.ActorCriticCnnPolicy"
    return [
        net("NatureCNN of stable-baselines3", nature, 36, ">"),
        net("actor and critic of stable-baselines3", policy(actor), 36, "features_extractor>"),
        net("q_net of stable-baselines3", policy("stable_baselines3.dqn.policies.CnnPolicy"), 36,
            "features_extractor>"),
        net("flips of ttach, scores averaged", flips, 32, "model.2< | refuse"),
        net("codes of vector-quantize-pytorch", codes, 32,
            "encoder>mean | quantise>mean@0 | refuse"),
        net("normalizing flow, a loss (table)", flow, (10,), "refuse"),
        net("DiffPool of torch_geometric", diffpool, (8, 6), "lin2< | lin1<"),
        net("graph convolutions of torch_geometric on patches", grid, 32, "lin<"),
        net("E(n) net, an energy", molecules, (7, 7), "energy.2< | energy<"),
        net("point transformer", clouds, (20, 3), "cls<"),
        net("TabNet, and its sparsity", of("pytorch_tabnet.tab_network", "TabNet", 10, 3,
            group_attention_matrix=torch.eye(10)), (10,), "tabnet.final_mapping<"),
        net("mel bands of nnAudio", mel, (1600,), "fc<"),
        net("slots of a package", objects, 32,
            "norm>tokens | slots>tokens | body>mean | decoder<tokens | refuse"),
        net("segmentation with flips (ttach)", lambda: module("ttach").SegmentationTTAWrapper(
            nn.Sequential(maps(), nn.ConvTranspose2d(24, 2, 4, 4)),
            module("ttach").aliases.hflip_transform()), 32, "model.0>mean | refuse"),
        net("UNet2DModel of diffusers, its time fixed", unet, 32, "body.mid_block>mean | refuse"),
    ]  # fmt: skip


def unet() -> nn.Module:
    """A net of diffusion, as a feature extractor."""
    options: dict[str, Any] = {"sample_size": 32, "block_out_channels": (16, 32)}
    options |= {"norm_num_groups": 4, "layers_per_block": 1, "attention_head_dim": 8}
    options |= {"down_block_types": ("DownBlock2D", "AttnDownBlock2D")}
    options |= {"up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    return Net(lambda f, x: f.body(x, timestep=100).sample,
               body=module("diffusers").UNet2DModel(**options))  # fmt: skip


def nets(net: Library) -> list[Expert]:
    """All of them."""
    return layers(net) + whole(net)
