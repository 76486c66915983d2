"""Presets to layers: makes the encoder and the decoder that plain data describes."""

import inspect
from typing import Any

import keras

from attention_zoo.layers.additive_attention import AdditiveAttention
from attention_zoo.layers.luong_attention import LuongAttention
from attention_zoo.layers.multi_head_attention import MultiHeadAttention
from attention_zoo.layers.spatial_attention import SpatialAttention
from attention_zoo.models import presets
from attention_zoo.models.image_encoder import ImageEncoder
from attention_zoo.models.rnn_decoder import RNNDecoder
from attention_zoo.models.rnn_encoder import RNNEncoder
from attention_zoo.models.transformer_decoder import TransformerDecoder
from attention_zoo.models.transformer_encoder import TransformerEncoder

# What the "class" of a preset's parts may name; of its encoder, by task.
ENCODERS = {
    "translation": {"RNNEncoder": RNNEncoder, "TransformerEncoder": TransformerEncoder},
    "captioning": {"ImageEncoder": ImageEncoder},
}
DECODERS = {"RNNDecoder": RNNDecoder, "TransformerDecoder": TransformerDecoder}
ATTENTIONS = {
    "AdditiveAttention": AdditiveAttention,
    "LuongAttention": LuongAttention,
    "MultiHeadAttention": MultiHeadAttention,
    "SpatialAttention": SpatialAttention,
}


def make_encoder(preset: presets.Preset, changes: dict[str, Any] | None, **fixed: Any) -> keras.layers.Layer:
    """The encoder of a preset.

    Args:
        preset: The composition.
        changes: Arguments to change, see `presets.override`.
        **fixed: Arguments that the model decides, and that neither preset nor changes may name.

    Raises:
        ValueError: If the class or an argument is unknown; the message names the allowed ones.
    """
    return _make(ENCODERS[preset.task], presets.override(preset.encoder, changes), **fixed)


def make_decoder(preset: presets.Preset, changes: dict[str, Any] | None, **fixed: Any) -> keras.layers.Layer:
    """The decoder of a preset with its attention; see `make_encoder`."""
    arguments = presets.override(preset.decoder, changes)
    if isinstance(arguments.get("attention"), dict):
        arguments["attention"] = _make(ATTENTIONS, arguments["attention"], dtype=fixed.get("dtype"))
    return _make(DECODERS, arguments, **fixed)


def _make(classes: dict[str, type], arguments: dict[str, Any], **fixed: Any) -> Any:
    """The layer that a preset's part describes, with a clear error for what it does not take."""
    arguments = dict(arguments)
    name = arguments.pop("class", None)
    if name not in classes:
        raise ValueError(f'from_preset: expected a "class" among {", ".join(classes)}; received {name!r}')
    allowed = [name for name in inspect.signature(classes[name]).parameters if name not in (*fixed, "kwargs")]
    unknown = sorted(set(arguments) - set(allowed))
    if unknown:
        raise ValueError(
            f"{name}: expected arguments among {', '.join(allowed)}; received {', '.join(unknown)}"
        )
    return classes[name](**arguments, **fixed)
