"""Parts of a net of which not all run in each forward: experts that are picked."""

from torch import nn

from byol_wrap.backbone.recording import Call, Record


def branch_of(record: Record, name: str) -> Call | None:
    """The call of the innermost part that a layer is in and that is one of a list or dict of parts.

    None for a layer that is in none, or whose part does not run once.
    """
    at = name.split(".")
    for depth in range(len(at), 0, -1):
        above = record.net.get_submodule(".".join(at[: depth - 1]))
        if isinstance(above, nn.ModuleList | nn.ModuleDict):
            return record.once(".".join(at[:depth]))
    return None


def is_picked(record: Record, name: str) -> bool:
    """Whether a layer is in a part whose like did not run: another may run the next time."""
    for other in record.idle:
        above = other.rpartition(".")[0]
        start = f"{above}." if above else ""
        own = start + name[len(start) :].partition(".")[0]
        if name.startswith(start) and _alike(record, own, other):
            return True
    return False


def not_picked(record: Record) -> set[str]:
    """Names of the parameters of parts that did not run, though their like did."""
    net = record.net
    return {
        f"{name}.{own}"
        for name in record.idle
        for own, _ in net.get_submodule(name).named_parameters()
    }


def _alike(record: Record, *names: str) -> bool:
    one, other = (record.net.get_submodule(name) for name in names)
    shapes = [[parameter.shape for parameter in part.parameters()] for part in (one, other)]
    return type(one) is type(other) and shapes[0] == shapes[1] and bool(shapes[0])
