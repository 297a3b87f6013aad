"""Figures that DeepMind's JAX implementation of BYOL printed, as float64 tensors."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FIGURES: dict[str, Any] = json.loads(
    (Path(__file__).parent / "data" / "byol_reference.json").read_text()
)
TRAJECTORY: dict[str, Any] = FIGURES["trajectory"]


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def encoder() -> nn.Sequential:
    """The encoder of the trajectory, in float64, with weights of its own."""
    return nn.Sequential(
        nn.Linear(10, 14), nn.BatchNorm1d(14), nn.ReLU(), nn.Linear(14, 8)
    ).double()


def encoder_state(parameters: dict[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """``state_dict`` of ``encoder()``; the reference keeps linear weights as [in, out]."""
    norm = parameters["enc_norm"]
    return {
        f"{prefix}0.weight": tensor(parameters["enc_in"]["w"]).T,
        f"{prefix}0.bias": tensor(parameters["enc_in"]["b"]),
        **_norm_state(norm, f"{prefix}1."),
        f"{prefix}3.weight": tensor(parameters["enc_out"]["w"]).T,
        f"{prefix}3.bias": tensor(parameters["enc_out"]["b"]),
    }


def head_state(parameters: dict[str, Any], head: str, prefix: str = "") -> dict[str, Tensor]:
    """``state_dict`` of the head (Linear, BatchNorm, ReLU, Linear) of that name."""
    return {
        f"{prefix}0.weight": tensor(parameters[f"{head}/linear"]["w"]).T,
        f"{prefix}0.bias": tensor(parameters[f"{head}/linear"]["b"]),
        **_norm_state(parameters[f"{head}/batch_norm"], f"{prefix}1."),
        f"{prefix}3.weight": tensor(parameters[f"{head}/linear_1"]["w"]).T,
    }


def learner_state(online: dict[str, Any], target: dict[str, Any]) -> dict[str, Tensor]:
    """``state_dict`` of a learner around ``encoder()`` before its first update."""
    return {
        "step": torch.tensor(0),
        **encoder_state(online, "online.net."),
        **head_state(online, "projector", "online.projector."),
        **head_state(online, "predictor", "predictor."),
        **encoder_state(target, "target.net."),
        **head_state(target, "projector", "target.projector."),
    }


def _norm_state(norm: dict[str, Any], prefix: str) -> dict[str, Tensor]:
    scale = tensor(norm["scale"]).flatten()
    return {
        f"{prefix}weight": scale,
        f"{prefix}bias": tensor(norm["offset"]).flatten(),
        f"{prefix}running_mean": torch.zeros_like(scale),
        f"{prefix}running_var": torch.ones_like(scale),
        f"{prefix}num_batches_tracked": torch.tensor(0),
    }
