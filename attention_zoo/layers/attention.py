"""The general attention layer, on which the others are built."""

import functools
from typing import Any

import keras
from keras import ops

from attention_zoo.layers.dropout import Dropout
from attention_zoo.ops import attention as attention_ops
from attention_zoo.ops import masks, scores


@keras.saving.register_keras_serializable(package="attention_zoo")
class Attention(keras.layers.Layer):
    """Averages values by how well their keys fit a query.

    A query q_t, of width M, meets S keys k_s and values v_s:

        e_ts = score(project_query(q_t), project_key(k_s))
        a_ts = softmax over the allowed s of e_ts
        c_t  = sum over s of a_ts project_value(v_s)

    This class projects nothing and scores with the scaled dot product. A subclass overrides what
    differs: `project_query`, `project_key`, `project_value`, `compute_scores`, and makes its weights in
    `build_weights`.

    A decoder that asks the same memory at every step projects it once:

        memory = layer.project_memory(value)
        context, weights = layer.attend(query, memory, mask)

    Axis letters: B batch, T target (queries), S source (keys and values), U the width in which they are
    compared, Dq, Dk and Dv the widths of queries, keys and values.

    Args:
        dropout: Part of the attention weights to drop in training.
        seed: Seed of the dropout; None draws one from Keras' global generator.
        **kwargs: `name`, `dtype` and so on, see `keras.layers.Layer`.

    Call arguments:
        query: Float (B, T, Dq).
        value: Float (B, S, Dv).
        key: Float (B, S, Dk); the values if None.
        query_mask: Boolean (B, T). A masked query attends to nothing and gets a context of zeros.
        value_mask: Boolean (B, S), True where attention is allowed.
        key_mask: Boolean (B, S), the same for the keys. Keras fills in these three by itself from the
            inputs' own masks.
        attention_mask: Boolean (B, T, S) or (B, 1, S), True where attention is allowed.
        return_attention_scores: Whether to return the weights besides the context.
        training: Whether to drop weights.
        use_causal_mask: Whether query t may see the first t + 1 positions only.

    Returns:
        The context (B, T, Dv) in the compute dtype; with `return_attention_scores`, a pair of the context
        and the weights, float32 (B, T, S), as they are before dropout. Each row of the weights sums to
        1, or to 0 where nothing is allowed.

    Raises:
        ValueError: If shapes do not fit each other, or a mask is not boolean.

    Example:
        >>> import numpy as np
        >>> query, value = np.zeros((1, 2, 4)), np.array([[[1.0, 1, 1, 1], [3, 3, 3, 3]]])
        >>> Attention()(query, value).numpy().tolist()
        [[[2.0, 2.0, 2.0, 2.0], [2.0, 2.0, 2.0, 2.0]]]

    Reference:
        Vaswani et al. 2017, "Attention Is All You Need", section 3.2.1.
    """

    def __init__(self, dropout: float = 0.0, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dropout = dropout
        self.seed = seed
        self.weight_dropout = Dropout(dropout, seed=seed, dtype="float32", name="dropout")
        self.supports_masking = True

    # What a subclass overrides.

    def build_weights(self, query_dim: int, key_dim: int, value_dim: int) -> None:
        """Makes the weights, and raises ValueError if the widths are not possible."""
        if query_dim != key_dim:
            raise ValueError(
                f"{type(self).__name__}: expected queries and keys of the same width, received "
                f"{query_dim} and {key_dim}. Project one of them, or use a layer that does, such as "
                'AdditiveAttention or LuongAttention("general").'
            )

    def project_query(self, query: Any) -> Any:
        """(B, T, Dq) -> (B, T, U)."""
        return query

    def project_key(self, key: Any) -> Any:
        """(B, S, Dk) -> (B, S, U)."""
        return key

    def project_value(self, value: Any) -> Any:
        """(B, S, Dv) -> (B, S, Dv)."""
        return value

    def compute_scores(self, query: Any, key: Any) -> Any:
        """Projected queries (B, T, U) and keys (B, S, U) -> scores, float32 (B, T, S)."""
        return scores.scaled_dot_scores(query, key)

    def context_dim(self, query_dim: int, value_dim: int) -> int:
        """Width of the context for queries and values of these widths."""
        return value_dim

    # What every attention layer shares.

    def build(
        self,
        query_shape: tuple[int | None, ...],
        value_shape: tuple[int | None, ...],
        key_shape: tuple[int | None, ...] | None = None,
    ) -> None:
        """Makes the weights for inputs of these shapes."""
        key_shape = value_shape if key_shape is None else key_shape
        for name, shape in (("query", query_shape), ("value", value_shape), ("key", key_shape)):
            if len(shape) != 3 or shape[-1] is None:
                raise ValueError(
                    f"{type(self).__name__}: expected a {name} of shape (batch, positions, width) with a "
                    f"known width, received {tuple(shape)}. Reshape it."
                )
        if None not in (key_shape[1], value_shape[1]) and key_shape[1] != value_shape[1]:
            raise ValueError(
                f"{type(self).__name__}: expected a key for each value, received {key_shape[1]} keys and "
                f"{value_shape[1]} values. Pass both for the same positions."
            )
        self.build_weights(query_shape[-1], key_shape[-1], value_shape[-1])

    def project_memory(self, value: Any, key: Any = None) -> dict[str, Any]:
        """Projects what is attended to, once for all queries.

        Args:
            value: Float (B, S, Dv).
            key: Float (B, S, Dk); the values if None.

        Returns:
            {"key": (B, S, U), "value": (B, S, Dv)} in the compute dtype, to be given to `attend`.
        """
        value = ops.cast(value, self.compute_dtype)
        key = value if key is None else ops.cast(key, self.compute_dtype)
        return {"key": self.project_key(key), "value": self.project_value(value)}

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
            The context (B, T, Dv) in the compute dtype, and the weights before dropout, float32
            (B, T, S).
        """
        query = self.project_query(ops.cast(query, self.compute_dtype))
        dropout = functools.partial(self.weight_dropout, training=training)
        return attention_ops.attend(self.compute_scores(query, memory["key"]), memory["value"], mask, dropout)

    def call(
        self,
        query: Any,
        value: Any,
        key: Any = None,
        query_mask: Any = None,
        value_mask: Any = None,
        key_mask: Any = None,
        attention_mask: Any = None,
        return_attention_scores: bool = False,
        training: bool | None = None,
        use_causal_mask: bool = False,
    ) -> Any:
        """Attends; see the class."""
        if attention_mask is not None and len(attention_mask.shape) != 3:
            raise ValueError(
                f"{type(self).__name__}: expected an attention_mask of shape (B, T, S) or (B, 1, S), "
                f"received {tuple(attention_mask.shape)}. Pass a padding mask, (B, S), as value_mask."
            )
        if query_mask is not None:
            query_mask = ops.expand_dims(query_mask, -1)  # (B, T, 1)
        causal = masks.causal_mask(ops.shape(query)[1], ops.shape(value)[1]) if use_causal_mask else None
        mask = masks.combine_masks(query_mask, value_mask, key_mask, attention_mask, causal)
        context, weights = self.attend(query, self.project_memory(value, key), mask, training)
        return (context, weights) if return_attention_scores else context

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        """The context keeps the mask of the queries; the weights have none."""
        return previous_mask

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "dropout": self.dropout, "seed": self.seed}
