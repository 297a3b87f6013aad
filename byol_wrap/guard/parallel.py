"""``DistributedDataParallel`` around a module that holds a learner: gradients that never come."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.autograd import Variable
from torch.nn.parallel import DistributedDataParallel


def check_gradients_come(learner: nn.Module, unused: Sequence[str], loss: Tensor) -> bool:
    """See to it that a backward in ``DistributedDataParallel`` ends in an error that helps.

    It reads what it need not wait for off the module that it wraps, and off none within.

    Args:
        learner: which is running.
        unused: names of those of its parameters that lie behind the representation.
        loss: of this step.

    Returns:
        Whether there was anything to see to.
    """
    parallel = getattr(DistributedDataParallel, "_active_ddp_module", None)
    if parallel is None or not unused or not loss.requires_grad:
        return False
    settled = parallel.find_unused_parameters or parallel.static_graph
    if settled or not parallel.require_backward_grad_sync:
        return False
    holder = parallel.module
    path = next((name for name, module in holder.named_modules() if module is learner), None)
    prefix = f"{path}." if path else ""
    waiting = [
        (prefix + name, learner.get_parameter(name))
        for name in unused
        if prefix + name not in parallel.parameters_to_ignore
    ]
    waiting = [(name, parameter) for name, parameter in waiting if parameter.requires_grad]
    if not waiting:
        return False

    def at_the_end() -> None:
        missing = [name for name, parameter in waiting if parameter.grad is None]
        if missing:
            raise RuntimeError(message(type(holder).__name__, str(path), missing))

    def when_it_begins(gradient: Tensor) -> None:
        Variable._execution_engine.queue_callback(at_the_end)

    loss.register_hook(when_it_begins)
    return True


def message(holder: str, path: str, missing: Sequence[str]) -> str:
    """What to say of them."""
    if not path:
        return (
            f"DistributedDataParallel({holder}) waits for gradients that never come: "
            f"{len(missing)} parameters, such as {missing[0]!r}, lie behind the representation, "
            "which was not known yet when the learner was wrapped. Give image_size=, or call "
            "learner.embed(images) once before DistributedDataParallel wraps it."
        )
    return (
        f"DistributedDataParallel({holder}) waits for gradients that never come: {len(missing)} "
        f"parameters, such as {missing[0]!r}, lie behind the representation. Name them before it "
        f"wraps the module: module._ddp_params_and_buffers_to_ignore = [f'{path}.{{name}}' for "
        f"name in module.{path}._ddp_params_and_buffers_to_ignore]. Or give it "
        "find_unused_parameters=True (in Lightning strategy='ddp_find_unused_parameters_true'), or "
        "wrap the learner itself."
    )
