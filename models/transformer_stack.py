"""What Transformer encoders and decoders share: arguments, embeddings, positions."""

from typing import Any

import keras
from keras import ops

from attention_zoo.layers.dropout import Dropout
from attention_zoo.layers.learned_position_embedding import LearnedPositionEmbedding
from attention_zoo.layers.positional_encoding import PositionalEncoding
from attention_zoo.layers.token_embedding import TokenEmbedding
from attention_zoo.layers.transformer_block import TransformerBlock

POSITIONS = ("sinusoidal", "learned", "rotary")


class TransformerStack(keras.layers.Layer):
    """Base of `TransformerEncoder` and `TransformerDecoder`: embedded tokens below a stack of blocks.

    Args:
        vocabulary_size: See `TransformerEncoder`, as for all others.
        layers: N, the number of blocks.
        units: D, the width.
        feed_forward_units: Width of the hidden layers.
        num_heads: H, the number of attention heads.
        positions: "sinusoidal", "learned" or "rotary".
        max_positions: Size of the table of learned positions.
        activation: Of the hidden layers.
        normalize_first: Whether blocks normalize first.
        dropout: Rate on embeddings and on what sublayers add.
        attention_dropout: Rate on the attention weights.
        activation_dropout: Rate on the hidden layers.
        num_key_value_heads: See `MultiHeadAttention`.
        scale_embeddings: Whether embeddings are multiplied by sqrt(D).
        equal_start: See `MultiHeadAttention`.
        position_order: Of sinusoidal positions, see `PositionalEncoding`.
        max_wavelength: Of sinusoidal positions.
        **kwargs: `name`, `dtype` and so on, see `keras.layers.Layer`.

    Raises:
        ValueError: If an option is unknown, a size is not positive, or numbers of heads do not fit.
    """

    block_class: type[TransformerBlock]

    def __init__(
        self,
        vocabulary_size: int,
        layers: int = 6,
        units: int = 512,
        feed_forward_units: int = 2048,
        num_heads: int = 8,
        positions: str = "sinusoidal",
        max_positions: int | None = None,
        activation: Any = "relu",
        normalize_first: bool = False,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        num_key_value_heads: int | None = None,
        scale_embeddings: bool = True,
        equal_start: bool = False,
        position_order: str = "interleaved",
        max_wavelength: float = 10000.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        name = type(self).__name__
        sizes = {
            "vocabulary_size": vocabulary_size,
            "layers": layers,
            "units": units,
            "feed_forward_units": feed_forward_units,
            "num_heads": num_heads,
        }
        for argument, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}: expected {argument} of at least 1, received {size}")
        if units % num_heads:
            raise ValueError(f"{name}: expected num_heads to divide units, received {num_heads} and {units}")
        if positions not in POSITIONS:
            raise ValueError(f"{name}: expected positions among {POSITIONS}, received {positions!r}")
        if (positions == "learned") != (max_positions is not None):
            raise ValueError(
                f'{name}: expected max_positions with positions="learned" and with no other, received '
                f"max_positions={max_positions} and positions={positions!r}"
            )
        if positions != "sinusoidal" and (position_order, max_wavelength) != ("interleaved", 10000.0):
            raise ValueError(
                f'{name}: expected position_order and max_wavelength with positions="sinusoidal" only, '
                f"received {position_order!r} and {max_wavelength} with positions={positions!r}"
            )
        if positions == "rotary" and (units // num_heads) % 2:
            raise ValueError(
                f'{name}: expected an even units / num_heads with positions="rotary", received {units} / '
                f"{num_heads}"
            )
        # === Config ===
        self.vocabulary_size = vocabulary_size
        self.layers = layers
        self.units = units
        self.feed_forward_units = feed_forward_units
        self.num_heads = num_heads
        self.positions = positions
        self.max_positions = max_positions
        self.activation = keras.activations.get(activation)
        self.normalize_first = normalize_first
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.activation_dropout = activation_dropout
        self.num_key_value_heads = num_key_value_heads
        self.scale_embeddings = scale_embeddings
        self.equal_start = equal_start
        self.position_order = position_order
        self.max_wavelength = max_wavelength
        # === Layers ===
        policy = self.dtype_policy
        self.embedding = None  # made by `build`, unless another layer's is shared
        self.position = None
        if positions == "sinusoidal":
            self.position = PositionalEncoding(
                max_wavelength=max_wavelength, order=position_order, name="position", dtype=policy
            )
        elif positions == "learned":
            self.position = LearnedPositionEmbedding(max_positions, name="position", dtype=policy)
        self.embedding_dropout = Dropout(dropout, name="embedding_dropout", dtype=policy)
        self.blocks = [
            self.block_class(
                num_heads,
                feed_forward_units,
                activation=self.activation,
                normalize_first=normalize_first,
                dropout=dropout,
                attention_dropout=attention_dropout,
                activation_dropout=activation_dropout,
                num_key_value_heads=num_key_value_heads,
                rotary=positions == "rotary",
                equal_start=equal_start,
                name=f"block_{index}",
                dtype=policy,
            )
            for index in range(layers)
        ]
        # Blocks that normalize first leave their sum as it is.
        self.output_norm = (
            keras.layers.LayerNormalization(epsilon=1e-5, name="output_norm", dtype=policy)
            if normalize_first
            else None
        )

    def make_embedding(self) -> TokenEmbedding:
        """The layer that looks up tokens."""
        return TokenEmbedding(
            self.vocabulary_size,
            self.units,
            scale=self.scale_embeddings,
            name="embedding",
            dtype=self.dtype_policy,
        )

    def build_stack(self, *memory_shape: Any) -> None:
        """Creates the weights of everything above."""
        shape = (None, None, self.units)
        if self.embedding is None:
            self.embedding = self.make_embedding()
        if not self.embedding.built:
            self.embedding.build()
        if self.position is not None:
            self.position.build(shape)
        for block in self.blocks:
            block.build(shape, *memory_shape)
        if self.output_norm is not None:
            self.output_norm.build(shape)

    def embed(self, ids: Any, start: Any = 0) -> Any:
        """Tokens and their positions, the first one being `start`: int (B, L) -> (B, L, D)."""
        x = ops.cast(self.embedding(ids), self.compute_dtype)  # a shared one may have another policy
        return x if self.position is None else self.position(x, start=start)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "layers": self.layers,
            "units": self.units,
            "feed_forward_units": self.feed_forward_units,
            "num_heads": self.num_heads,
            "positions": self.positions,
            "max_positions": self.max_positions,
            "activation": keras.activations.serialize(self.activation),
            "normalize_first": self.normalize_first,
            "dropout": self.dropout,
            "attention_dropout": self.attention_dropout,
            "activation_dropout": self.activation_dropout,
            "num_key_value_heads": self.num_key_value_heads,
            "scale_embeddings": self.scale_embeddings,
            "equal_start": self.equal_start,
            "position_order": self.position_order,
            "max_wavelength": self.max_wavelength,
        }
