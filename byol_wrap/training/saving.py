"""Checkpoints that are there whole, or not at all, whenever a run is killed."""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

NAME = re.compile(r"step-\d{8,}")


class Checkpoints:
    """The checkpoints of a run: folders ``step-00000123`` in one folder.

    Args:
        folder: where they are.
        parts: what a checkpoint brings back: objects with ``state_dict`` and ``load_state_dict``,
            of tensors and plain Python values.
        settings: what a run that goes on must have in common with the one that stopped.
        process: which process this is; the first names the folders.
        barrier: waits for the other processes.
        sharded: whether each process holds a part of the state, and so writes a file of its own.
        keep: how many stay; older ones are removed when a new one is there.
    """

    def __init__(
        self,
        folder: Path,
        parts: Mapping[str, Any],
        settings: Mapping[str, Any],
        process: int = 0,
        barrier: Callable[[], Any] = lambda: None,
        *,
        sharded: bool = False,
        keep: int = 2,
    ) -> None:
        self.folder, self.parts, self.settings = folder, parts, dict(settings)
        self._first, self._barrier, self._keep = process == 0, barrier, keep
        self._file = f"process-{process if sharded else 0}.pt"
        self._writes = sharded or self._first

    def whole(self) -> list[Path]:
        """Those that there are, the latest last."""
        found = self.folder.glob("step-*")
        return sorted((p for p in found if NAME.fullmatch(p.name)), key=lambda p: int(p.name[5:]))

    def resume(self) -> int:
        """Bring the parts back to the latest checkpoint; gives its step, 0 where there is none.

        Raises:
            ValueError: it was made with other settings; the message names the first.
        """
        if not self.whole():
            return 0
        saved = torch.load(self.whole()[-1] / self._file, weights_only=True)
        for name, value in self.settings.items():
            if (was := saved["settings"].get(name)) != value:
                raise ValueError(
                    f"The checkpoint in {str(self.folder)!r} was made with {name} = {was!r}, this "
                    f"run has {value!r}. Go on with what the run began with, or begin another one "
                    "in another folder."
                )
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])
        return int(saved["step"])

    @contextmanager
    def new(self, step: int) -> Iterator[Path]:
        """Write a checkpoint; all processes enter and leave together.

        It gets its name in one call when all its files are on the disk: whatever happens, there is
        this checkpoint or the last, and never a part of one.

        Yields:
            The folder that is being written, for files of your own.
        """
        part, whole = self.folder / "part", self.folder / f"step-{step:08d}"
        if self._first:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        self._barrier()
        if self._writes:
            state = {name: part.state_dict() for name, part in self.parts.items()}
            torch.save(state | {"step": step, "settings": self.settings}, part / self._file)
            _sync(part / self._file)
        yield part
        self._barrier()
        if self._first:
            for path in (*part.iterdir(), part):
                _sync(path)
            shutil.rmtree(whole, ignore_errors=True)
            os.replace(part, whole)
            _sync(self.folder)
            for old in self.whole()[: -self._keep]:
                shutil.rmtree(old)
        self._barrier()


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's weights for others to load: whole, on the CPU, each with memory of its own.

    Of a sharded module (FSDP2) all processes have to ask, and each gets the whole.
    """
    whole: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        if isinstance(value, Tensor):
            value = value.full_tensor() if hasattr(value, "full_tensor") else value
            whole[name] = value.detach().cpu().clone().contiguous()
    return whole


def _sync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
