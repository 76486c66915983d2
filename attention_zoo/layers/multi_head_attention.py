"""Multi-head attention."""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from attention_zoo.layers.attention import Attention
from attention_zoo.ops import attention as attention_ops
from attention_zoo.ops import chunked_attention, masks, positions, scores
from attention_zoo.ops.linear import linear


@keras.saving.register_keras_serializable(package="attention_zoo")
class MultiHeadAttention(Attention):
    """Several attentions side by side, each in a projection of its own.

        head_i = softmax(Q W_i^Q (K W_i^K)' / sqrt(d)) V W_i^V
        output = [head_1; ...; head_H] W^O

    Arguments and calls are those of `keras.layers.MultiHeadAttention`, so that it takes its place. What
    differs: a fully masked query gets an average of nothing, zeros, before W^O; the softmax is float32
    under every policy; the weights that are returned are those before dropout; dropout and flash attention
    go together; masks must be boolean. Kernels are matrices, heads side by side, and that is how
    initializers, regularizers and constraints see them.

    A decoder that goes token by token keeps keys and values in a cache of fixed shape:

        cache = layer.empty_cache(batch_size, length)
        output, weights, cache = layer.step(token, cache, position)

    and projects a memory that does not change once, see `Attention`.

    Args:
        num_heads: H, the number of heads.
        key_dim: d, the width of each head's queries and keys.
        value_dim: Width of each head's values; `key_dim` if None.
        dropout: Part of the attention weights to drop in training.
        use_bias: Whether the projections have biases.
        output_shape: Width of the output, or a tuple of the axes that it has instead; the queries' width
            if None.
        attention_axes: Axis or axes of the inputs that attention covers; all but the first and the last
            if None. Positions on the other axes do not see each other.
        sliding_window: How near a key must be: query t sees the keys s with |t - s| below it, in `call`
            and `step`; None means everywhere. `attend` leaves that to its mask.
        flash_attention: Whether `call` computes the weights piece by piece, in memory that grows with the
            length and not its square. The result is the same, but there are no weights to return. None
            does so for long sequences, unless weights are asked for or a length is unknown.
        kernel_initializer: Initializer of the projections.
        bias_initializer: Initializer of the biases.
        kernel_regularizer: Regularizer of the projections.
        bias_regularizer: Regularizer of the biases.
        activity_regularizer: Regularizer of what the layer returns, as for every Keras layer; in Keras'
            own multi-head attention it is applied to the projections.
        kernel_constraint: Constraint of the projections.
        bias_constraint: Constraint of the biases.
        use_gate: Whether the heads' outputs are multiplied with sigmoid(Q W^G) before W^O.
        seed: Seed of the dropout; None draws one from Keras' global generator.
        num_key_value_heads: G, the number of heads of keys and values, each shared by H / G heads of
            queries; H if None, 1 is multi-query attention.
        rotary: Whether queries and keys are rotated by their positions (self-attention only).
        equal_start: Whether kernels of equal shape start with the same numbers. Queries then equal keys at
            first, so that every position attends to what is like it: a start that learns faster from little
            data.
        **kwargs: `name`, `dtype` and so on, see `keras.layers.Layer`.

    Call arguments:
        query: Float (B, T, Dq); or of higher rank, such as a grid (B, height, width, Dq). Positions of
            several attention axes are counted row by row.
        value: Float (B, S, Dv), of the same rank as the query.
        key: Float (B, S, Dk); the values if None.
        query_mask: Boolean (B, T). A masked query attends to nothing.
        value_mask: Boolean (B, S), True where attention is allowed.
        key_mask: Boolean (B, S), the same for the keys. Keras fills in these three by itself from the
            inputs' own masks.
        attention_mask: Boolean (B, T, S) or (B, 1, S), or (B, H, T, S) by head, True where attention is
            allowed. For inputs of higher rank, (B, other axes, H, axes of T, axes of S), where H, or the
            other axes and H, may be left out.
        return_attention_scores: Whether to return the weights besides the output.
        training: Whether to drop weights.
        use_causal_mask: Whether query t may see the first t + 1 positions only.

    Returns:
        The output (B, T, Do) in the compute dtype; with `return_attention_scores`, a pair of the output
        and the weights, float32 (B, H, T, S). For inputs of higher rank, the output has the axes of the
        query, and the weights are (B, other axes, H, axes of T, axes of S).

    Raises:
        ValueError: If a size is not positive, G does not divide H, shapes, axes or masks do not fit, or
            weights are asked for with `flash_attention=True`.

    Example:
        >>> layer = MultiHeadAttention(num_heads=2, key_dim=8)
        >>> output, weights = layer(ops.ones((1, 3, 16)), ops.ones((1, 5, 16)), return_attention_scores=True)
        >>> output.shape, weights.shape
        (TensorShape([1, 3, 16]), TensorShape([1, 2, 3, 5]))

    Reference:
        Vaswani et al. 2017, "Attention Is All You Need", section 3.2.2. Shared heads: Shazeer 2019, "Fast
        Transformer Decoding", section 3; Ainslie et al. 2023, "GQA". Rotation: Su et al. 2021,
        "RoFormer", section 3.2.2. Equal start: after Trockman and Kolter 2023, "Mimetic Initialization of
        Self-Attention Layers". Window: Beltagy et al. 2020, "Longformer", section 3.1. Gate: Qiu et al.
        2025, "Gated Attention for Large Language Models", section 2.2.
    """

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        value_dim: int | None = None,
        dropout: float = 0.0,
        use_bias: bool = True,
        output_shape: int | Sequence[int] | None = None,
        attention_axes: int | Sequence[int] | None = None,
        sliding_window: int | None = None,
        flash_attention: bool | None = None,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        use_gate: bool = False,
        seed: int | None = None,
        *,
        num_key_value_heads: int | None = None,
        rotary: bool = False,
        equal_start: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(dropout=dropout, seed=seed, activity_regularizer=activity_regularizer, **kwargs)
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.value_dim = key_dim if value_dim is None else value_dim
        self.use_bias = use_bias
        # Not as `output_shape`: `Model.summary` takes an attribute of that name for the whole shape.
        self.output_sizes = _tuple(output_shape)
        self.attention_axes = _tuple(attention_axes)
        self.sliding_window = sliding_window
        self.flash_attention = flash_attention
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self.use_gate = use_gate
        self.num_key_value_heads = num_heads if num_key_value_heads is None else num_key_value_heads
        self.rotary = rotary
        self.equal_start = equal_start
        self._check_arguments()

    def _check_arguments(self) -> None:
        sizes = {
            name: getattr(self, name) for name in ("num_heads", "key_dim", "value_dim", "num_key_value_heads")
        }
        if self.sliding_window is not None:
            sizes["sliding_window"] = self.sliding_window
        if self.output_sizes is not None:
            sizes["output_shape"] = min(self.output_sizes, default=0)
        for name, size in sizes.items():
            if not isinstance(size, int) or size < 1:
                raise ValueError(
                    f"MultiHeadAttention: expected {name} of at least 1, an integer, received {size}"
                )
        if self.num_heads % self.num_key_value_heads:
            raise ValueError(
                "MultiHeadAttention: expected num_key_value_heads to divide num_heads, received "
                f"{self.num_key_value_heads} and {self.num_heads}"
            )
        if self.rotary and self.key_dim % 2:
            raise ValueError(
                f"MultiHeadAttention: expected an even key_dim with rotary, received {self.key_dim}"
            )
        if self.attention_axes == ():
            raise ValueError(
                "MultiHeadAttention: expected at least one axis in attention_axes, received (). None means "
                "all but the first and the last."
            )

    def build(
        self,
        query_shape: tuple[int | None, ...],
        value_shape: tuple[int | None, ...],
        key_shape: tuple[int | None, ...] | None = None,
    ) -> None:
        """Makes the weights for inputs of these shapes."""
        shapes = [query_shape, value_shape, value_shape if key_shape is None else key_shape]
        if len(query_shape) >= 3:
            covered = self._covered_axes(len(query_shape))
        if len(query_shape) > 3:
            _check_grids(*shapes, covered)
            shapes = [(None, None, shape[-1]) for shape in shapes]  # (B * F, T, D)
        super().build(*shapes)

    def build_weights(self, query_dim: int, key_dim: int, value_dim: int) -> None:
        """Makes a matrix and a bias for queries, keys, values, gate and output: heads side by side."""
        heads = self.num_heads * self.value_dim
        shapes = {
            "query": (query_dim, self.num_heads * self.key_dim),
            "key": (key_dim, self.num_key_value_heads * self.key_dim),
            "value": (value_dim, self.num_key_value_heads * self.value_dim),
            "gate": (query_dim, heads),
            "output": (heads, self.context_dim(query_dim, value_dim)),
        }
        if not self.use_gate:
            del shapes["gate"]
        for name, shape in shapes.items():
            kernel = self.add_weight(
                shape,
                self.kernel_initializer if self.equal_start else _fresh(self.kernel_initializer),
                regularizer=self.kernel_regularizer,
                constraint=self.kernel_constraint,
                name=f"{name}_kernel",
            )
            setattr(self, f"{name}_kernel", kernel)
            bias = None
            if self.use_bias:
                bias = self.add_weight(
                    shape[1:],
                    _fresh(self.bias_initializer),
                    regularizer=self.bias_regularizer,
                    constraint=self.bias_constraint,
                    name=f"{name}_bias",
                )
            setattr(self, f"{name}_bias", bias)

    def context_dim(self, query_dim: int, value_dim: int) -> int:
        """Width of the output, of all its axes together."""
        return query_dim if self.output_sizes is None else math.prod(self.output_sizes)

    # === Projections ===

    def project_query(self, query: Any, start: Any = 0) -> Any:
        """(B, T, Dq) -> (B, H, T, d); `start` is the position of the first query."""
        places = positions.positions_from(start, ops.shape(query)[1])  # (T,)
        return self._rotated(self._heads(self._projected(query, "query"), self.num_heads), places)

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
        places = positions.positions_from(start, ops.shape(key)[1])  # (S,)
        return {
            "key": self._rotated(self._heads(self._projected(key, "key"), groups), places),
            "value": self._heads(self._projected(value, "value"), groups),
        }

    def prepare(self, value: Any) -> dict[str, Any]:
        """What `attend` needs of a memory that it is asked about many times, as in a search.

        A short memory takes in the matrices of queries and output, for several queries at once:

            (x W_q) k' = x (W_q k')        (weights v) W_o = weights (v W_o)

        It is short if what comes of that is no larger than the matrices. Layers that rotate or gate, and such
        as compute in half precision, only project it.

        Args:
            value: Float (B, S, Dv).

        Returns:
            What `project_memory` returns; of a short memory also "query_kernel" (B, Dq, H * S),
            "query_bias" (B, 1, H * S) and "output_kernel" (B, H * S, Do).

        Reference:
            DeepSeek-AI 2024, "DeepSeek-V2", section 2.1.2, which does so with matrices of its own.
        """
        memory = self.project_memory(value)
        batch, _, length, _ = memory["key"].shape
        known = isinstance(batch, int) and isinstance(length, int)
        if (
            not known
            or batch * length > min(self.key_dim, self.value_dim)
            or self.rotary
            or self.use_gate
            or self.compute_dtype != "float32"  # it would be rounded once more
        ):
            return memory
        shared = self.num_heads // self.num_key_value_heads
        key, value = (ops.repeat(memory[name], shared, axis=1) for name in ("key", "value"))  # (B, H, S, d)

        def meet_keys(weight: Any) -> Any:
            """(N, H * d), or (H * d,) for one row of it -> (B, N, H * S)."""
            rows = ops.reshape(weight, (1, -1, self.num_heads * self.key_dim))
            e = scores.scaled_dot_scores(self._heads(rows, self.num_heads), key)  # (B, H, N, S)
            return ops.reshape(ops.swapaxes(e, 1, 2), (batch, -1, self.num_heads * length))

        output_kernel = ops.reshape(self.output_kernel, (self.num_heads, self.value_dim, -1))  # (H, Dv, Do)
        prepared = {
            **memory,
            "query_kernel": meet_keys(self.query_kernel),
            "output_kernel": ops.reshape(
                ops.matmul(value, output_kernel), (batch, self.num_heads * length, -1)
            ),
        }
        if self.use_bias:
            prepared["query_bias"] = meet_keys(self.query_bias)
        return prepared

    def _project_self(self, x: Any, places: Any) -> tuple[Any, dict[str, Any]]:
        """Queries and memory of one sequence whose vectors stand at `places`, (T,), by one product."""
        x = ops.cast(x, self.compute_dtype)
        projected = self._projected(x, "query", "key", "value")
        queries = self.num_heads * self.key_dim
        keys = self.num_key_value_heads * self.key_dim
        query, key, value = ops.split(projected, [queries, queries + keys], axis=-1)
        groups = self.num_key_value_heads
        memory = {
            "key": self._rotated(self._heads(key, groups), places),
            "value": self._heads(value, groups),
        }
        return self._rotated(self._heads(query, self.num_heads), places), memory

    def _gate(self, query: Any) -> Any:
        """(B, T, Dq) -> (B, H, T, value_dim), or None without a gate."""
        if not self.use_gate:
            return None
        query = ops.cast(query, self.compute_dtype)
        return ops.sigmoid(self._heads(self._projected(query, "gate"), self.num_heads))

    def _projected(self, x: Any, *names: str) -> Any:
        """The projections of these names, side by side: (B, T, D) -> (B, T, sum of the widths)."""

        def joined(kind: str) -> Any:
            weights = [ops.cast(getattr(self, f"{name}_{kind}"), x.dtype) for name in names]
            return ops.concatenate(weights, axis=-1) if len(names) > 1 else weights[0]

        return linear(x, joined("kernel"), joined("bias") if self.use_bias else None)

    def _heads(self, x: Any, heads: int) -> Any:
        batch, length, width = ops.shape(x)
        x = ops.reshape(x, (batch, length, heads, width // heads))  # (B, T, H, d)
        return ops.transpose(x, (0, 2, 1, 3))  # (B, H, T, d)

    def _rotated(self, x: Any, places: Any) -> Any:
        """(B, H, T, d), turned by where its vectors stand, (T,), if the layer does that."""
        return positions.rotate(x, places) if self.rotary else x

    # === Attending ===

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
        if self.flash_attention and return_attention_scores:
            raise ValueError(
                "MultiHeadAttention: expected no return_attention_scores with flash_attention=True, which "
                "never has the weights in one piece. Pass flash_attention=None, which materialises them when "
                "they are asked for."
            )
        if len(query.shape) > 3:
            paddings = (query_mask, value_mask, key_mask)
            how = (return_attention_scores, training, use_causal_mask)
            return self._call_on_grids(query, value, key, paddings, attention_mask, how)
        self._check_mask(attention_mask)
        target, source = ops.shape(query)[1], ops.shape(value)[1]
        window = None if self.sliding_window is None else self._window(target, source)
        hidden = (value_mask, key_mask, window)
        gate = self._gate(query)
        projected = self._project_all(query, value, key)
        if self._in_pieces(target, source, return_attention_scores):
            mask = _combine(attention_mask, *hidden)
            heads = self._average_in_pieces(*projected, mask, query_mask, use_causal_mask, training)
            weights = None
        else:
            causal = masks.causal_mask(target, source) if use_causal_mask else None
            if query_mask is not None:
                query_mask = ops.expand_dims(query_mask, -1)  # (B, T, 1)
            mask = _combine(attention_mask, *hidden, query_mask, causal)
            heads, weights = self._average(*projected, mask, training)
        output = self._output(heads, gate)
        return (output, weights) if return_attention_scores else output

    def _call_on_grids(
        self, query: Any, value: Any, key: Any, paddings: Sequence, attention_mask: Any, how: Sequence
    ) -> Any:
        """`call` for inputs of rank above 3, by way of sequences."""
        grid = _Grid(query, value, self._covered_axes(len(query.shape)))
        sequence = grid.sequence(query)  # (B * F, T, D)
        # What is the same stays the same, so that it is projected at once.
        others = [sequence if x is query else grid.sequence(x) for x in (value, key) if x is not None]
        key = others[1] if len(others) > 1 else None
        paddings = [grid.padding(mask) for mask in paddings]
        results = self.call(sequence, others[0], key, *paddings, grid.attention_mask(attention_mask), *how)
        if isinstance(results, tuple):
            return grid.output(results[0]), grid.weights(results[1])
        return grid.output(results)

    def attend(
        self, query: Any, memory: dict[str, Any], mask: Any = None, training: bool | None = None
    ) -> tuple[Any, Any]:
        """Lets queries attend to a projected memory.

        Args:
            query: Float (B, T, Dq).
            memory: What `project_memory` or `prepare` returned.
            mask: Boolean (B, T, S), (B, 1, S) or (B, H, T, S), True where attention is allowed; None
                allows all.
            training: Whether to drop weights.

        Returns:
            The output (B, T, Do) in the compute dtype, and the weights before dropout, float32
            (B, H, T, S).
        """
        query = ops.cast(query, self.compute_dtype)
        # A single query gains nothing: XLA has another way to multiply one row.
        if "output_kernel" in memory and query.shape[1] != 1:
            return self._attend_prepared(query, memory, mask, training)
        heads, weights = self._average(self.project_query(query), memory, mask, training)
        return self._output(heads, self._gate(query)), weights

    def _attend_prepared(
        self, query: Any, memory: dict[str, Any], mask: Any, training: bool | None
    ) -> tuple[Any, Any]:
        """`attend` to a memory that has taken in the matrices of queries and output."""
        batch, length, _ = ops.shape(query)
        e = ops.matmul(query, memory["query_kernel"])  # (B, T, H * S)
        if self.use_bias:
            e = e + memory["query_bias"]
        e = ops.reshape(e, (batch, length, self.num_heads, -1))  # (B, T, H, S)
        weights = attention_ops.attention_weights(ops.swapaxes(e, 1, 2), _by_head(mask))  # (B, H, T, S)
        applied = ops.swapaxes(self.weight_dropout(weights, training=training), 1, 2)  # (B, T, H, S)
        output = ops.matmul(ops.reshape(applied, (batch, length, -1)), memory["output_kernel"])  # (B, T, Do)
        return self._output_axes(output + self.output_bias if self.use_bias else output), weights

    def _project_all(self, query: Any, value: Any, key: Any) -> tuple[Any, dict[str, Any]]:
        if query is value and (key is None or key is value):
            return self._project_self(query, ops.arange(ops.shape(query)[1], dtype="int32"))
        return self.project_query(ops.cast(query, self.compute_dtype)), self.project_memory(value, key)

    def _average(
        self, query: Any, memory: dict[str, Any], mask: Any, training: bool | None
    ) -> tuple[Any, Any]:
        """Queries (B, H, T, d) and a memory -> (B, H, T, value_dim), and the weights (B, H, T, S).

        A cache has (B * G, ...) where other memories have (B, G, ...): see `empty_cache`.
        """
        groups, shared = self.num_key_value_heads, self.num_heads // self.num_key_value_heads
        batch, _, length, _ = ops.shape(query)
        key, value = memory["key"], memory["value"]
        cached = len(key.shape) == 3
        regrouped = cached or shared > 1
        if regrouped:  # the heads that share keys, one after the other, as more queries
            axes = (batch * groups,) if cached else (batch, groups)
            query = ops.reshape(query, (*axes, shared * length, self.key_dim))  # (B, G, H/G * T, d)
        e = scores.scaled_dot_scores(query, key)  # (B, G, H/G * T, S)
        if regrouped:
            e = ops.reshape(e, (batch, self.num_heads, length, ops.shape(e)[-1]))  # (B, H, T, S)
        weights = attention_ops.attention_weights(e, _by_head(mask))
        applied = self.weight_dropout(weights, training=training)
        if regrouped:
            applied = ops.reshape(applied, (*axes, shared * length, ops.shape(e)[-1]))
        heads = ops.matmul(ops.cast(applied, value.dtype), value)  # (B, G, H/G * T, value_dim)
        if regrouped:
            heads = ops.reshape(heads, (batch, self.num_heads, length, self.value_dim))  # (B, H, T, Dv)
        return heads, weights

    def _average_in_pieces(
        self,
        query: Any,
        memory: dict[str, Any],
        mask: Any,
        query_mask: Any,
        causal: bool,
        training: bool | None,
    ) -> Any:
        """The same without the weights; what can be kept from becoming a mask (B, T, S) is kept apart."""
        dropout = self.weight_dropout.rate if training else 0.0
        heads = chunked_attention.attend_in_chunks(
            query,
            memory["key"],
            memory["value"],
            mask=_by_head(mask),
            causal=causal,
            dropout=dropout,
            seed=self.weight_dropout.draw_seed() if dropout else None,
        )
        if query_mask is None:
            return heads
        query_mask = ops.expand_dims(masks.combine_masks(query_mask), -1)  # (B, 1, T, 1)
        return ops.where(query_mask, heads, ops.zeros_like(heads))

    def _in_pieces(self, target: Any, source: Any, weights_wanted: bool) -> bool:
        """Whether to do without the weights, for sequences of these lengths."""
        if self.flash_attention is not None:
            return self.flash_attention
        known = isinstance(target, int) and isinstance(source, int)
        return known and not weights_wanted and target * source >= chunked_attention.AUTOMATIC_LENGTH**2

    def _output(self, heads: Any, gate: Any) -> Any:
        """(B, H, T, value_dim) -> (B, T, Do)."""
        batch, _, length, _ = ops.shape(heads)
        if gate is not None:
            heads = heads * gate
        heads = ops.transpose(heads, (0, 2, 1, 3))  # (B, T, H, Dv)
        heads = ops.reshape(heads, (batch, length, self.num_heads * self.value_dim))
        return self._output_axes(self._projected(heads, "output"))

    def _output_axes(self, output: Any) -> Any:
        """(B, T, Do) -> (B, T, ...)."""
        if self.output_sizes is None or len(self.output_sizes) == 1:
            return output
        return ops.reshape(output, (*ops.shape(output)[:2], *self.output_sizes))

    def _window(self, target: Any, source: Any) -> Any:
        """Lets queries see the keys around them: (1, T, S)."""
        return self._near(ops.expand_dims(ops.arange(target), 1), ops.arange(source))[None]

    def _near(self, target: Any, source: Any) -> Any:
        return ops.abs(target - source) < self.sliding_window

    def _covered_axes(self, rank: int) -> tuple[int, ...]:
        """The attention axes of inputs of this rank."""
        if self.attention_axes is None:
            return tuple(range(1, rank - 1))
        axes = tuple(axis + rank if axis < 0 else axis for axis in self.attention_axes)
        if len(set(axes)) < len(axes) or not all(0 < axis < rank - 1 for axis in axes):
            raise ValueError(
                "MultiHeadAttention: expected attention_axes between the first axis and the last, each once, "
                f"received {self.attention_axes} for inputs of rank {rank}"
            )
        return axes

    def _check_mask(self, mask: Any) -> None:
        if mask is None or len(mask.shape) == 3:
            return
        if len(mask.shape) != 4 or mask.shape[1] not in (1, self.num_heads, None):
            raise ValueError(
                "MultiHeadAttention: expected an attention_mask of shape (B, T, S), (B, 1, S) or "
                f"(B, {self.num_heads}, T, S), received {tuple(mask.shape)}. Pass a padding mask, (B, S), as "
                "value_mask."
            )

    # === Token by token ===

    def empty_cache(self, batch_size: Any, length: Any, hypotheses: int = 1) -> dict[str, Any]:
        """Room for the keys and values of `length` positions.

        Args:
            batch_size: B.
            length: Number of positions.
            hypotheses: K, how many stand side by side at every position.

        Returns:
            A dict of zeros, "key" (B * G, d, length * K) and "value" (B * G, length * K, value_dim).
        """
        places, rows = length * hypotheses, batch_size * self.num_key_value_heads
        # The axes of a product of many matrices. With any other, of length 1 say, XLA would not see that the
        # cache that is written to is the one that is read, and copy the whole of it at every position.
        return {
            # Keys stand in columns: their products with a few queries are faster than with keys in rows.
            "key": ops.zeros((rows, self.key_dim, places), self.compute_dtype),
            "value": ops.zeros((rows, places, self.value_dim), self.compute_dtype),
        }

    def step(
        self, x: Any, cache: dict[str, Any], position: Any, origin: Any = None
    ) -> tuple[Any, Any, dict[str, Any]]:
        """Causal self-attention of one more position.

        K hypotheses of a search may stand side by side there. Each writes its key and value once, and none is
        moved when the search drops some of them and goes on from others twice: `origin` says whose key each
        hypothesis sees at each position before.

        Args:
            x: Float (B, K, D), what stands there.
            cache: What `empty_cache` or the step before returned.
            position: Its index, an integer scalar.
            origin: int (B, K, length), the number of the hypothesis that wrote what each hypothesis sees at
                each position; at `position` its own. Not needed if K is 1.

        Returns:
            The output (B, K, Do), the weights, float32 (B, H, K, length), and the new cache.

        Raises:
            ValueError: If several hypotheses come without their origin.
        """
        batch, hypotheses, _ = ops.shape(x)
        if origin is None and x.shape[1] not in (1, None):
            raise ValueError(
                f"MultiHeadAttention: expected the origin of what {hypotheses} hypotheses side by side see, "
                "received None; pass it, or give each hypothesis a cache of its own"
            )
        query, new = self._project_self(x, ops.zeros((hypotheses,), "int32") + position)
        place, rows = position * hypotheses, batch * self.num_key_value_heads
        key = ops.reshape(new["key"], (rows, hypotheses, self.key_dim))  # (B * G, K, d)
        value = ops.reshape(new["value"], (rows, hypotheses, self.value_dim))  # (B * G, K, value_dim)
        cache = {
            "key": ops.slice_update(cache["key"], (0, 0, place), ops.swapaxes(key, -2, -1)),
            "value": ops.slice_update(cache["value"], (0, place, 0), value),
        }
        length = ops.shape(cache["value"])[1] // hypotheses
        index = ops.arange(length, dtype="int32")
        seen = index <= position  # (length,)
        if self.sliding_window is not None:
            seen = ops.logical_and(seen, self._near(position, index))
        seen = ops.reshape(seen, (1, 1, length))
        if origin is not None:
            own = ops.expand_dims(ops.cast(origin, "int32"), -1) == ops.arange(hypotheses, dtype="int32")
            seen = ops.logical_and(own, ops.expand_dims(seen, -1))  # (B, K, length, K)
            seen = ops.reshape(seen, (batch, hypotheses, length * hypotheses))
        memory = {**cache, "key": ops.swapaxes(cache["key"], -2, -1)}  # (B * G, length * K, d)
        heads, weights = self._average(query, memory, seen, training=False)
        if origin is not None:
            weights = ops.reshape(weights, (batch, self.num_heads, hypotheses, length, hypotheses))
            weights = ops.sum(weights, axis=-1)  # (B, H, K, length)
        return self._output(heads, self._gate(x)), weights, cache

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "key_dim": self.key_dim,
            "value_dim": self.value_dim,
            "use_bias": self.use_bias,
            "output_shape": self.output_sizes,
            "attention_axes": self.attention_axes,
            "sliding_window": self.sliding_window,
            "flash_attention": self.flash_attention,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "bias_regularizer": keras.regularizers.serialize(self.bias_regularizer),
            "kernel_constraint": keras.constraints.serialize(self.kernel_constraint),
            "bias_constraint": keras.constraints.serialize(self.bias_constraint),
            "use_gate": self.use_gate,
            "num_key_value_heads": self.num_key_value_heads,
            "rotary": self.rotary,
            "equal_start": self.equal_start,
        }


class _Grid:
    """Inputs (B, ..., D) of rank above 3 as sequences, and back.

    F stands for the axes that attention does not cover: it goes on in each of their places as if that
    were an example of its own. T and S stand for the axes that it covers, of the query and of the others.
    """

    def __init__(self, query: Any, value: Any, covered: tuple[int, ...]) -> None:
        free = tuple(axis for axis in range(1, len(query.shape) - 1) if axis not in covered)
        self.order = (0, *free, *covered)
        target, source = ops.shape(query), ops.shape(value)
        self.free = [target[axis] for axis in free]
        self.target = [target[axis] for axis in covered]
        self.source = [source[axis] for axis in covered]
        self.batch = target[0]

    def sequence(self, x: Any) -> Any:
        """(B, ..., D) -> (B * F, T, D)."""
        x = ops.transpose(x, (*self.order, len(self.order)))  # (B, F, T, D)
        sizes = ops.shape(x)
        cut = 1 + len(self.free)
        return ops.reshape(x, (math.prod(sizes[:cut]), math.prod(sizes[cut:-1]), sizes[-1]))

    def padding(self, mask: Any) -> Any:
        """(B, ...) -> (B * F, T)."""
        if mask is None:
            return None
        if len(mask.shape) != len(self.order):
            raise ValueError(
                "MultiHeadAttention: expected masks of queries, values and keys with all axes of these but "
                f"the last, {len(self.order)}; received shape {tuple(mask.shape)}"
            )
        return ops.squeeze(self.sequence(ops.expand_dims(mask, -1)), -1)

    def attention_mask(self, mask: Any) -> Any:
        """(B, [F, [H,]] T, S) -> (B * F, T, S) or (B * F, H, T, S)."""
        if mask is None:
            return None
        pair, leading = [*self.target, *self.source], [self.batch, *self.free]
        rank = len(mask.shape)
        if not 1 + len(pair) <= rank <= len(leading) + 1 + len(pair):
            raise ValueError(
                f"MultiHeadAttention: expected an attention_mask of rank {1 + len(pair)} to "
                f"{len(leading) + 1 + len(pair)}, the batch axis, the axes that attention does not cover, "
                f"the heads, the axes of queries and those of keys; received {tuple(mask.shape)}"
            )
        missing = range(len(leading) + 1 + len(pair) - rank)
        mask = ops.expand_dims(mask, [rank - len(pair) + i for i in missing])  # (B, F, H, T, S)
        heads = mask.shape[len(leading)]
        mask = ops.broadcast_to(mask, (*leading, heads, *pair))
        batch, target, source = (math.prod(sizes) for sizes in (leading, self.target, self.source))
        by_head = () if heads == 1 else (heads,)
        return ops.reshape(mask, (batch, *by_head, target, source))

    def output(self, x: Any) -> Any:
        """(B * F, T, ...) -> (B, axes of the query, ...)."""
        last = ops.shape(x)[2:]
        x = ops.reshape(x, (self.batch, *self.free, *self.target, *last))  # (B, F, T, ...)
        places = [self.order.index(axis) for axis in range(len(self.order))]
        return ops.transpose(x, (*places, *range(len(places), len(places) + len(last))))

    def weights(self, x: Any) -> Any:
        """(B * F, H, T, S) -> (B, F, H, T, S)."""
        return ops.reshape(x, (self.batch, *self.free, x.shape[1], *self.target, *self.source))


def _check_grids(query: Sequence, value: Sequence, key: Sequence, covered: tuple[int, ...]) -> None:
    """Raises ValueError unless the shapes agree where they must."""

    def agree(a: Sequence, b: Sequence, axes: Any) -> bool:
        return all(None in (a[axis], b[axis]) or a[axis] == b[axis] for axis in axes)

    inner = range(1, len(query) - 1)
    free = [axis for axis in inner if axis not in covered]
    if not (len(query) == len(value) == len(key) and agree(value, key, inner) and agree(query, value, free)):
        raise ValueError(
            "MultiHeadAttention: expected inputs of one rank, with a key for each value, and equal axes "
            f"where attention does not go (it covers {covered}); received query, value and key of shapes "
            f"{tuple(query)}, {tuple(value)} and {tuple(key)}"
        )


def _tuple(sizes: int | Sequence[int] | None) -> tuple[int, ...] | None:
    if sizes is None:
        return None
    return (sizes,) if isinstance(sizes, int) else tuple(sizes)


def _fresh(initializer: Any) -> Any:
    """An initializer gives the same numbers each time: without copies, equal shapes would start equal."""
    return initializer.clone() if isinstance(initializer, keras.initializers.Initializer) else initializer


def _combine(attention_mask: Any, *others: Any) -> Any:
    """`masks.combine_masks`, where the first mask may be by head, (B, H, T, S)."""
    if attention_mask is None or len(attention_mask.shape) == 3:
        return masks.combine_masks(attention_mask, *others)
    mask = masks.combine_masks(*others)
    dtype = keras.backend.standardize_dtype(attention_mask.dtype)
    if dtype != "bool":
        raise ValueError(
            "MultiHeadAttention: expected a boolean attention_mask, True where attention is allowed; "
            f"received dtype {dtype}. Make it boolean, for instance with `mask != 0` if 1 means attend."
        )
    return attention_mask if mask is None else ops.logical_and(attention_mask, _by_head(mask))


def _by_head(mask: Any) -> Any:
    """(B, T, S) -> (B, 1, T, S); a mask that is by head already stays."""
    return mask if mask is None or len(mask.shape) == 4 else ops.expand_dims(mask, 1)
