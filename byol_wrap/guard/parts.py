"""The parts of a learner that an optimizer should train."""

from torch import Tensor, nn

NET = "net"


def parts(learner: nn.Module) -> dict[str, list[Tensor]]:
    """What an optimizer should train, by the names of its parts: "net", "projector" and others."""
    behind = set(getattr(learner, "_ddp_params_and_buffers_to_ignore", ()))
    found: dict[str, list[Tensor]] = {}
    for name, parameter in learner.named_parameters():
        of_target = name.startswith("target.")
        if of_target or name in behind or not parameter.requires_grad:
            continue
        part = name.removeprefix("online.").partition(".")[0]
        found.setdefault(part, []).append(parameter)
    return found
