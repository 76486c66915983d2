"""One layer of a Transformer decoder."""

from typing import Any

import keras

from attention_zoo.layers.transformer_block import TransformerBlock
from attention_zoo.ops import masks


@keras.saving.register_keras_serializable(package="attention_zoo")
class TransformerDecoderBlock(TransformerBlock):
    """Causal self-attention, attention to a memory, and a feed-forward layer.

        x = norm(x + self_attention(x, x, x))
        x = norm(x + cross_attention(x, memory, memory))
        x = norm(x + feed_forward(x))

    or, with `normalize_first`, with the normalization inside, as in `TransformerEncoderBlock`. Token by
    token, the memory is projected once and earlier keys and values are kept:

        memory, cache = block.prepare(values), block.empty_cache(batch_size, length)
        x, weights, cache = block.step(x, cache, position, memory, memory_mask)

    Args:
        num_heads: See `TransformerEncoderBlock`, as for every other argument.
        **kwargs: See `TransformerEncoderBlock`.

    Call arguments:
        x: Float (B, T, D).
        memory: Float (B, S, Dm).
        memory_mask: Boolean (B, S), True at real positions of the memory, or (B, T, S).
        x_mask: Boolean (B, T), True at real positions of `x`; not needed when padding comes last. Padded
            positions attend to nothing. Keras fills in both masks by itself from those of the inputs.
        training: Whether dropout is active.
        return_attention: Whether the attention weights are returned as well.

    Returns:
        Float (B, T, D); if asked, a pair of it and a dict of the weights, "self" (B, H, T, T) and "cross"
        (B, H, T, S), float32.

    Raises:
        ValueError: If a size is not positive, or the heads do not divide the width.

    Example:
        >>> block = TransformerDecoderBlock(num_heads=2, feed_forward_units=32)
        >>> block(keras.ops.ones((1, 3, 16)), keras.ops.ones((1, 5, 16))).shape
        TensorShape([1, 3, 16])

    Reference:
        Vaswani et al. 2017, "Attention Is All You Need", section 3.1.
    """

    def build(self, x_shape: tuple[int | None, ...], memory_shape: tuple[int | None, ...]) -> None:
        """Makes the weights for inputs and memory of these widths."""
        self.build_sublayers(x_shape)
        # Positions of the memory are not on one scale with those of the queries: nothing to rotate.
        self.cross_attention = self.make_attention("cross_attention", x_shape[-1], rotary=False)
        self.cross_attention.build(x_shape, memory_shape)
        self.cross_attention_norm = self.make_norm("cross_attention_norm")
        self.cross_attention_norm.build(x_shape)

    def call(
        self,
        x: Any,
        memory: Any,
        memory_mask: Any = None,
        x_mask: Any = None,
        training: bool | None = None,
        return_attention: bool = False,
    ) -> Any:
        """Attends and transforms; see the class."""
        memory_mask = masks.combine_masks(memory_mask)  # (B, 1, S) or (B, T, S)

        def attend_self(x: Any) -> tuple[Any, Any]:
            return self.attend(
                self.self_attention,
                x,
                x,
                return_attention,
                query_mask=x_mask,
                value_mask=x_mask,
                use_causal_mask=True,
                training=training,
            )

        def attend_memory(x: Any) -> tuple[Any, Any]:
            return self.attend(
                self.cross_attention,
                x,
                memory,
                return_attention,
                query_mask=x_mask,
                attention_mask=memory_mask,
                training=training,
            )

        x, own = self.residual(x, attend_self, self.self_attention_norm, training)
        x, cross = self.residual(x, attend_memory, self.cross_attention_norm, training)
        x = self.transform(x, training)
        return (x, {"self": own, "cross": cross}) if return_attention else x

    def prepare(self, memory: Any) -> dict[str, Any]:
        """Projects a memory (B, S, Dm) once for all positions."""
        return self.cross_attention.prepare(memory)

    def empty_cache(self, batch_size: Any, length: Any, hypotheses: int = 1) -> dict[str, Any]:
        """The cache of the self-attention before the first of `length` positions."""
        return self.self_attention.empty_cache(batch_size, length, hypotheses)

    def step(
        self,
        x: Any,
        cache: dict[str, Any],
        position: Any,
        memory: dict[str, Any],
        memory_mask: Any = None,
        hypotheses: int = 1,
        origin: Any = None,
    ) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """Computes one more position of `call`, for K hypotheses per memory.

        Args:
            x: Float (B * K, 1, D), what stands there; the hypotheses of one memory follow each other.
            cache: What `empty_cache(B * K, length)` or the step before returned; with `origin` what
                `empty_cache(B, length, K)` did.
            position: Its index, an integer scalar.
            memory: What `prepare` returned for B memories.
            memory_mask: Boolean (B, S), or None.
            hypotheses: K.
            origin: int (B, K, length), see `MultiHeadAttention.step`; None if each hypothesis has a cache of
                its own.

        Returns:
            Float (B * K, 1, D); the weights, "self" (B * K, H, 1, length) and "cross" (B, H, K, S); the
            new cache.
        """
        memory_mask = masks.combine_masks(memory_mask)  # (B, 1, S)

        def attend_self(x: Any) -> tuple[Any, Any]:
            if origin is None:
                output, weights, new = self.self_attention.step(x, cache, position)
                return output, (weights, new)
            width = x.shape[-1]
            together = keras.ops.reshape(x, (-1, hypotheses, width))  # (B, K, D)
            output, weights, new = self.self_attention.step(together, cache, position, origin)
            _, heads, _, length = keras.ops.shape(weights)
            weights = keras.ops.transpose(weights, (0, 2, 1, 3))  # (B, K, H, length)
            weights = keras.ops.reshape(weights, (-1, heads, 1, length))  # (B * K, H, 1, length)
            return keras.ops.reshape(output, (-1, 1, width)), (weights, new)

        def attend_memory(x: Any) -> tuple[Any, Any]:
            # The hypotheses stand where the positions of a sequence do: the memory is not repeated.
            width = x.shape[-1]
            query = keras.ops.reshape(x, (-1, hypotheses, width))  # (B, K, D)
            output, weights = self.cross_attention.attend(query, memory, memory_mask)
            return keras.ops.reshape(output, (-1, 1, width)), weights  # (B * K, 1, D)

        x, (own, cache) = self.residual(x, attend_self, self.self_attention_norm, False)
        x, cross = self.residual(x, attend_memory, self.cross_attention_norm, False)
        return self.transform(x, False), {"self": own, "cross": cross}, cache
