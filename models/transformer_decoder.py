"""Transformer decoder."""

from typing import Any

import keras
from keras import ops

from attention_zoo.layers.transformer_decoder_block import TransformerDecoderBlock
from attention_zoo.models.search import split_hypotheses
from attention_zoo.models.token_logits import in_blocks, token_logits
from attention_zoo.models.transformer_stack import TransformerStack


@keras.saving.register_keras_serializable(package="attention_zoo")
class TransformerDecoder(TransformerStack):
    """Predicts a sentence token by token with self-attention and attention to a memory.

        x_0 = dropout(sqrt(D) E[y] + position)
        x_n = block_n(x_{n-1}, memory)
        logits = x_N V' [+ b]

    Args:
        vocabulary_size: Number of token ids.
        layers: See `TransformerEncoder`, as for every argument that it has.
        units: D, the width of embeddings and blocks.
        feed_forward_units: Width of the hidden layers.
        num_heads: H, the number of attention heads.
        positions: "sinusoidal", "learned" or "rotary".
        max_positions: Most tokens of a sentence, start token included, with learned positions.
        activation: Of the hidden layers.
        normalize_first: Whether blocks normalize first.
        dropout: Rate on embeddings and on what attention and feed-forward add.
        attention_dropout: Rate on the attention weights.
        activation_dropout: Rate on the hidden layers.
        num_key_value_heads: See `MultiHeadAttention`.
        scale_embeddings: Whether embeddings are multiplied by sqrt(D).
        equal_start: See `MultiHeadAttention`.
        tie_embeddings: Whether V is the token embedding matrix.
        position_order: Of sinusoidal positions: "interleaved" or "halves".
        max_wavelength: Of sinusoidal positions.
        output_bias: Whether there is a bias b, one number for each token.
        **kwargs: `name`, `dtype` and so on, see `keras.layers.Layer`.

    Call arguments:
        target: int (B, T), starting with the start token.
        memory: What an encoder returns: "values" (B, S, Dm) and "mask" (B, S).
        training: Whether dropout is active.
        return_attention: Whether the attention weights are returned as well.

    Returns:
        Logits, float32 (B, T, V), that predict the token after each position; if asked, also a dict of the
        attention weights of every layer and head, float32: "cross" (B, T, N, H, S), to the memory, and
        "self" (B, T, N, H, T), to earlier positions.

    Raises:
        ValueError: If an option is unknown, a size is not positive, or the heads do not divide the width.

    Example:
        >>> from attention_zoo.models import TransformerEncoder
        >>> sizes = {"layers": 2, "units": 16, "feed_forward_units": 32, "num_heads": 2}
        >>> encoder, decoder = TransformerEncoder(100, **sizes), TransformerDecoder(50, **sizes)
        >>> memory = encoder(ops.array([[5, 6, 2]]))
        >>> logits, attention = decoder(ops.array([[1, 7]]), memory, return_attention=True)
        >>> logits.shape, attention["cross"].shape
        (TensorShape([1, 2, 50]), TensorShape([1, 2, 2, 2, 3]))

    Reference:
        Vaswani et al. 2017, "Attention Is All You Need", section 3; Press and Wolf 2017, "Using the Output
        Embedding to Improve Language Models", for tied embeddings.
    """

    has_attention = True
    head_parts = ("cross", "self")  # what `heads` returns
    block_class = TransformerDecoderBlock

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
        tie_embeddings: bool = True,
        position_order: str = "interleaved",
        max_wavelength: float = 10000.0,
        output_bias: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            vocabulary_size=vocabulary_size,
            layers=layers,
            units=units,
            feed_forward_units=feed_forward_units,
            num_heads=num_heads,
            positions=positions,
            max_positions=max_positions,
            activation=activation,
            normalize_first=normalize_first,
            dropout=dropout,
            attention_dropout=attention_dropout,
            activation_dropout=activation_dropout,
            num_key_value_heads=num_key_value_heads,
            scale_embeddings=scale_embeddings,
            equal_start=equal_start,
            position_order=position_order,
            max_wavelength=max_wavelength,
            **kwargs,
        )
        self.tie_embeddings = tie_embeddings
        self.output_bias = output_bias

    def build(self, target_shape: Any, memory_shape: dict[str, Any]) -> None:
        """Creates every weight from the width of the memory."""
        self.build_stack(memory_shape["values"])
        if not self.tie_embeddings:
            self.output_kernel = self.add_weight(
                shape=(self.vocabulary_size, self.units), initializer="glorot_uniform", name="output_kernel"
            )
        if self.output_bias:
            self.output_bias_vector = self.add_weight(
                shape=(self.vocabulary_size,), initializer="zeros", name="output_bias"
            )
        self.built = True

    def call(
        self,
        target: Any,
        memory: dict[str, Any],
        training: bool | None = None,
        return_attention: bool = False,
    ) -> Any:
        """Teacher forcing: predicts every next token of `target`."""
        values = ops.cast(memory["values"], self.compute_dtype)  # an encoder may have another policy
        x = self.embedding_dropout(self.embed(target), training=training)  # (B, T, D)
        attention = []
        for block in self.blocks:
            x = block(
                x,
                values,
                memory_mask=memory["mask"],
                training=training,
                return_attention=return_attention,
            )
            if return_attention:
                x, weights = x
                attention.append(weights)
        logits = self._logits(x)
        if not return_attention:
            return logits
        stacked = {
            name: ops.stack([weights[name] for weights in attention], axis=1)  # (B, N, H, T, S)
            for name in ("cross", "self")
        }
        return logits, {
            name: ops.transpose(weights, (0, 3, 1, 2, 4))  # (B, T, N, H, S)
            for name, weights in stacked.items()
        }

    # === Step by step ===

    def prepare(self, memory: dict[str, Any]) -> dict[str, Any]:
        """Projects the memory once for all positions.

        Args:
            memory: What an encoder returns.

        Returns:
            A nest of tensors for `initial_state` and `step`.
        """
        values = ops.cast(memory["values"], self.compute_dtype)
        return {
            "blocks": [block.prepare(values) for block in self.blocks],
            "mask": memory["mask"],
            "output_blocks": in_blocks(self._token_vectors, self.compute_dtype),
        }

    def initial_state(
        self,
        prepared: dict[str, Any],
        hypotheses: int = 1,
        max_positions: Any = None,
        reordered: bool = True,
    ) -> dict[str, Any]:
        """The state before the first position: an empty cache.

        Keys and values are large. Where a search drops hypotheses and goes on from others twice, they stay
        where they were written, in one cache for all hypotheses of a source, and only "origin" is reordered,
        which says whose are whose. Hypotheses that go on alone have a cache each, and read no other.

        Args:
            prepared: What `prepare` returned.
            hypotheses: K, the number of hypotheses per source.
            max_positions: Most positions there will be.
            reordered: Whether the hypotheses will be reordered, as beam search does.

        Returns:
            A dict of "position", a scalar; "shared", which has the "cache"; and, if more than one hypothesis
            is to be reordered, "origin", int (B, K, max_positions).

        Raises:
            ValueError: If `max_positions` is missing, or more than the table of learned positions has.
        """
        if max_positions is None:
            raise ValueError(
                "TransformerDecoder: expected max_positions, the size of the cache, received None; pass the "
                "number of positions that there will be"
            )
        limit = self.max_positions
        # Once compiled, a step past the table of learned positions would be NaN and no error.
        if limit is not None and isinstance(max_positions, int) and max_positions > limit:
            raise ValueError(
                f"TransformerDecoder: expected at most {limit} positions, the start token's included, "
                f"received {max_positions}; ask for shorter outputs, or learn more positions"
            )
        batch = ops.shape(prepared["mask"])[0]
        position = ops.convert_to_tensor(0, dtype="int32")
        together = reordered and hypotheses > 1
        rows, side_by_side = (batch, hypotheses) if together else (batch * hypotheses, 1)
        caches = [block.empty_cache(rows, max_positions, side_by_side) for block in self.blocks]
        state = {"position": position, "shared": {"cache": caches}}
        if together:
            state["origin"] = ops.zeros((batch, hypotheses, max_positions), dtype="int32")
        return state

    def step(self, token: Any, state: dict[str, Any], prepared: dict[str, Any]) -> tuple[Any, Any, Any]:
        """Advances every hypothesis by one token: the step contract of `models.search`.

        Args:
            token: int (B, K), the last token of each hypothesis.
            state: What `initial_state` or the step before returned.
            prepared: What `prepare` returned.

        Returns:
            Logits, float32 (B, K, V); the new state; the attention weights, a dict of "cross", float32
            (B, K, N, H, S), and "self" (B, K, N, H, max_positions).
        """
        batch, hypotheses = ops.shape(token)
        position, origin = state["position"], state.get("origin")
        if origin is not None:
            here = ops.arange(ops.shape(origin)[-1], dtype="int32") == position  # (max_positions,)
            own = ops.expand_dims(ops.arange(hypotheses, dtype="int32"), 1)  # (K, 1)
            origin = ops.where(here, own, origin)  # (B, K, max_positions)
        x = self.embed(ops.reshape(token, (-1, 1)), start=position)  # (B * K, 1, D)
        attention, written = [], []
        caches = zip(self.blocks, state["shared"]["cache"], prepared["blocks"], strict=True)
        for block, cache, memory in caches:
            x, weights, cache = block.step(x, cache, position, memory, prepared["mask"], hypotheses, origin)
            attention.append(weights)
            written.append(cache)
        own = [ops.squeeze(weights["self"], 2) for weights in attention]  # each (B * K, H, L)
        own = ops.stack(own, axis=1)  # (B * K, N, H, L)
        cross = ops.stack([weights["cross"] for weights in attention], axis=1)  # (B, N, H, K, S)
        x = ops.reshape(x, (batch, hypotheses, self.units))
        logits = self._logits(x, prepared["output_blocks"])  # (B, K, V)
        state = {"position": position + 1, "shared": {"cache": written}}
        if origin is not None:
            state["origin"] = origin
        return (
            logits,
            state,
            {
                "cross": ops.transpose(cross, (0, 3, 1, 2, 4)),  # (B, K, N, H, S)
                "self": split_hypotheses(own, batch, hypotheses),  # (B, K, N, H, L)
            },
        )

    def alignment(self, attention: dict[str, Any]) -> Any:
        """Where each position looked in the source, in one matrix.

        The mean over the heads of the last layer but one, which agrees best with word alignments (Garg et
        al. 2019, "Jointly Learning to Align and Translate with Transformer Models", section 4.1).

        Args:
            attention: A dict with "cross", (..., N, H, S).

        Returns:
            (..., S).
        """
        return ops.mean(attention["cross"][..., max(0, self.layers - 2), :, :], axis=-2)

    def heads(self, attention: dict[str, Any]) -> dict[str, Any]:
        """The attention by layer and head: {"cross": (..., N, H, S), "self": (..., N, H, L)}."""
        return attention

    def _logits(self, x: Any, output_blocks: Any = None) -> Any:
        if self.output_norm is not None:
            x = self.output_norm(x)
        logits = token_logits(x, self._token_vectors, output_blocks)  # (B, T, V)
        return logits + ops.cast(self.output_bias_vector, "float32") if self.output_bias else logits

    @property
    def _token_vectors(self) -> Any:
        return self.embedding.embeddings if self.tie_embeddings else self.output_kernel

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "tie_embeddings": self.tie_embeddings,
            "output_bias": self.output_bias,
        }
