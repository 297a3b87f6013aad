"""MoCo: tell an image's other view from a queue of earlier images, as a slow copy sees them."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from byol_wrap.learner import Learner, Pool
from byol_wrap.methods.heads import drawn_apart, is_count, moco_projector
from byol_wrap.methods.losses import check_temperature, moco_loss
from byol_wrap.methods.processes import gather, in_group, own_share, processes, same_permutation
from byol_wrap.views import MOCO_VIEW, Augment


class MoCo(Learner):
    """Momentum contrast (v2) around any backbone.

    The online network makes a query of one view; the target network, its moving average, makes a
    key of the other. The query should be like its key, and unlike the keys of earlier batches,
    which a queue keeps: negatives do not need large batches.

    Args:
        net: the backbone. This and what is not described here is as for ``Learner``.
        image_size: side, or (height, width), in pixels of the views.
        hidden_layer: the layer that represents an image.
        projection_size: size of queries and keys.
        projection_hidden_size: width of the projector's hidden layer; None means the
            representation's size.
        queue_size: how many keys are kept, at least as many as a batch has in all processes;
            65,536 on ImageNet.
        temperature: similarities are divided by it.
        moving_average_decay: tau in [0, 1], constant or that of the first update.
        total_steps: number of updates over which tau rises to 1 along a cosine; None keeps it.
        symmetric: whether each view is a query once, which costs as much as twice the steps; the
            loss is then the sum of both directions.
        key_parts: into how many parts, each with BatchNorm statistics of its own, a shuffled batch
            of keys is divided, so that statistics do not tell which key belongs to which query.
            Several processes shuffle among themselves in any case. None or 1: in one forward.
        augment_fn: replaces the pipeline of both views.
        augment_fn2: replaces that of the second view.
        mean: what is subtracted from each channel of the images.
        std: what they are divided by.
        channels: how many the images have.
        pool: how the layer's value becomes a vector.
        pretrained: whether ``net`` has been trained for long; None asks its normalisation layers.
        sync_batchnorm: changes nothing here: the head has no BatchNorm.

    Attributes:
        queue: a buffer (queue_size, projection_size), unit rows, the same in all processes.
        queue_position: a buffer, the row that is replaced next.

    Reference:
        He et al. 2020 (arXiv 1911.05722), algorithm 1; Chen et al. 2020 (arXiv 2003.04297); and
        facebookresearch/moco. Deviation: a batch need not divide the queue, it wraps around.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
        >>> learner = MoCo(net, image_size=32, queue_size=256)
        >>> learner(torch.rand(16, 3, 32, 32)).backward()
        >>> learner.queue_position.item()
        16
    """

    queue: Tensor
    queue_position: Tensor

    recipes = (MOCO_VIEW, MOCO_VIEW)
    _moves_on = True
    _settled = (
        *Learner._settled,
        "projection_size",
        "projection_hidden_size",
        "queue_size",
        "sync_batchnorm",
    )

    def __init__(
        self,
        net: nn.Module,
        image_size: int | tuple[int, int] | None = None,
        hidden_layer: str | int | None = None,
        *,
        projection_size: int = 128,
        projection_hidden_size: int | None = None,
        queue_size: int = 4096,
        temperature: float = 0.2,
        moving_average_decay: float = 0.999,
        total_steps: int | None = None,
        symmetric: bool = False,
        key_parts: int | None = None,
        augment_fn: Augment | None = None,
        augment_fn2: Augment | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        channels: int | None = None,
        pool: Pool | None = None,
        pretrained: bool | None = None,
        sync_batchnorm: bool | None = None,
    ) -> None:
        check_temperature("MoCo", temperature)
        for name, number in (
            ("queue_size", queue_size),
            ("key_parts", 1 if key_parts is None else key_parts),
        ):
            if not is_count(number):
                raise ValueError(f"{name} should be a positive integer, got {number!r}.")
        with drawn_apart():
            projector = moco_projector(projection_hidden_size, projection_size)
        super().__init__(
            net,
            image_size,
            hidden_layer,
            projector=projector,
            recipes=self.recipes,
            augment_fn=augment_fn,
            augment_fn2=augment_fn2,
            mean=mean,
            std=std,
            channels=channels,
            moving_average_decay=moving_average_decay,
            total_steps=total_steps,
            pool=pool,
            pretrained=pretrained,
        )
        self.temperature, self.symmetric = temperature, symmetric
        self.key_parts = None if key_parts is None else int(key_parts)
        like = next(self.target.projector.parameters())
        drawn = torch.Generator("cpu")  # the same in all processes, whatever their seeds
        shape = (queue_size, projection_size)
        noise = torch.randn(shape, generator=drawn, dtype=torch.float32, device="cpu")
        self.register_buffer("queue", F.normalize(noise, dim=1).to(like.device, like.dtype))
        self.register_buffer("queue_position", torch.zeros_like(self.step))

    def loss(self, view1: Tensor, view2: Tensor) -> Tensor:
        """InfoNCE of the first view's queries; symmetric, of both views'."""
        if self.symmetric:
            direction1, direction2 = self.directions(view1, view2)
            return direction1 + direction2
        self.check_room(len(view2))
        key = self.keys(view2)
        self._watch.saw_key(key)
        return moco_loss(self.project(view1), key, self.enqueue(key), self.temperature)

    def directions(self, view1: Tensor, view2: Tensor) -> Iterator[Tensor]:
        """Of a symmetric loss: each view's queries against the other's keys; equation 1."""
        if not self.symmetric:
            yield from super().directions(view1, view2)
        self.check_room(2 * len(view1))
        key1, key2 = self.keys(view1), self.keys(view2)
        queue = self.enqueue(key1, key2)
        yield moco_loss(self.project(view1), key2, queue, self.temperature)
        yield moco_loss(self.project(view2), key1, queue, self.temperature)

    @torch.no_grad()
    def keys(self, view: Tensor) -> Tensor:
        """What the target says of a view, (B, P): of shuffled images, in their order again.

        In eval mode, where BatchNorm has no statistics of the batch, nothing is shuffled.
        """
        parts = min(self.key_parts or 1, max(1, len(view) // 2))
        if not self.training or (parts == 1 and not in_group()):
            return self.target.project(view)
        views = gather(view)
        order = same_permutation(len(views), view.device)
        shuffled = own_share(views[order]).tensor_split(parts)
        keys = gather(torch.cat([self.target.project(part) for part in shuffled]))
        return own_share(torch.empty_like(keys).index_copy_(0, order, keys))

    def enqueue(self, *parts: Tensor) -> Tensor:
        """Let the keys of all processes replace the oldest; gives the queue as it was before.

        In eval mode, or where no gradient is wanted, nothing is replaced.
        """
        if not self._takes_keys():
            return self.queue
        self.check_room(sum(map(len, parts)))
        before = self.queue.clone()
        with torch.no_grad():
            keys = F.normalize(torch.cat([gather(keys) for keys in parts]).to(before.dtype), dim=1)
            rows = torch.arange(len(keys), device=keys.device) + self.queue_position
            rows = rows % len(before)
            # A key that is not finite would spoil every loss until it is replaced.
            keys = torch.where(keys.isfinite().all(dim=1, keepdim=True), keys, before[rows])
            self.queue.index_copy_(0, rows, keys)
            self.queue_position.add_(len(keys)).remainder_(len(before))
        return before

    def _takes_keys(self) -> bool:
        return self.training and torch.is_grad_enabled()

    def check_room(self, keys: int) -> None:
        """Refuse more keys of each process than there are rows, before anything is changed."""
        keys *= processes()
        if self._takes_keys() and keys > len(self.queue):
            raise ValueError(
                f"A batch of {keys} keys does not fit into a queue of {len(self.queue)}: give "
                f"queue_size={keys} or more, or smaller batches."
            )
