"""Pretrain a backbone on the images that you have, in a run that may be killed at any moment.

    python pretrain.py --data photos/ --backbone timm/resnet50 --pretrained --epochs 100
    python pretrain.py --data photos/ ... --resume      # the same again: go on where it stopped
    torchrun --nproc-per-node 8 pretrain.py --data photos.tar --backbone torchvision/resnet50

``--data`` is a folder, a zip or a tar, or a folder of those (a WebDataset), read where they lie.
Broken files are skipped and named. ``--output`` gets log, checkpoints and the backbone. Where
folders give labels, a part is held out: nearest neighbours measure each epoch, a verdict the whole.
A run that goes on comes out bit for bit. Needs ``pip install "byol_wrap[pretrain]"``.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
from lightning.fabric import Fabric, seed_everything
from lightning.fabric.strategies import ModelParallelStrategy
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torch.utils.tensorboard import SummaryWriter
from torchvision.models import get_model

from byol_wrap import Learner, TrainingRecipe, training_recipe
from byol_wrap.data import BatchOrder, ImageFiles, Item, Skipped, collate, held_out
from byol_wrap.evaluation import Progress
from byol_wrap.training.saving import Checkpoints, plain_state
from byol_wrap.views.sheet import sheet

FREE = {"data", "output", "resume", "workers", "minutes", "log", "log_every"}  # may change
SHOWN = ("loss", "knn", "std_ratio", "rank", "images_per_second", "skipped")


def backbone(args: argparse.Namespace) -> nn.Module:
    """The network that ``--backbone`` names."""
    home, _, name = args.backbone.partition("/")
    options: dict[str, Any] = json.loads(args.backbone_options)
    if home == "timm":
        return import_module("timm").create_model(name, pretrained=args.pretrained, **options)
    if home == "torchvision":
        return get_model(name, weights="DEFAULT" if args.pretrained else None, **options)
    if ":" not in args.backbone:
        raise SystemExit(f"--backbone {home}: write timm/{home}, torchvision/{home} or MODULE:F.")
    return resolve_name(args.backbone)(**options)


def wrapped(
    net: nn.Module, args: argparse.Namespace, steps: int, at_once: int
) -> tuple[Learner, TrainingRecipe]:
    """The learner around it, normalised as timm says that the network wants it; the recipe."""
    shared = {"steps": steps, "batch_size": at_once, "pretrained": args.pretrained or None}
    recipe = replace(training_recipe(net, args.image_size, **shared), **json.loads(args.recipe))
    recipe = recipe if args.lr is None else recipe.at_rate(args.lr)
    method = getattr(import_module("byol_wrap"), args.method)
    own = getattr(net, "pretrained_cfg", None) or {}
    fed = {name: own[name] for name in ("mean", "std") if name in own}
    fed |= {"augment_fn": resolve_name(args.views), "augment_fn2": None} if args.views else {}
    return method(net, **recipe.arguments(method) | fed | json.loads(args.method_options)), recipe


def shard(learner: nn.Module, mesh: Any) -> nn.Module:
    """FSDP2, of PyTorch 2.6 and newer, also where ``embed`` is called."""
    fsdp = import_module("torch.distributed.fsdp")
    fsdp.fully_shard(learner, mesh=mesh["data_parallel"])
    fsdp.register_fsdp_forward_method(learner, "embed")
    return learner


class Board(SummaryWriter):
    """TensorBoard, to be called as W&B and trackio are."""

    Image = staticmethod(torch.as_tensor)  # (H, W, 3), for ``log``

    def log(self, values: dict[str, Any], step: int) -> None:
        """Figures and pictures of a step."""
        for name, value in values.items():
            if isinstance(value, float | int):  # in one group of the page
                self.add_scalar(f"train/{name}", value, step)
            else:
                self.add_image(name, value, step, dataformats="HWC")
        self.flush()


class Run:
    """One process's part, from the first step or the last checkpoint to the verdict."""

    def __init__(self, fabric: Fabric, args: argparse.Namespace) -> None:
        self.fabric, self.args, world = fabric, args, fabric.world_size
        self.files = ImageFiles(args.data, round(1.15 * args.image_size))
        self.train, self.held = held_out(self.files.labels, most=args.held_out)
        self.at_once = args.batch_size * world * args.accumulate
        self.epoch = len(self.train) // self.at_once  # in steps
        self.steps = max(1, args.epochs * self.epoch)
        held = len(self.held) or "none, as no two classes have 40 images,"
        fabric.print(f"{self.files}\n{held} of them held out; {self.steps} steps")
        torch.manual_seed(args.seed)  # the same weights in all processes
        net = backbone(args)
        if world > 1 and fabric.device.type == "cuda":
            net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
        learner, recipe = wrapped(net, args, self.steps, self.at_once)
        self.learner = learner.to(fabric.device)
        self.model = fabric.setup_module(learner)
        optimizer, self.scheduler = recipe.optimizer(learner)
        learner.attach(optimizer)  # the optimizer itself, before Fabric wraps it
        self.optimizer = fabric.setup_optimizers(optimizer)
        self.skipped = Skipped()
        measured = Subset(self.files.at(args.image_size), self.held.tolist())
        self.progress = Progress(learner, lambda: self.load(measured, batch_size=args.batch_size))
        parts = {"learner": learner, "optimizer": optimizer, "scheduler": self.scheduler}
        parts |= {"skipped": self.skipped, "progress": self.progress}
        given = {name: value for name, value in vars(args).items() if name not in FREE}
        given |= {"images": self.files.fingerprint, "processes": world}
        shared = (args.output, parts, given, fabric.global_rank, fabric.barrier)
        self.checkpoints = Checkpoints(*shared, sharded=args.strategy == "fsdp2")
        there = self.checkpoints.whole()
        if there and not args.resume:
            raise SystemExit(f"{args.output} holds a run: add --resume, or give another --output.")
        try:
            self.first = self.checkpoints.resume()
        except (EOFError, OSError, RuntimeError) as e:
            raise SystemExit(f"{there[-1]} is damaged: remove it to go on from before it.") from e
        new = f" ({args.output} holds no checkpoint yet)" if args.resume and not there else ""
        fabric.print(f"{args.method} at {learner.representation}, step {self.first}{new}")
        self.log: Any = None
        if fabric.is_global_zero and args.log == "tensorboard":
            self.log = Board(args.output, purge_step=self.first + 1)
        elif fabric.is_global_zero:
            name = os.environ.setdefault("WANDB_RUN_ID", args.output.name)
            self.log = import_module(args.log)
            self.log.init(
                project="byol_wrap", name=name, config=given | asdict(recipe), resume="allow"
            )

    def load(self, data: Any, **options: Any) -> Iterator[Item]:
        """Batches, decoded in workers and moved to the device; what is skipped is noted."""
        options |= {"pin_memory": self.fabric.device.type == "cuda", "collate_fn": collate}
        loader = DataLoader(data, num_workers=self.args.workers, **options)
        loaded = self.fabric.setup_dataloaders(loader, use_distributed_sampler=False)
        return self.skipped.watch(loaded)

    def go(self) -> None:
        """Train, and say what it was worth."""
        if len(self.held):
            self.progress.begin()
        parts, share = self.args.accumulate, (self.fabric.global_rank, self.fabric.world_size)
        order = BatchOrder(
            self.train, self.args.batch_size, self.epoch * parts, self.args.epochs,
            seed=self.args.seed, first=self.first * parts, share=share,
        )  # fmt: skip
        batches, losses, last = self.load(self.files, batch_sampler=order), [], self.first
        clock = saved = time.monotonic()
        for step in range(self.first + 1, self.steps + 1):
            for part in range(parts):
                images = next(batches).image  # before the seed: a loader draws when it starts
                number = ((self.args.seed * 1_000_003 + step) * parts + part) * share[1] + share[0]
                seed_everything(number % 2**32, verbose=False)  # all draws depend on it alone
                with self.fabric.no_backward_sync(self.model, enabled=part + 1 < parts):
                    loss = self.model(images) / parts
                    self.fabric.backward(loss)
                losses.append(loss.detach())
            rate, ends = self.scheduler.get_last_lr()[0], step % self.epoch == 0
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.scheduler.step()
            if not ends and step % self.args.log_every and step > self.first + 1:
                continue
            loss = float(self.fabric.all_reduce(sum(losses) / (step - last)))
            speed = (step - last) * self.at_once / (time.monotonic() - clock)
            self.report(step, {"loss": loss, "rate": rate, "images_per_second": speed}, images)
            if self.fabric.broadcast(ends or time.monotonic() - saved > 60 * self.args.minutes):
                with self.checkpoints.new(step) as folder:
                    weights = plain_state(self.learner.net)
                    if self.fabric.is_global_zero:
                        save_file(weights, folder / "backbone.safetensors")
                saved = time.monotonic()
            losses, last, clock = [], step, time.monotonic()
        self.fabric.print(f"{len(self.skipped)} broken files were skipped")
        if len(self.held):
            self.fabric.print(found := self.progress.verdict())
            (self.args.output / "verdict.json").write_text(json.dumps(found.as_dict(), indent=2))

    def report(self, step: int, values: dict[str, Any], images: Tensor) -> None:
        """Figures to the screen and the log; at the end of an epoch nearest neighbours, views."""
        self.skipped.share()
        ends = step % self.epoch == 0
        values |= {"skipped": len(self.skipped)} | self.learner.health()
        values |= {"knn": self.progress.knn()} if ends and len(self.held) else {}
        shown = (f"{name} {values[name]:.4g}" for name in SHOWN if name in values)
        self.fabric.print(f"step {step}: {', '.join(shown)}")
        if self.log is not None:
            if ends or step == 1:
                picture = sheet(*self.learner.views(images[:8])).numpy()
                values["views"] = self.log.Image(picture)
            self.log.log(values, step=step)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="a folder, a zip, a tar, or a folder of those")
    add("--output", type=Path, default="pretrained", help="folder for checkpoints and the log")
    add("--resume", action="store_true", help="go on from the last checkpoint, if there is one")
    add("--backbone", default="torchvision/resnet50", help="timm/NAME, torchvision/NAME, MODULE:F")
    add("--backbone-options", default="{}", help="keyword arguments for it, as JSON")
    add("--pretrained", action="store_true", help="its pretrained weights")
    add("--method", default="BYOL", choices=["BYOL", "SimSiam", "SimCLR", "MoCo"], help="which")
    add("--method-options", default="{}", help="keyword arguments for it, as JSON")
    add("--image-size", type=int, default=224, help="side of the views in pixels")
    add("--views", help="MODULE:F for your own; gets images of 1.15 times that size")
    add("--epochs", type=int, default=100, help="times that each image is seen")
    add("--batch-size", type=int, default=64, help="images a forward and process")
    add("--accumulate", type=int, default=1, help="batches a step")
    add("--lr", type=float, help="highest rate of the heads; training_recipe's by default")
    add("--recipe", default="{}", help="what else of TrainingRecipe is changed, as JSON")
    add("--held-out", type=int, default=2000, help="labelled images at most to measure with")
    add("--seed", type=int, default=0, help="of weights, order and views")
    add("--workers", type=int, default=min(8, os.cpu_count() or 1), help="that decode, a process")
    add("--minutes", type=float, default=10, help="between checkpoints, besides each epoch's end")
    add("--log", default="tensorboard", choices=["tensorboard", "wandb", "trackio"], help="where")
    add("--log-every", type=int, default=50, help="steps")
    add("--strategy", default="auto", help="auto, ddp, fsdp2 (by torchrun), or another of Fabric's")
    here = os.environ.get("LOCAL_WORLD_SIZE", "auto")  # torchrun's
    for name, default in (("accelerator", "auto"), ("devices", here), ("precision", "32-true")):
        add(f"--{name}", default=default, help="as Fabric takes it")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Start Fabric, in as many processes as there are, and run in each."""
    args = parse(arguments)
    world, here = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    strategy = ModelParallelStrategy(shard, world, 1) if args.strategy == "fsdp2" else args.strategy
    options = {"precision": args.precision, "num_nodes": world // here, "devices": args.devices}
    fabric = Fabric(accelerator=args.accelerator, strategy=strategy, **options)
    fabric.launch()
    Run(fabric, args).go()
    fabric.print(f"The backbone: {args.output}/step-*/backbone.safetensors, the last one")


if __name__ == "__main__":
    main()
