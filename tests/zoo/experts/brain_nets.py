"""braindecode: signals (B, channels, time); the last layer is a Linear or a wide convolution."""

from functools import partial
from typing import Any

import braindecode.models as brain

from experts.answer import Expert, Library

TIME = 500
WIDE = "final_layer.conv_classifier<mean | final_layer.conv_classifier<flat"


def nets() -> list[Expert]:
    """Each with eight electrodes and two seconds."""
    net = Library("braindecode")

    def eeg(name: str, answers: str = "final_layer<", time: int = TIME, **other: Any) -> Expert:
        options = {"n_chans": 8, "n_outputs": 4, "n_times": time, "sfreq": 250} | other
        return net(name, partial(getattr(brain, name), **options), (8, time), answers)

    heads = " | ".join(f"final_layer.{index}<" for index in (4, 0, 1, 2, 3))
    return [
        eeg("EEGNet", WIDE),
        eeg("ShallowFBCSPNet", WIDE),
        eeg("Deep4Net", WIDE, 1000),
        eeg("EEGConformer", "final_layer< | transformer>flat | transformer>tokens"),
        eeg("ATCNet", f"{heads} | refuse", 1000),
        eeg("TIDNet", "final_layer.0<"),
        eeg("EEGInceptionERP", "final_layer.fc<"),
        eeg("SleepStagerChambon2018", "final_layer.1<", 3000, n_chans=8, sfreq=100),
        eeg("USleep", "bottom>mean | refuse", 3000, sfreq=100),
        eeg("BIOT", "final_layer.classification_head< | encoder>", 1000),
        eeg("SPARCNet"),
        eeg("ContraWR", time=1000),
        eeg("EEGITNet"),
        eeg("EEGNeX"),
        eeg("TSception", time=1000),
        eeg("CTNet", time=1000),
        eeg("EEGSimpleConv"),
        eeg("AttentionBaseNet", "final_layer.1<"),
        eeg("MSVTNet", time=1000),
        eeg("FBCNet", time=1000),
    ]
