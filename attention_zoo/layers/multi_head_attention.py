"""Multi-head attention."""

from typing import Any

import keras
from keras import ops

from attention_zoo.layers.attention import Attention
from attention_zoo.ops import attention as attention_ops
from attention_zoo.ops import positions, scores
from attention_zoo.ops.linear import linear


@keras.saving.register_keras_serializable(package="attention_zoo")
class MultiHeadAttention(Attention):
    """Several attentions side by side, each in a projection of its own.

        head_i = softmax(Q W_i^Q (K W_i^K)' / sqrt(d)) V W_i^V
        output = [head_1; ...; head_H] W^O

    Arguments and calls are those of `keras.layers.MultiHeadAttention`, so that it takes its place;
    unlike there, a fully masked query gets an average of nothing, zeros, before W^O, the softmax is
    float32 under every policy, and the weights that are returned are those before dropout.

    A decoder that goes token by token keeps keys and values in a cache of fixed shape:

        cache = layer.empty_cache(batch_size, length)
        output, weights, cache = layer.step(token, cache, position)

    and projects a memory that does not change once, see `Attention`.

    Args:
        num_heads: H, the number of heads.
        key_dim: d, the width of each head's queries and keys.
        value_dim: Width of each head's values; `key_dim` if None.
        dropout: Part of the attention weights to drop in training.
        use_bias: Whether the four projections have biases.
        output_shape: Width of the output; the queries' if None.
        kernel_initializer: Initializer of the projections.
        bias_initializer: Initializer of the biases.
        seed: Seed of the dropout; None draws one from Keras' global generator.
        num_key_value_heads: G, the number of heads of keys and values, each shared by H / G heads of
            queries; H if None, 1 is multi-query attention.
        rotary: Whether queries and keys are rotated by their positions (self-attention only).
        **kwargs: `name`, `dtype` and so on, see `keras.layers.Layer`.

    Call arguments:
        See `Attention`.

    Returns:
        The output (B, T, Do) in the compute dtype; with `return_attention_scores`, a pair of the output
        and the weights, float32 (B, H, T, S).

    Raises:
        ValueError: If a size is not positive, G does not divide H, or shapes or masks do not fit.

    Example:
        >>> layer = MultiHeadAttention(num_heads=2, key_dim=8)
        >>> output, weights = layer(ops.ones((1, 3, 16)), ops.ones((1, 5, 16)), return_attention_scores=True)
        >>> output.shape, weights.shape
        (TensorShape([1, 3, 16]), TensorShape([1, 2, 3, 5]))

    Reference:
        Vaswani et al. 2017, "Attention Is All You Need", section 3.2.2. Shared heads: Shazeer 2019, "Fast
        Transformer Decoding", section 3; Ainslie et al. 2023, "GQA". Rotation: Su et al. 2021,
        "RoFormer", section 3.2.2.
    """

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        value_dim: int | None = None,
        dropout: float = 0.0,
        use_bias: bool = True,
        output_shape: int | None = None,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        seed: int | None = None,
        num_key_value_heads: int | None = None,
        rotary: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(dropout=dropout, seed=seed, **kwargs)
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.value_dim = key_dim if value_dim is None else value_dim
        self.use_bias = use_bias
        self.output_shape = output_shape
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.num_key_value_heads = num_heads if num_key_value_heads is None else num_key_value_heads
        self.rotary = rotary
        sizes = {
            "num_heads": num_heads,
            "key_dim": key_dim,
            "value_dim": self.value_dim,
            "num_key_value_heads": self.num_key_value_heads,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"MultiHeadAttention: expected {name} of at least 1, received {size}")
        if num_heads % self.num_key_value_heads:
            raise ValueError(
                "MultiHeadAttention: expected num_key_value_heads to divide num_heads, received "
                f"{self.num_key_value_heads} and {num_heads}"
            )
        if rotary and key_dim % 2:
            raise ValueError(f"MultiHeadAttention: expected an even key_dim with rotary, received {key_dim}")

    def build_weights(self, query_dim: int, key_dim: int, value_dim: int) -> None:
        """Makes a matrix and a bias for queries, keys, values and output: heads side by side."""
        keys, values = (self.num_key_value_heads * width for width in (self.key_dim, self.value_dim))
        shapes = {
            "query": (query_dim, self.num_heads * self.key_dim),
            "key": (key_dim, keys),
            "value": (value_dim, values),
            "output": (self.num_heads * self.value_dim, self.context_dim(query_dim, value_dim)),
        }
        for name, shape in shapes.items():
            kernel = self.add_weight(shape, self.kernel_initializer, name=f"{name}_kernel")
            setattr(self, f"{name}_kernel", kernel)
            bias = None
            if self.use_bias:
                bias = self.add_weight(shape[1:], self.bias_initializer, name=f"{name}_bias")
            setattr(self, f"{name}_bias", bias)

    def context_dim(self, query_dim: int, value_dim: int) -> int:
        """Width of the output."""
        return self.output_shape or query_dim

    # === Projections ===

    def project_query(self, query: Any, start: Any = 0) -> Any:
        """(B, T, Dq) -> (B, H, T, d); `start` is the position of the first query."""
        return self._rotated(self._heads(self._projected(query, "query"), self.num_heads), start)

    def project_memory(self, value: Any, key: Any = None, start: Any = 0) -> dict[str, Any]:
        """Projects what is attended to, once for all queries.

        Args:
            value: Float (B, S, Dv).
            key: Float (B, S, Dk); the values if None.
            start: Position of the first key.

        Returns:
            A dict of "key" (B, G, S, d) and "value" (B, G, S, value_dim).
        """
        value = ops.cast(value, self.compute_dtype)
        key = value if key is None else ops.cast(key, self.compute_dtype)
        groups = self.num_key_value_heads
        return {
            "key": self._rotated(self._heads(self._projected(key, "key"), groups), start),
            "value": self._heads(self._projected(value, "value"), groups),
        }

    def _project_self(self, x: Any, start: Any = 0) -> tuple[Any, dict[str, Any]]:
        """Queries and memory of one sequence, by one product."""
        x = ops.cast(x, self.compute_dtype)
        projected = self._projected(x, "query", "key", "value")
        queries = self.num_heads * self.key_dim
        keys = self.num_key_value_heads * self.key_dim
        query, key, value = ops.split(projected, [queries, queries + keys], axis=-1)
        groups = self.num_key_value_heads
        memory = {
            "key": self._rotated(self._heads(key, groups), start),
            "value": self._heads(value, groups),
        }
        return self._rotated(self._heads(query, self.num_heads), start), memory

    def _projected(self, x: Any, *names: str) -> Any:
        """The projections of these names, side by side: (B, T, D) -> (B, T, sum of the widths)."""
        kernels = [ops.cast(getattr(self, f"{name}_kernel"), x.dtype) for name in names]
        x = linear(x, ops.concatenate(kernels, axis=1) if len(names) > 1 else kernels[0])
        if self.use_bias:
            x = x + ops.concatenate([ops.cast(getattr(self, f"{name}_bias"), x.dtype) for name in names])
        return x

    def _heads(self, x: Any, heads: int) -> Any:
        batch, length, width = ops.shape(x)
        x = ops.reshape(x, (batch, length, heads, width // heads))  # (B, T, H, d)
        return ops.transpose(x, (0, 2, 1, 3))  # (B, H, T, d)

    def _rotated(self, x: Any, start: Any) -> Any:
        if not self.rotary:
            return x
        return positions.rotate(x, start + ops.arange(ops.shape(x)[2], dtype="int32"))

    # === Attending ===

    def attend(
        self, query: Any, memory: dict[str, Any], mask: Any = None, training: bool | None = None
    ) -> tuple[Any, Any]:
        """Lets queries attend to a projected memory.

        Args:
            query: Float (B, T, Dq).
            memory: What `project_memory` returned.
            mask: Boolean (B, T, S) or (B, 1, S), True where attention is allowed; None allows all.
            training: Whether to drop weights.

        Returns:
            The output (B, T, Do) in the compute dtype, and the weights before dropout, float32
            (B, H, T, S).
        """
        query = self.project_query(ops.cast(query, self.compute_dtype))
        return self._attend(query, memory, mask, training)

    def _attend(
        self, query: Any, memory: dict[str, Any], mask: Any, training: bool | None
    ) -> tuple[Any, Any]:
        """The same for projected queries (B, H, T, d)."""
        groups, shared = self.num_key_value_heads, self.num_heads // self.num_key_value_heads
        batch, _, length, _ = ops.shape(query)
        if shared > 1:  # the heads that share keys, one after the other, as more queries
            query = ops.reshape(query, (batch, groups, shared * length, self.key_dim))  # (B, G, H/G * T, d)
        e = scores.scaled_dot_scores(query, memory["key"])  # (B, G, H/G * T, S)
        if shared > 1:
            e = ops.reshape(e, (batch, self.num_heads, length, ops.shape(e)[-1]))  # (B, H, T, S)
        if mask is not None:
            mask = ops.expand_dims(mask, 1)  # (B, 1, T, S)
        weights = attention_ops.attention_weights(e, mask)
        applied = self.weight_dropout(weights, training=training)
        value = memory["value"]
        if shared > 1:
            applied = ops.reshape(applied, (batch, groups, shared * length, ops.shape(e)[-1]))
        heads = ops.matmul(ops.cast(applied, value.dtype), value)  # (B, G, H/G * T, value_dim)
        if shared > 1:
            heads = ops.reshape(heads, (batch, self.num_heads, length, self.value_dim))  # (B, H, T, Dv)
        heads = ops.transpose(heads, (0, 2, 1, 3))  # (B, T, H, Dv)
        heads = ops.reshape(heads, (batch, length, self.num_heads * self.value_dim))
        return self._projected(heads, "output"), weights

    def _attend_all(
        self, query: Any, value: Any, key: Any, mask: Any, training: bool | None
    ) -> tuple[Any, Any]:
        if query is value and (key is None or key is value):
            return self._attend(*self._project_self(query), mask, training)
        return self.attend(query, self.project_memory(value, key), mask, training)

    # === Token by token ===

    def empty_cache(self, batch_size: Any, length: Any) -> dict[str, Any]:
        """Room for the keys and values of `length` positions.

        Args:
            batch_size: B.
            length: Number of positions.

        Returns:
            A dict of zeros, "key" (B, G, length, d) and "value" (B, G, length, value_dim).
        """
        shape = (batch_size, self.num_key_value_heads, length)
        return {
            "key": ops.zeros((*shape, self.key_dim), self.compute_dtype),
            "value": ops.zeros((*shape, self.value_dim), self.compute_dtype),
        }

    def step(self, x: Any, cache: dict[str, Any], position: Any) -> tuple[Any, Any, dict[str, Any]]:
        """Causal self-attention of one more position.

        Args:
            x: Float (B, 1, D), what stands there.
            cache: What `empty_cache` or the step before returned.
            position: Its index, an integer scalar.

        Returns:
            The output (B, 1, Do), the weights, float32 (B, H, 1, length), and the new cache.
        """
        query, new = self._project_self(x, position)
        cache = {
            name: ops.slice_update(cache[name], (0, 0, position, 0), new[name]) for name in ("key", "value")
        }
        seen = ops.arange(ops.shape(cache["key"])[2], dtype="int32") <= position  # (length,)
        output, weights = self._attend(query, cache, ops.reshape(seen, (1, 1, -1)), training=False)
        return output, weights, cache

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "key_dim": self.key_dim,
            "value_dim": self.value_dim,
            "use_bias": self.use_bias,
            "output_shape": self.output_shape,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "num_key_value_heads": self.num_key_value_heads,
            "rotary": self.rotary,
        }
