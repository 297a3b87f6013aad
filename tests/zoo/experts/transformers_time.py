"""transformers: clips, sound and series, which are fed as they are."""

from typing import Any

from torch import Tensor, nn

from experts.answer import Expert, Library
from experts.transformers_nets import SMALL, made

SPEECH: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SPEECH |= {"intermediate_size": 48, "conv_dim": [16, 16, 16], "conv_stride": [5, 2, 2]}
SPEECH |= {"conv_kernel": [10, 3, 3], "num_conv_pos_embeddings": 16}
SPEECH |= {"num_conv_pos_embedding_groups": 4, "vocab_size": 12, "apply_spec_augment": False}
WAVE = (1600,)
MEAN = ">tokens@last_hidden_state"
FRAMES = {"image_size": 32, "num_frames": 4, "tubelet_size": 2}


class Wrapped(nn.Module):
    """Hands its input to a model under another name, as people do for models of text or series."""

    def __init__(self, body: nn.Module, name: str) -> None:
        super().__init__()
        self.body, self.name = body, name

    def forward(self, x: Tensor) -> Any:
        return self.body(**{self.name: x})


def video(net: Library) -> list[Expert]:
    """Clips (B, T, C, H, W)."""
    mae = SMALL | FRAMES | {"use_mean_pooling": True}
    mae |= {"decoder_num_hidden_layers": 1, "decoder_hidden_size": 16}
    clip = (4, 3, 32, 32)
    vivit = SMALL | {"num_frames": 4, "tubelet_size": [2, 8, 8]}
    vivit.pop("patch_size")
    jepa = {"crop_size": 32, "patch_size": 8, "frames_per_clip": 4, "hidden_size": 48}
    jepa |= {"num_attention_heads": 2, "num_hidden_layers": 1, "pred_hidden_size": 24}
    jepa |= {"pred_num_attention_heads": 2, "pred_num_hidden_layers": 1, "mlp_ratio": 2}
    times = SMALL | {"num_frames": 4}
    return [
        net("VideoMAEForVideoClassification", made("VideoMAEForVideoClassification",
            "VideoMAEConfig", **mae), clip, "classifier<"),
        net("VideoMAEModel", made("VideoMAEModel", "VideoMAEConfig", **mae), clip, MEAN),
        net("TimesformerForVideoClassification", made("TimesformerForVideoClassification",
            "TimesformerConfig", **times), clip, "classifier<"),
        net("TimesformerModel", made("TimesformerModel", "TimesformerConfig", **times), clip,
            ">token@last_hidden_state"),
        net("VivitForVideoClassification", made("VivitForVideoClassification", "VivitConfig",
            **vivit), clip, "classifier<"),
        net("VJEPA2ForVideoClassification", made("VJEPA2ForVideoClassification", "VJEPA2Config",
            **jepa, num_pooler_layers=1), clip, "classifier<"),
    ]  # fmt: skip


def sound(net: Library) -> list[Expert]:
    """Waves (B, T) and spectrograms; the mean over time, or what a classifier reads."""
    ast = {k: v for k, v in SMALL.items() if k != "image_size"} | {"max_length": 64}
    ast |= {"num_mel_bins": 32}
    whisper = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "num_mel_bins": 16}
    whisper |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 64}
    whisper |= {"max_source_positions": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    whisper |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
                "decoder_start_token_id": 1, "classifier_proj_size": 16}  # fmt: skip
    clap = {"spec_size": 64, "num_mel_bins": 16, "hidden_size": 96, "projection_dim": 16}
    clap |= {"patch_embeds_hidden_size": 12, "depths": [1, 1], "num_attention_heads": [1, 2]}
    clap |= {"window_size": 4, "hidden_size": 24, "num_hidden_layers": 2}
    codec = {"num_filters": 4, "hidden_size": 16, "codebook_dim": 16, "upsampling_ratios": [4, 2]}
    codec |= {"codebook_size": 16, "num_lstm_layers": 1}

    def speech(name: str, answers: str, config: str = "Wav2Vec2", **other: Any) -> Expert:
        return net(name, made(name, f"{config}Config", **SPEECH, **other), WAVE, answers)

    return [
        net("ASTModel", made("ASTModel", "ASTConfig", **ast), (64, 32),
            ">@pooler_output | >token@last_hidden_state"),
        net("ASTForAudioClassification", made("ASTForAudioClassification", "ASTConfig", **ast),
            (64, 32), "classifier.dense< | classifier<"),
        speech("Wav2Vec2Model", MEAN),
        speech("HubertModel", MEAN, "Hubert"),
        speech("WavLMModel", MEAN, "WavLM"),
        speech("Data2VecAudioModel", MEAN, "Data2VecAudio"),
        speech("Wav2Vec2ForSequenceClassification", "classifier< | projector<tokens",
               classifier_proj_size=16),
        speech("WavLMForSequenceClassification", "classifier< | projector<tokens", "WavLM",
               classifier_proj_size=16),
        speech("Wav2Vec2ForCTC", "lm_head<tokens | refuse"),
        speech("Wav2Vec2ForAudioFrameClassification", "classifier<tokens | refuse"),
        speech("Wav2Vec2ForXVector", "classifier< | feature_extractor< | >@embeddings",
               tdnn_dim=[16, 16, 24], tdnn_kernel=[3, 3, 1], tdnn_dilation=[1, 1, 1],
               xvector_output_dim=20),
        net("WhisperForAudioClassification", made("WhisperForAudioClassification", "WhisperConfig",
            **whisper), (16, 64), "classifier< | projector<tokens"),
        net("Whisper's encoder", lambda: made("WhisperModel", "WhisperConfig",
            **whisper)().get_encoder(), (16, 64), MEAN),
        net("EncodecModel", made("EncodecModel", "EncodecConfig", **codec), (1, 800),
            "encoder>mean | refuse"),
        net("ClapAudioModelWithProjection", lambda: Wrapped(made("ClapAudioModelWithProjection",
            "ClapAudioConfig", **clap)(), "input_features"), (1, 64, 16),
            "body.audio_projection< | body.audio_model>@pooler_output | >@audio_embeds"),
    ]  # fmt: skip


def series(net: Library) -> list[Expert]:
    """Series (B, T, C) of several channels."""
    patch = {"num_input_channels": 3, "context_length": 32, "patch_length": 8, "patch_stride": 8}
    tst = patch | {"num_hidden_layers": 1, "d_model": 16, "num_attention_heads": 2, "ffn_dim": 16}
    mixer = patch | {"d_model": 16, "num_layers": 1, "expansion_factor": 2}
    words = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    words |= {"intermediate_size": 32, "max_position_embeddings": 32}

    def bert(name: str) -> Any:
        return lambda: Wrapped(made(name, "BertConfig", **words)(), "inputs_embeds")

    return [
        net("PatchTSTForClassification", made("PatchTSTForClassification", "PatchTSTConfig",
            **tst, num_targets=4), (32, 3), "head.linear< | refuse"),
        net("PatchTSTForRegression", made("PatchTSTForRegression", "PatchTSTConfig", **tst,
            num_targets=4), (32, 3), "head.projection< | refuse"),
        net("PatchTSTModel", made("PatchTSTModel", "PatchTSTConfig", **tst), (32, 3),
            f"{MEAN} | refuse"),
        net("PatchTSMixerModel", made("PatchTSMixerModel", "PatchTSMixerConfig", **mixer), (32, 3),
            f"{MEAN} | refuse"),
        net("BertModel of embeddings", bert("BertModel"), (16, 32),
            "body>@pooler_output | body>token@last_hidden_state"),
        net("BertForSequenceClassification of embeddings", bert("BertForSequenceClassification"),
            (16, 32), "body.classifier<"),
    ]  # fmt: skip


def nets() -> list[Expert]:
    """Video, sound, series."""
    net = Library("transformers, sound, video, series")
    return video(net) + sound(net) + series(net)
