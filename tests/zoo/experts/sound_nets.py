"""torchaudio, speechbrain, encodec, tsai, pytorch-tcn, and stacks of Conv1d by hand."""

import importlib
from functools import partial
from typing import Any

import torchaudio.models as audio
from encodec.modules import SEANetEncoder
from pytorch_tcn import TCN
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from speechbrain.lobes.models.Xvector import Xvector
from torch import nn

from experts.answer import Expert, Library

SERIES = (3, 64)


def wav2vec(classes: int | None) -> partial[nn.Module]:
    """torchaudio's wav2vec 2.0, which returns (frames, lengths)."""
    convolutions = [(16, 10, 5), (16, 3, 2), (16, 3, 2)]
    encoder = (32, 0.1, 8, 2, 2, 2, 0.1, 48, 0.1, 0.1, False, 0.0, classes)
    return partial(audio.wav2vec2_model, "group_norm", convolutions, False, *encoder)


def torchaudio_nets() -> list[Expert]:
    """Answers a frame, masks, waves."""
    net = Library("torchaudio")
    objective = {"feat_dim": 16, "win_len": 8, "d_model": 16, "nhead": 2, "hidden_dim": 16}
    objective |= {"num_blocks": 1, "rnn_type": "LSTM", "chunk_size": 8}
    separate = {"num_sources": 2, "enc_num_feats": 16, "msk_num_feats": 8, "msk_num_layers": 2}
    separate |= {"msk_num_hidden_feats": 16, "msk_num_stacks": 1}
    return [
        net("wav2vec2_model", wav2vec(None), (1600,), ">tokens@0"),
        net("wav2vec2_model, letters", wav2vec(12), (1600,), "aux<tokens | refuse"),
        net("DeepSpeech", partial(audio.DeepSpeech, 16, 32, 12), (1, 20, 16), "refuse"),
        net("Wav2Letter", partial(audio.Wav2Letter, 10, "mfcc", 13), (13, 200),
            "acoustic_model.20<mean | acoustic_model.18<mean | refuse"),
        net("ConvTasNet", partial(audio.ConvTasNet, **separate), (1, 400), "refuse"),
        net("SquimObjective, three scores", partial(audio.squim_objective_model, **objective),
            (800,), "dprnn>tokens | refuse"),
    ]  # fmt: skip


def speech() -> list[Expert]:
    """Embeddings of speakers, an encoder of waves, causal convolutions."""
    net = Library("speechbrain, encodec, pytorch-tcn")
    ecapa = {"channels": [16, 16, 16, 16, 48], "attention_channels": 8, "se_channels": 8}
    tdnn = {"tdnn_channels": [16, 16, 24], "tdnn_kernel_sizes": [3, 3, 1]}
    return [
        net("ECAPA-TDNN", partial(ECAPA_TDNN, 16, lin_neurons=24, **ecapa), (30, 16),
            "fc> | > | asp_bn> | asp>"),
        net("x-vector", partial(Xvector, in_channels=16, tdnn_blocks=3, lin_neurons=20,
            tdnn_dilations=[1, 1, 1], **tdnn), (30, 16), "> | blocks.9>"),
        net("SEANet's encoder", partial(SEANetEncoder, channels=1, dimension=16, n_filters=4,
            n_residual_layers=1, ratios=[4, 2], lstm=1), (1, 800), ">mean"),
        net("TCN of pytorch-tcn", partial(TCN, 4, [8, 16], causal=True), (4, 32), ">mean | refuse"),
    ]  # fmt: skip


def tsai_nets() -> list[Expert]:
    """Classifiers of series (B, channels, time)."""
    net = Library("tsai")

    def series(module: str, name: str, answers: str, **options: Any) -> Expert:
        def build() -> nn.Module:
            made = getattr(importlib.import_module(f"tsai.models.{module}"), name)
            built: nn.Module = made(3, 4, **options)
            return built

        return net(name, build, SERIES, answers)

    tst = {"seq_len": 64, "d_model": 16, "n_heads": 2, "d_ff": 16, "n_layers": 1}
    return [
        series("InceptionTime", "InceptionTime", "fc<"),
        series("FCN", "FCN", "fc<"),
        series("ResNet", "ResNet", "fc<"),
        series("XceptionTime", "XceptionTime", "block>mean | head.3<mean | refuse", nf=4),
        series("OmniScaleCNN", "OmniScaleCNN", "hidden<", seq_len=64),
        series("RNN", "LSTM", "fc<"),
        series("RNN", "GRU", "fc<", bidirectional=True),
        series("TST", "TST", "head.2<", **tst),
        series("gMLP", "gMLP", "head<", seq_len=64, d_model=16, d_ffn=16, depth=1),
        series("XCM", "XCM", "head.1<", seq_len=64),
        series("TSiTPlus", "TSiTPlus", "head.1<", seq_len=64, d_model=16, n_heads=2, depth=1),
        series("TCN", "TCN", "linear<", layers=[8, 16]),
        series("XResNet1d", "xresnet1d18", "11<"),
        series("RNN_FCN", "LSTM_FCN", "fc<", seq_len=64),
        series("ResCNN", "ResCNN", "lin<"),
        series("PatchTST", "PatchTST", "refuse", seq_len=64, pred_dim=8),
        series("TransformerModel", "TransformerModel", "outlinear<", d_model=16, n_head=2,
               d_ffn=16, n_layers=1),
    ]  # fmt: skip


def stacks() -> list[Expert]:
    """What a notebook holds."""
    net = Library("by hand")

    def block(before: int, after: int) -> list[nn.Module]:
        return [nn.Conv1d(before, after, 5, 2, 2), nn.BatchNorm1d(after), nn.ReLU()]

    def stack(*last: nn.Module) -> partial[nn.Module]:
        return partial(nn.Sequential, *block(3, 16), *block(16, 24), *last)

    def pooled() -> nn.Module:
        return stack(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(24, 4))()

    return [
        net("Conv1d stack, maps", lambda: stack()(), SERIES, ">mean"),
        net("Conv1d stack, short maps", lambda: stack()(), (3, 16), ">mean"),
        net("Conv1d stack, classifier", pooled, SERIES, "8<"),
        net("Conv1d stack, transposed to tokens", lambda: stack(Transposed())(), SERIES, ">tokens"),
        net("Conv1d stack, a convolution that classifies", lambda: stack(nn.Conv1d(24, 4, 1),
            nn.AdaptiveAvgPool1d(1), nn.Flatten())(), SERIES, "6<mean"),
    ]  # fmt: skip


class Transposed(nn.Module):
    """(B, C, L) to (B, L, C)."""

    def forward(self, x: Any) -> Any:
        return x.transpose(1, 2)


def nets() -> list[Expert]:
    """All of them."""
    return torchaudio_nets() + speech() + tsai_nets() + stacks()
