"""Named compositions, as plain data: reading this file is enough to know what each name builds.

`encoder` and `decoder` hold the constructor arguments of the class they name; vocabulary sizes come
from the tokenizers. Of recurrent models, names that end in `_paper` have the published size, the others
train on a CPU; Transformers have the published sizes under the names that everybody gives them.
"""

import copy
import dataclasses
import difflib
from typing import Any


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
    """

    name: str
    description: str
    encoder: dict[str, Any]
    decoder: dict[str, Any]
    reference: str


_BAHDANAU = "Bahdanau, Cho and Bengio 2015, arXiv:1409.0473"
_LUONG = "Luong, Pham and Manning 2015, arXiv:1508.04025"
_VASWANI = "Vaswani et al. 2017, arXiv:1706.03762"
_CHO = "Cho et al. 2014, arXiv:1406.1078"

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
    ]
}


def get_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ValueError: If there is none; the message lists the names and the nearest one.
    """
    if name not in PRESETS:
        nearest = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}; received {name!r}.{hint}")
    return PRESETS[name]


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
