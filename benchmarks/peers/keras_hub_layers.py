"""A Transformer of KerasHub's layers, compiled with XLA; decoded with their cache and KerasHub's samplers."""

from collections.abc import Callable, Iterable
from typing import Any

import keras
import keras_hub
import numpy as np
import sizes
import tensorflow as tf
from keras import ops
from peers import common, device, epochs, keras_training


def train(task: common.Task, clock: common.Clock) -> int:
    """See `common`."""
    return keras_training.make_and_fit(make_model, task, clock)


def epoch(task: common.Task, clock: epochs.EpochClock) -> tuple[int, Iterable]:
    """See `common`."""
    return keras_training.compile_and_fit_epoch(make_model(task.size), task, clock)


def make_model(size: sizes.Size) -> keras.Model:
    """A functional model from (source, target) to logits."""
    layers = Layers(size)
    source, target = (keras.Input((None,), dtype="int32") for _ in range(2))
    model = keras.Model((source, target), layers.logits(source, target))
    for layer in model._flatten_layers():
        # `dropout` is a rate for the attention weights too, where the models compared have none.
        if isinstance(layer, keras.layers.MultiHeadAttention):
            layer._dropout_layer.rate = 0.0
    return model


def decode(task: common.Task) -> tuple[int, Callable]:
    """See `common`."""
    device.require_tensorflow_gpu()
    layers, size = Layers(task.size), task.size
    source, target = (keras.Input((None,), dtype="int32") for _ in range(2))
    model = keras.Model((source, target), layers.logits(source, target))  # makes the weights

    def search(source: Any, beams: int) -> Any:
        memory, mask = layers.encode(source), ops.not_equal(source, sizes.PAD_ID)
        batch, length = source.shape[0], task.target_length + 1
        heads = (size.num_heads, size.units // size.num_heads)
        start = ops.full((batch, 1), sizes.START_ID, "int32")
        own = [ops.zeros((batch, 2, length, *heads)) for _ in layers.decoder]
        cross = [ops.zeros((batch, 2, source.shape[1], *heads)) for _ in layers.decoder]
        # Only the first call computes the keys and values of the memory.
        _, _, cross = layers.step(start, 0, memory, mask, own, cross, cross_index=0)
        memory, mask, *cross = (ops.repeat(x, beams, axis=0) for x in (memory, mask, *cross))

        def next_token(prompt: Any, cache: list[Any], index: Any) -> tuple[Any, None, list[Any]]:
            token = ops.slice(prompt, (0, index - 1), (batch * beams, 1))
            logits, cache, _ = layers.step(token, index - 1, memory, mask, cache, cross)
            return ops.squeeze(logits, 1), None, cache

        prompt = ops.pad(start, ((0, 0), (0, task.target_length)))
        sampler = keras_hub.samplers.BeamSampler(beams) if beams > 1 else keras_hub.samplers.GreedySampler()
        return sampler(next_token, prompt, cache=own, index=1)

    def prepare(source: list[list[int]], beams: int) -> Callable:
        compiled = tf.function(lambda ids: search(ids, beams), jit_compile=True, autograph=False)
        ids = tf.constant(np.array(source, "int32"))
        return lambda: [len(row) - 1 for row in compiled(ids).numpy()]  # the start token does not count

    return model.count_params(), prepare


class Layers:
    """The layers of one model."""

    def __init__(self, size: sizes.Size) -> None:
        block = {
            "intermediate_dim": size.feed_forward_units,
            "num_heads": size.num_heads,
            "dropout": size.dropout,
        }
        self.scale = size.units**0.5
        self.embedding = keras_hub.layers.ReversibleEmbedding(size.vocabulary, size.units, mask_zero=True)
        self.position = keras_hub.layers.SinePositionEncoding()
        self.dropout = keras.layers.Dropout(size.dropout)
        self.encoder = [keras_hub.layers.TransformerEncoder(**block) for _ in range(size.layers)]
        self.decoder = [keras_hub.layers.TransformerDecoder(**block) for _ in range(size.layers)]

    def embed(self, ids: Any, start: Any = 0) -> Any:
        """(B, T) -> (B, T, D)."""
        x = self.embedding(ids) * self.scale
        return self.dropout(x + self.position(x, start_index=start))

    def encode(self, source: Any) -> Any:
        """(B, S) -> (B, S, D)."""
        x, mask = self.embed(source), ops.not_equal(source, sizes.PAD_ID)
        for layer in self.encoder:
            x = layer(x, padding_mask=mask)
        return x

    def logits(self, source: Any, target: Any) -> Any:
        """Teacher forcing: (B, T, V)."""
        memory, x = self.encode(source), self.embed(target)
        masks = {
            "decoder_padding_mask": ops.not_equal(target, sizes.PAD_ID),
            "encoder_padding_mask": ops.not_equal(source, sizes.PAD_ID),
        }
        for layer in self.decoder:
            x = layer(x, memory, **masks)
        return self.embedding(x, reverse=True)

    def step(
        self,
        token: Any,
        position: Any,
        memory: Any,
        mask: Any,
        own: list[Any],
        cross: list[Any],
        cross_index: int | None = None,
    ) -> tuple[Any, list[Any], list[Any]]:
        """One position with caches, one per layer: logits (B, 1, V) and the new caches."""
        x = self.embed(token, start=position)
        new_own, new_cross = [], []
        for layer, own_cache, cross_cache in zip(self.decoder, own, cross, strict=True):
            x, own_cache, cross_cache = layer(
                x,
                memory,
                encoder_padding_mask=mask,
                self_attention_cache=own_cache,
                self_attention_cache_update_index=position,
                cross_attention_cache=cross_cache,
                cross_attention_cache_update_index=cross_index,
            )
            new_own.append(own_cache)
            new_cross.append(cross_cache)
        return self.embedding(x, reverse=True), new_own, new_cross


if __name__ == "__main__":
    common.main(train, decode, epoch)
