"""Named compositions, as plain data: reading this file is enough to know what each name builds.

`encoder` and `decoder` hold the constructor arguments of the class they name; vocabulary sizes come
from the tokenizers. Of recurrent models, names that end in `_paper` have the published size, the others
train on a CPU; Transformers have the published sizes under the names that everybody gives them.
"""

import copy
import dataclasses
import difflib
from typing import Any

from attention_zoo.models.trained_preset import trained_presets


@dataclasses.dataclass(frozen=True)
class Preset:
    """A named composition.

    Attributes:
        name: What `from_preset` takes.
        description: One sentence for listings.
        encoder: {"class": name of an encoder in `attention_zoo.models`, **arguments}.
        decoder: The same for the decoder; the "attention" of a recurrent one is {"class": name of a layer
            in `attention_zoo.layers`, **arguments} or None.
        reference: The paper.
        model: Arguments of the model that composes them.
    """

    name: str
    description: str
    encoder: dict[str, Any]
    decoder: dict[str, Any]
    reference: str
    model: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def task(self) -> str:
        """Either "translation", for a `Translator`, or "captioning", for a `Captioner`."""
        return "captioning" if self.encoder["class"] == "ImageEncoder" else "translation"


_BAHDANAU = "Bahdanau, Cho and Bengio 2015, arXiv:1409.0473"
_LUONG = "Luong, Pham and Manning 2015, arXiv:1508.04025"
_VASWANI = "Vaswani et al. 2017, arXiv:1706.03762"
_CHO = "Cho et al. 2014, arXiv:1406.1078"
_VINYALS = "Vinyals et al. 2015, arXiv:1411.4555"
_XU = "Xu et al. 2015, arXiv:1502.03044"
_SHARMA = "Sharma et al. 2018, doi:10.18653/v1/P18-1238"
_DOSOVITSKIY = "Dosovitskiy et al. 2021, arXiv:2010.11929"
_ZHANG = "Zhang et al. 2019, arXiv:1805.08318"

_ENCODER = {"class": "RNNEncoder", "embedding_dim": 256, "units": 256, "dropout": 0.2}
_DECODER = {"class": "RNNDecoder", "embedding_dim": 256, "units": 256, "dropout": 0.2, "tie_embeddings": True}

# Luong et al. stack four one-directional LSTM layers of 1000 units; the small size keeps one layer,
# read in both directions.
_LUONG_ENCODER_PAPER = {
    "class": "RNNEncoder",
    "embedding_dim": 1000,
    "units": 1000,
    "layers": 4,
    "cell": "lstm",
    "bidirectional": False,
    "dropout": 0.2,
}
_LUONG_DECODER_PAPER = {
    "class": "RNNDecoder",
    "embedding_dim": 1000,
    "units": 1000,
    "layers": 4,
    "cell": "lstm",
    "query_state": "current",
    "dropout": 0.2,
}


def _luong(score: str) -> list[Preset]:
    # The dot score needs states as wide as the annotations: two directions of half the width.
    attention = {"class": "LuongAttention", "score": score}
    small, paper = dict(attention), dict(attention)
    if score == "concat":
        small["units"], paper["units"] = 256, 1000
    return [
        Preset(
            name=f"luong_{score}",
            description=f"LSTM with Luong's {score} attention after the state and input feeding, CPU size",
            encoder={**_ENCODER, "cell": "lstm", "units": 128},
            decoder={**_DECODER, "cell": "lstm", "query_state": "current", "attention": small},
            reference=_LUONG,
        ),
        Preset(
            name=f"luong_{score}_paper",
            description=f"LSTM with Luong's {score} attention after the state and input feeding, 4 x 1000",
            encoder=_LUONG_ENCODER_PAPER,
            decoder={**_LUONG_DECODER_PAPER, "attention": paper},
            reference=_LUONG,
        ),
    ]


def _transformer(size: str, layers: int, units: int, feed_forward_units: int, num_heads: int) -> Preset:
    sizes = {
        "layers": layers,
        "units": units,
        "feed_forward_units": feed_forward_units,
        "num_heads": num_heads,
        "dropout": 0.3 if size == "big" else 0.1,
    }
    return Preset(
        name=f"transformer_{size}",
        description=f"Transformer, {layers} + {layers} layers of {units} units, {num_heads} heads",
        encoder={"class": "TransformerEncoder", **sizes},
        decoder={"class": "TransformerDecoder", **sizes, "tie_embeddings": True},
        reference=_VASWANI,
    )


# Captioners: a trained network that stays as it is looks at the images, in a grid of 7 x 7.
_CNN = {"class": "ImageEncoder", "backbone": "MobileNetV2", "pretrained": "imagenet", "frozen": True}
_CAPTION_LSTM = {
    "class": "RNNDecoder",
    "embedding_dim": 256,
    "units": 512,
    "cell": "lstm",
    "dropout": 0.3,
    "tie_embeddings": True,
}
_LOOKING_LSTM = {**_CAPTION_LSTM, "attention": {"class": "SpatialAttention", "units": 512}}
_BLOCKS = {"units": 256, "num_heads": 4, "feed_forward_units": 1024, "dropout": 0.1}
_CAPTION_TRANSFORMER = {"class": "TransformerDecoder", "layers": 3, **_BLOCKS, "tie_embeddings": True}

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in [
        Preset(
            name="seq2seq",
            description="GRU encoder and decoder without attention, CPU size",
            encoder={**_ENCODER, "bidirectional": False},
            decoder={**_DECODER, "attention": None},
            reference=_CHO,
        ),
        Preset(
            name="seq2seq_paper",
            description="GRU encoder and decoder without attention, 1000 units",
            encoder={"class": "RNNEncoder", "embedding_dim": 620, "units": 1000, "bidirectional": False},
            decoder={
                "class": "RNNDecoder",
                "embedding_dim": 620,
                "units": 1000,
                "readout_units": 500,
                "readout_activation": "maxout",
                "attention": None,
            },
            reference=_CHO,
        ),
        Preset(
            name="bahdanau",
            description="bidirectional GRU encoder, GRU decoder with additive attention, CPU size",
            encoder=_ENCODER,
            decoder={**_DECODER, "attention": {"class": "AdditiveAttention", "units": 256}},
            reference=_BAHDANAU,
        ),
        Preset(
            name="bahdanau_paper",
            description="bidirectional GRU encoder, GRU decoder with additive attention, 1000 units",
            encoder={"class": "RNNEncoder", "embedding_dim": 620, "units": 1000},
            decoder={
                "class": "RNNDecoder",
                "embedding_dim": 620,
                "units": 1000,
                "readout_units": 500,
                "readout_activation": "maxout",
                "attention": {"class": "AdditiveAttention", "units": 1000},
            },
            reference=_BAHDANAU,
        ),
        *_luong("dot"),
        *_luong("general"),
        *_luong("concat"),
        _transformer("tiny", layers=4, units=128, feed_forward_units=256, num_heads=4),
        _transformer("small", layers=4, units=256, feed_forward_units=1024, num_heads=4),
        _transformer("base", layers=6, units=512, feed_forward_units=2048, num_heads=8),
        _transformer("big", layers=6, units=1024, feed_forward_units=4096, num_heads=16),
        Preset(
            name="show_and_tell",
            description="captions: CNN, its mean to an LSTM without attention",
            encoder={**_CNN, "units": 512},
            decoder={**_CAPTION_LSTM, "attention": None},
            reference=_VINYALS,
        ),
        Preset(
            name="show_attend_and_tell",
            description="captions: CNN, LSTM with gated attention, doubly stochastic penalty",
            encoder=_CNN,
            decoder=_LOOKING_LSTM,
            reference=_XU,
            model={"doubly_stochastic": 1.0},
        ),
        Preset(
            name="transformer_captioner",
            description="captions: CNN, Transformer of 2 + 3 layers of 256 units over its grid",
            encoder={**_CNN, "positions": True, "layers": 2, **_BLOCKS},
            decoder=_CAPTION_TRANSFORMER,
            reference=_SHARMA,
        ),
        Preset(
            name="vit_captioner",
            description="captions: 16 x 16 patches, Transformer of 6 + 3 layers of 256 units, no CNN",
            encoder={
                "class": "ImageEncoder",
                "backbone": "patches",
                "positions": True,
                "layers": 6,
                **_BLOCKS,
                "activation": "gelu",
                "normalize_first": True,
            },
            decoder=_CAPTION_TRANSFORMER,
            reference=_DOSOVITSKIY,
        ),
        Preset(
            name="self_attention_cnn_captioner",
            description="captions: small CNN with self-attention, from scratch, LSTM with gated attention",
            encoder={
                "class": "ImageEncoder",
                "backbone": "self_attention_cnn",
                "image_size": 128,
                "widths": (32, 64, 128, 256),
            },
            decoder=_LOOKING_LSTM,
            reference=_ZHANG,
            model={"doubly_stochastic": 1.0},
        ),
    ]
}


def get_preset(name: str, task: str | None = None) -> Preset:
    """The preset of that name.

    Args:
        name: E.g. "bahdanau".
        task: "translation" or "captioning", what it must be for; None allows both.

    Raises:
        ValueError: If there is none; the message lists the names and the nearest one.
    """
    names = [known for known, preset in PRESETS.items() if task in (None, preset.task)]
    if name in names:
        return PRESETS[name]
    if name in PRESETS:
        right = {"translation": "Translator", "captioning": "Captioner"}[PRESETS[name].task]
        raise ValueError(
            f"preset: expected one for {task}, {', '.join(names)}; received {name!r}, which is for "
            f"{PRESETS[name].task}: use {right}.from_preset"
        )
    trained = [known for known, preset in trained_presets().items() if task in (None, preset.task)]
    nearest = difflib.get_close_matches(str(name), [*names, *trained], n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    known = ", ".join(names) + (f", or with weights {', '.join(trained)}" if trained else "")
    raise ValueError(f"preset: expected one of {known}; received {name!r}.{hint}")


def override(arguments: dict[str, Any], changes: dict[str, Any] | None) -> dict[str, Any]:
    """The arguments of an encoder or decoder with some of them changed.

    Args:
        arguments: As a preset holds them.
        changes: Arguments to replace; a dict under "attention" changes that layer's arguments, or
            replaces the layer if it names a "class".

    Raises:
        ValueError: If the arguments have no attention to change, and `changes` names no class.
    """
    merged = copy.deepcopy(arguments)
    for name, value in (changes or {}).items():
        if name == "attention" and isinstance(value, dict) and "class" not in value:
            if not merged.get("attention"):
                raise ValueError(
                    'attention: expected a "class", the name of a layer in attention_zoo.layers, as there '
                    f"is no attention to change; received {value}"
                )
            value = {**merged["attention"], **value}
        merged[name] = value
    return merged
