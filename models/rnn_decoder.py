"""Recurrent decoder, with any attention layer or none."""

from typing import Any

import keras
from keras import ops

from attention_zoo.layers.dense import Dense
from attention_zoo.layers.dropout import Dropout
from attention_zoo.layers.multi_head_attention import MultiHeadAttention
from attention_zoo.layers.recurrent_cell import recurrent_cell
from attention_zoo.layers.token_embedding import TokenEmbedding
from attention_zoo.models.token_logits import in_blocks, token_logits
from attention_zoo.ops.recurrence import scan


@keras.saving.register_keras_serializable(package="attention_zoo")
class RNNDecoder(keras.layers.Layer):
    """Predicts a sentence token by token with GRUs or LSTMs.

    y is the previous token's embedding, s the top layer's state, h the memory's values. The context
    c enters the recurrence in one of three ways:

    - no attention (Cho et al. 2014): c is the encoder's summary at every position,
      s_i = f(s_{i-1}, [y_{i-1}; c]);
    - `query_state="previous"` (Bahdanau et al. 2015): c_i = attention(s_{i-1}, h),
      s_i = f(s_{i-1}, [y_{i-1}; c_i]);
    - `query_state="current"` with input feeding (Luong et al. 2015): s_i = f(s_{i-1}, [y_{i-1}; r_{i-1}]),
      c_i = attention(s_i, h).

    The readout is r_i = g(W [s_i; c_i]), with y_{i-1} beside them where it does not reach r_i through
    s_i alone (the first two), and logits = V r_i + b. Every state starts at tanh(W_0 summary).

    Args:
        vocabulary_size: Number of token ids.
        embedding_dim: Width of the token embeddings.
        units: Width of the states.
        attention: None, or an attention layer without dropout of its own.
        query_state: "previous" or "current": which state asks the attention.
        layers: Number of recurrent layers.
        cell: "gru" or "lstm".
        readout_units: Width of the readout; `embedding_dim` if None.
        readout_activation: "tanh", or "maxout" over pairs of units (Bahdanau et al. 2015, A.2.2).
        tie_embeddings: Whether V is the token embedding matrix.
        dropout: Rate on embeddings, between layers (one mask per sentence) and on the readout.

    Call arguments:
        target: int (B, T), starting with the start token.
        memory: What an encoder returns: "values" (B, S, D), "mask" (B, S) and "summary" (B, D').
        training: Whether dropout is active.
        return_attention: Whether the attention weights are returned as well.

    Returns:
        Logits, float32 (B, T, V), that predict the token after each position; if asked, also the
        attention weights, float32 (B, T, S), or (B, T, H, S) for one with heads, or None for a decoder
        without attention.

    Raises:
        ValueError: If an option is unknown, a size is not positive, tied widths differ, or the attention is
            no layer of this library or has dropout.

    Example:
        >>> from attention_zoo.layers import AdditiveAttention
        >>> from attention_zoo.models import RNNEncoder
        >>> encoder = RNNEncoder(vocabulary_size=100, embedding_dim=8, units=16)
        >>> decoder = RNNDecoder(50, embedding_dim=8, units=16, attention=AdditiveAttention(16))
        >>> memory = encoder(ops.array([[5, 6, 2]]))
        >>> logits, attention = decoder(ops.array([[1, 7]]), memory, return_attention=True)
        >>> logits.shape, attention.shape
        (TensorShape([1, 2, 50]), TensorShape([1, 2, 3]))

    Reference:
        Cho et al. 2014, "Learning Phrase Representations using RNN Encoder-Decoder", section 2.2;
        Bahdanau, Cho and Bengio 2015, section 3.1; Luong, Pham and Manning 2015, "Effective
        Approaches to Attention-based Neural Machine Translation", sections 3.1 and 3.3.
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_dim: int = 256,
        units: int = 256,
        attention: keras.layers.Layer | None = None,
        query_state: str = "previous",
        layers: int = 1,
        cell: str = "gru",
        readout_units: int | None = None,
        readout_activation: str = "tanh",
        tie_embeddings: bool = False,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if query_state not in ("previous", "current"):
            raise ValueError(
                f"RNNDecoder: expected query_state 'previous' or 'current', received {query_state!r}"
            )
        if readout_activation not in ("tanh", "maxout"):
            raise ValueError(
                f"RNNDecoder: expected readout_activation 'tanh' or 'maxout', received {readout_activation!r}"
            )
        readout_units = embedding_dim if readout_units is None else readout_units
        sizes = {
            "vocabulary_size": vocabulary_size,
            "embedding_dim": embedding_dim,
            "units": units,
            "layers": layers,
            "readout_units": readout_units,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"RNNDecoder: expected {name} of at least 1, received {size}")
        if tie_embeddings and readout_units != embedding_dim:
            raise ValueError(
                "RNNDecoder: expected readout_units equal to embedding_dim with tie_embeddings=True, "
                f"received {readout_units} and {embedding_dim}"
            )
        if attention is not None and not hasattr(attention, "project_memory"):
            raise ValueError(
                "RNNDecoder: expected an attention layer of attention_zoo.layers or None, received "
                f"{attention!r}"
            )
        if getattr(attention, "dropout", 0.0):
            raise ValueError(
                f"RNNDecoder: expected an attention layer with dropout 0, received {attention.dropout}: "
                "no random numbers are drawn inside the recurrent loop; use RNNDecoder(dropout=...)"
            )
        # === Config ===
        self.vocabulary_size = vocabulary_size
        self.embedding_dim = embedding_dim
        self.units = units
        self.attention = attention
        self.query_state = query_state
        self.layers = layers
        self.cell = cell
        self.readout_units = readout_units
        self.readout_activation = readout_activation
        self.tie_embeddings = tie_embeddings
        self.dropout = dropout
        self.input_feeding = attention is not None and query_state == "current"
        # === Layers ===
        policy = self.dtype_policy
        self.embedding = None  # made by `build`, unless another layer's is shared
        self.cells = [
            recurrent_cell(cell, units, name=f"cell_{index}", dtype=policy) for index in range(layers)
        ]
        gates = self.cells[0].input_units
        self.token_projection = Dense(gates, name="token_projection", dtype=policy)
        # The context's part of the first cell's input, apart from the token's, so that the token's
        # part is one product for all positions before the loop.
        self.context_projection = keras.layers.Dense(
            gates, use_bias=False, name="context_projection", dtype=policy
        )
        self.layer_projections = [
            keras.layers.Dense(gates, name=f"layer_projection_{index}", dtype=policy)
            for index in range(1, layers)
        ]
        self.bridges = [
            keras.layers.Dense(units, activation="tanh", name=f"bridge_{index}", dtype=policy)
            for index in range(layers * self.cells[0].state_parts)
        ]
        self.readout = Dense(
            2 * readout_units if readout_activation == "maxout" else readout_units,
            name="readout",
            dtype=policy,
        )
        self.embedding_dropout = Dropout(dropout, name="embedding_dropout", dtype=policy)
        self.layer_dropout = Dropout(dropout, name="layer_dropout", dtype=policy)
        self.readout_dropout = Dropout(dropout, name="readout_dropout", dtype=policy)

    head_parts = ("cross",)  # what `heads` returns
    max_positions = None  # a sentence may be of any length

    @property
    def has_attention(self) -> bool:
        """Whether there is attention to return."""
        return self.attention is not None

    def make_embedding(self) -> TokenEmbedding:
        """The layer that looks up tokens."""
        return TokenEmbedding(
            self.vocabulary_size, self.embedding_dim, name="embedding", dtype=self.dtype_policy
        )

    def build(self, target_shape: Any, memory_shape: dict[str, Any]) -> None:
        """Creates every weight from the widths of the memory."""
        summary_shape = memory_shape["summary"]
        context_dim = summary_shape[-1]
        if self.attention is not None:
            context_dim = self.attention.context_dim(self.units, memory_shape["values"][-1])
            if not self.attention.built:
                self.attention.build((None, None, self.units), memory_shape["values"])
        if self.embedding is None:
            self.embedding = self.make_embedding()
        if not self.embedding.built:
            self.embedding.build(target_shape)
        self.token_projection.build((None, None, self.embedding_dim))
        self.context_projection.build((None, None, self.readout_units if self.input_feeding else context_dim))
        for projection in self.layer_projections:
            projection.build((None, None, self.units))
        for cell in self.cells:
            cell.build()
        for bridge in self.bridges:
            bridge.build(summary_shape)
        readout_inputs = self.units + context_dim + (0 if self.input_feeding else self.embedding_dim)
        self.readout.build((None, None, readout_inputs))
        if not self.tie_embeddings:
            self.output_kernel = self.add_weight(
                shape=(self.vocabulary_size, self.readout_units),
                initializer="glorot_uniform",
                name="output_kernel",
            )
        # Added in float32 under any policy, so Keras must not cast it.
        self.output_bias = self.add_weight(
            shape=(self.vocabulary_size,), initializer="zeros", name="output_bias", autocast=False
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
        prepared = self.prepare(memory)
        # One hypothesis per source: without its axis the loop's products are between matrices, whose
        # gradients compile under XLA at any batch size.
        state = keras.tree.map_structure(lambda x: ops.squeeze(x, 1), self.initial_state(prepared))
        embedded = self.embedding_dropout(self._embed(target), training=training)  # (B, T, E)
        gates = ops.transpose(self._token_gates(embedded, prepared), (1, 0, 2))  # (T, B, gates)
        layer_masks = self._layer_masks(ops.shape(target)[0], training)

        def step(state: dict[str, Any], gates: Any) -> tuple[dict[str, Any], dict[str, Any]]:
            state, outputs, attention = self._advance(gates, state, prepared, layer_masks)
            if return_attention and attention is not None:
                outputs["attention"] = attention
            return state, outputs

        _, outputs = scan(step, gates, state, self._loop_weights())
        outputs = {name: ops.swapaxes(x, 0, 1) for name, x in outputs.items()}  # (B, T, ...)
        readout = outputs["readout"] if self.input_feeding else self._read_out(outputs, embedded, prepared)
        logits = self._logits(self.readout_dropout(readout, training=training))
        return (logits, outputs.get("attention")) if return_attention else logits

    def prepare(self, memory: dict[str, Any]) -> dict[str, Any]:
        """Does once per sentence what every position needs of the memory.

        Args:
            memory: What an encoder returns.

        Returns:
            A nest of tensors for `initial_state` and `step`: the projected keys with their mask, or
            without attention the constant context.
        """
        # An encoder may have another policy.
        summary = ops.cast(memory["summary"], self.compute_dtype)
        output_blocks = in_blocks(self._token_vectors, self.compute_dtype)
        prepared = {"summary": summary, "output_blocks": output_blocks}
        if self.attention is None:
            context = ops.expand_dims(summary, 1)  # (B, 1, D)
            prepared["context"] = context
            prepared["context_gates"] = self.context_projection(context)  # (B, 1, gates)
        else:
            prepared["memory"] = self.attention.project_memory(memory["values"])
            prepared["mask"] = ops.expand_dims(memory["mask"], 1)  # (B, 1, S)
        return prepared

    def initial_state(
        self,
        prepared: dict[str, Any],
        hypotheses: int = 1,
        max_positions: Any = None,
        reordered: bool = True,
    ) -> dict[str, Any]:
        """The state before the first position.

        Args:
            prepared: What `prepare` returned.
            hypotheses: K, the number of hypotheses per source.
            max_positions: Most positions there will be; this state's size does not depend on it.
            reordered: Whether the hypotheses will be reordered, which this state is small enough for.

        Returns:
            A nest of tensors (B, K, ...).
        """
        summary = ops.expand_dims(prepared["summary"], 1)  # (B, 1, D)
        summary = ops.repeat(summary, hypotheses, axis=1)  # (B, K, D)
        parts = [bridge(summary) for bridge in self.bridges]  # each (B, K, units)
        per_cell = self.cells[0].state_parts
        state = {
            "cells": [tuple(parts[i : i + per_cell]) for i in range(0, len(parts), per_cell)],
        }
        if self.input_feeding:
            batch = ops.shape(summary)[0]
            state["readout"] = ops.zeros((batch, hypotheses, self.readout_units), self.compute_dtype)
        return state

    def step(self, token: Any, state: dict[str, Any], prepared: dict[str, Any]) -> tuple[Any, Any, Any]:
        """Advances every hypothesis by one token: the step contract of `models.search`.

        Args:
            token: int (B, K), the last token of each hypothesis.
            state: Nest of tensors (B, K, ...).
            prepared: What `prepare` returned.

        Returns:
            Logits, float32 (B, K, V); the new state; the attention weights, float32 (B, K, S) or
            (B, K, H, S), or None.
        """
        embedded = self._embed(token)  # (B, K, E)
        gates = self._token_gates(embedded, prepared)  # (B, K, gates)
        state, outputs, attention = self._advance(gates, state, prepared, None)
        readout = outputs["readout"] if self.input_feeding else self._read_out(outputs, embedded, prepared)
        return self._logits(readout, prepared["output_blocks"]), state, attention

    def alignment(self, attention: Any) -> Any:
        """Where each position looked in the source, in one matrix.

        Args:
            attention: As `call` or `step` return it, possibly with more axes before.

        Returns:
            (..., S), the mean of the heads if there are any.
        """
        return ops.mean(attention, axis=-2) if self._has_heads else attention

    def heads(self, attention: Any) -> dict[str, Any]:
        """The attention by layer and head: {"cross": (..., N, H, S)}; N is 1, and so is H without heads."""
        axis = -3 if self._has_heads else (-3, -2)
        return {"cross": ops.expand_dims(attention, axis)}

    @property
    def _has_heads(self) -> bool:
        return isinstance(self.attention, MultiHeadAttention)

    def _embed(self, ids: Any) -> Any:
        return ops.cast(self.embedding(ids), self.compute_dtype)  # a shared one may have another policy

    def _token_gates(self, embedded: Any, prepared: dict[str, Any]) -> Any:
        """The part of the first cell's input that needs no recurrence."""
        gates = self.token_projection(embedded)
        return gates if self.attention is not None else gates + prepared["context_gates"]

    def _advance(
        self, gates: Any, state: dict[str, Any], prepared: dict[str, Any], layer_masks: list | None
    ) -> tuple[dict[str, Any], dict[str, Any], Any]:
        """One position of the recurrence over (B, ...) or (B, K, ...).

        Returns the new state, what the readout needs of this position, and the attention weights.
        """
        attention = None
        if self.input_feeding:
            gates = gates + self.context_projection(state["readout"])
        elif self.attention is not None:
            context, attention = self._attend(state["cells"][-1][0], prepared)
            gates = gates + self.context_projection(context)

        cells = [self.cells[0](gates, state["cells"][0])]
        for index in range(1, self.layers):
            below = cells[-1][0]
            if layer_masks is not None:
                below = below * layer_masks[index - 1]
            cells.append(self.cells[index](self.layer_projections[index - 1](below), state["cells"][index]))
        outputs = {"hidden": cells[-1][0]}
        if self.input_feeding:
            outputs["context"], attention = self._attend(outputs["hidden"], prepared)
            readout = self._read_out(outputs)
            return {"cells": cells, "readout": readout}, {"readout": readout}, attention
        if self.attention is not None:
            outputs["context"] = context
        return {"cells": cells}, outputs, attention

    def _loop_weights(self) -> list[keras.Variable]:
        """The weights that `_advance` reads."""
        layers = [*self.cells, *self.layer_projections]
        if self.attention is not None:
            layers += [self.attention, self.context_projection]
        if self.input_feeding:
            layers.append(self.readout)
        return [weight for layer in layers for weight in layer.weights]

    def _attend(self, query: Any, prepared: dict[str, Any]) -> tuple[Any, Any]:
        if len(query.shape) == 3:  # (B, K, units): the attention sees the hypotheses as its target axis
            context, weights = self.attention.attend(query, prepared["memory"], prepared["mask"])
            if self._has_heads:
                weights = ops.transpose(weights, (0, 2, 1, 3))  # (B, K, H, S)
            return context, weights
        context, weights = self._attend(ops.expand_dims(query, 1), prepared)
        return ops.squeeze(context, 1), ops.squeeze(weights, 1)  # (B, D), (B, S) or (B, H, S)

    def _read_out(
        self, outputs: dict[str, Any], embedded: Any = None, prepared: dict[str, Any] | None = None
    ) -> Any:
        context = outputs.get("context")
        if context is None:  # the same for all positions: stretch it to them
            context = prepared["context"] + ops.zeros_like(outputs["hidden"][..., :1])  # (B, T, D)
        parts = [outputs["hidden"], context]
        if embedded is not None:
            parts.append(embedded)
        readout = self.readout(ops.concatenate(parts, axis=-1))
        if self.readout_activation == "maxout":
            return ops.maximum(*ops.split(readout, 2, axis=-1))  # (B, T, R)
        return ops.tanh(readout)

    def _logits(self, readout: Any, output_blocks: Any = None) -> Any:
        logits = token_logits(readout, self._token_vectors, output_blocks)  # (B, T, V)
        return logits + ops.cast(self.output_bias, "float32")

    @property
    def _token_vectors(self) -> Any:
        return self.embedding.embeddings if self.tie_embeddings else self.output_kernel

    def _layer_masks(self, batch: Any, training: bool | None) -> list | None:
        """Dropout between layers, drawn before the loop: the same units for a whole sentence."""
        if not training or not self.dropout:
            return None
        return [self.layer_dropout.mask((batch, self.units)) for _ in range(1, self.layers)]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "embedding_dim": self.embedding_dim,
            "units": self.units,
            "attention": keras.saving.serialize_keras_object(self.attention),
            "query_state": self.query_state,
            "layers": self.layers,
            "cell": self.cell,
            "readout_units": self.readout_units,
            "readout_activation": self.readout_activation,
            "tie_embeddings": self.tie_embeddings,
            "dropout": self.dropout,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "RNNDecoder":
        """Builds the layer from its configuration."""
        attention = keras.saving.deserialize_keras_object(config["attention"])
        return cls(**{**config, "attention": attention})
