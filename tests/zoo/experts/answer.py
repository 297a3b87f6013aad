"""Where a net should be read: the language of the catalogue."""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Shape = int | tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """A value of a net, and how it becomes a vector.

    Written ``layer side pool @key``: ``"fc<"`` is the input of ``fc``, ``"encoder>mean@-1"`` the
    last part of what ``encoder`` returns, averaged over positions; ``">token"`` the first token of
    the net's own output. Pools: none (a vector already), "mean" (B, C, ...), "tokens" the mean of
    (B, ..., C), "token" the first, "skip4" the mean of all but
    the first four, "flat", "last" the last of (B, T, C), "each4" the mean of every four of
    (4 B, C).
    """

    layer: str
    side: str
    pool: str
    keys: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Answer":
        """Read an answer as it is written in the catalogue."""
        found = re.fullmatch(r"([\w.]*)([<>])(\w*)((?:@[\w.-]+)*)", text.strip())
        if not found:
            raise ValueError(f"{text!r} is no answer")
        layer, side, pool, keys = found.groups()
        return cls(layer, side, pool, tuple(keys.split("@")[1:]))

    def vector(self, value: Any) -> Tensor:
        """(B, D) of what the layer takes or gives."""
        for key in self.keys:
            if isinstance(value, Mapping):
                value = value[key]
            elif hasattr(value, key):
                value = getattr(value, key)
            else:
                value = value[int(key)]
        if isinstance(value, (tuple, list)) and not self.keys:
            value = value[0]
        return POOLS[self.pool](value)


def only_one(value: Tensor) -> Tensor:
    """A vector that has it already, perhaps with positions of size 1."""
    if value[0].numel() != max(value.shape[1:]):
        raise ValueError(f"{tuple(value.shape)} is no vector an item")
    return value.flatten(1)


POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "": only_one,
    "mean": lambda value: value.flatten(2).mean(2),
    "tokens": lambda value: value.flatten(1, -2).mean(1),
    "token": lambda value: value[:, 0],
    "skip1": lambda value: value[:, 1:].mean(1),
    "skip4": lambda value: value[:, 4:].mean(1),
    "flat": lambda value: value.flatten(1),
    "last": lambda value: value[:, -1],
    "each4": lambda value: value.unflatten(0, (-1, 4)).mean(1),
}


@dataclass(frozen=True)
class Expert:
    """A net and the expectation of it.

    Attributes:
        name: what the table calls it.
        library: where it is from.
        make: builds it, with random weights.
        shape: the side of its images, which go through the library's own views; or the shape of an
            item that is fed as it is.
        answers: the values that an expert would read, the first one first.
        refuse: whether an error or a warning that names the layers is as good: no value of the net
            stands out as the representation.
        channels: of its images.
        ask: whether an expert would ask: several values are about equally good, and a warning that
            names them is due, also where one of them is read.
    """

    name: str
    library: str
    make: Callable[[], nn.Module]
    shape: Shape
    answers: tuple[Answer, ...]
    refuse: bool = False
    channels: int = 3
    ask: bool = False


@dataclass(frozen=True)
class Library:
    """Makes the entries of one library."""

    name: str

    def __call__(
        self,
        name: str,
        make: Callable[[], nn.Module],
        shape: Shape,
        answers: str,
        *,
        channels: int = 3,
    ) -> Expert:
        """One line of the catalogue; ``answers`` are parted by "|", "refuse" or "ask" is one."""
        words = [word.strip() for word in answers.split("|")]
        found = tuple(Answer.parse(word) for word in words if word not in ("refuse", "ask"))
        ask = "ask" in words
        refuse = ask or "refuse" in words
        return Expert(name, self.name, make, shape, found, refuse, channels, ask)


def is_held_back(name: str) -> bool:
    """Whether the net is of the third that nobody who works on the rule is told about."""
    return hashlib.sha256(name.encode()).digest()[0] % 3 == 0


def values(
    net: nn.Module, answers: tuple[Answer, ...], x: Tensor, prepare: Callable[[], None]
) -> list[Tensor | str]:
    """Each answer's vectors in one forward of ``net``; where there is none, the reason."""
    seen: dict[int, Any] = {}
    handles = []
    for index, answer in enumerate(answers):
        try:
            layer = net.get_submodule(answer.layer)
        except AttributeError as error:
            seen[index] = error
            continue
        handles.append(listen(layer, answer, index, seen))
    try:
        prepare()
        with torch.no_grad():
            net(x)
    finally:
        for handle in handles:
            handle.remove()
    missing = "the layer was not reached"
    return [
        value if isinstance(value := seen.get(index, missing), Tensor) else str(value)
        for index in range(len(answers))
    ]


def listen(layer: nn.Module, answer: Answer, index: int, seen: dict[int, Any]) -> Any:
    """A hook that keeps the vectors of the layer's last call."""

    def keep(value: Any) -> None:
        try:
            seen[index] = answer.vector(value).detach().clone()
        except Exception as error:
            seen[index] = error

    if answer.side == "<":
        return layer.register_forward_pre_hook(
            lambda _, args, kwargs: keep((*args, *kwargs.values())[0]), with_kwargs=True
        )
    return layer.register_forward_hook(lambda _, args, output: keep(output))
