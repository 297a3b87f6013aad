"""What a run had to skip: known by name, told once, known to all processes."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch.distributed as dist

from byol_wrap.data.files import Item


class Skipped(dict[str, str]):
    """Broken files by name, and what is wrong with each; a line is printed for each that is new."""

    def watch(self, loader: Iterable[Any]) -> Iterator[Item]:
        """Batches of ``collate`` as they come, while what was skipped to make them is noted."""
        for batch in loader:
            for name, why in batch.skipped:
                if name not in self:
                    self[name] = why
                    print(f"skipped {name}: {why}", flush=True)
            yield batch

    def share(self) -> None:
        """Let all processes know what each has met; all have to call it."""
        if dist.is_available() and dist.is_initialized():
            parts: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(parts, dict(self))
            for part in parts:
                self.update(part)

    def state_dict(self) -> dict[str, str]:
        """For a checkpoint: a run that goes on does not tell them again."""
        return dict(self)

    def load_state_dict(self, state: dict[str, str]) -> None:
        """Add those of an earlier part of the run."""
        self.update(state)
