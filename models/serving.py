"""The graph that a SavedModel serves: strings to strings."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from attention_zoo.models.shapes import BATCH_SIZES, most_tokens, padded_length_in_graph
from attention_zoo.models.tokenizer import END_ID, PAD_ID

if TYPE_CHECKING:
    from attention_zoo.models.translator import Translator


def function(model: "Translator", settings: dict[str, Any], heads: bool = False) -> Callable:
    """The function behind a signature of `Translator.export`.

    Args:
        model: The translator.
        settings: Arguments of the search.
        heads: Whether to return the attention of every layer and head.

    Returns:
        Function from "texts", string (B,), to a dict of tensors. Only the search in it is compiled, for a
        few input shapes.
    """

    def serve(texts: Any) -> dict[str, Any]:
        ids = model.source_tokenizer.tokenize(texts)
        count = tf.shape(texts)[0]
        blank = ids.row_lengths() == 0  # (B,): such a text stays all padding, and its translation empty
        ends = tf.ragged.boolean_mask(tf.fill([count, 1], END_ID), ~blank[:, None])
        source = tf.concat([ids, ends], axis=1).to_tensor(PAD_ID)  # (B, S)
        length = tf.shape(source)[1]
        too_long = tf.debugging.assert_less_equal(
            length,
            model.max_source_length,
            f"expected texts of at most {model.max_source_length} tokens; translate sentence by sentence",
        )
        with tf.control_dependencies([too_long]):
            width = padded_length_in_graph(length, model.encoder.max_positions)
        rows = tf.where(count <= 1, BATCH_SIZES[0], tf.where(count <= BATCH_SIZES[1], *BATCH_SIZES[1:]))
        chunks = tf.maximum(1, -(-count // rows))
        source = tf.pad(source, [[0, chunks * rows - count], [0, width - length]])
        source = tf.reshape(source, (chunks, rows, width))  # (chunks, rows, S)

        @tf.function(jit_compile=True, autograph=False)
        def search(source: Any) -> dict[str, Any]:
            return _search(model, settings, heads, source)

        results = tf.map_fn(search, source, fn_output_signature=_signature(model, heads))
        results = {
            name: tf.reshape(x, tf.concat([[chunks * rows], tf.shape(x)[2:]], 0))[:count]  # (B, ...)
            for name, x in results.items()
        }
        tokens = tf.where(blank[:, None], PAD_ID, results.pop("tokens"))  # (B, L)
        longest = tf.maximum(0, tf.reduce_max(tf.math.count_nonzero(tokens, axis=1, dtype="int32")))
        tokens = tokens[:, :longest]
        source = tf.reshape(source, (chunks * rows, width))[:count, :length]  # (B, S)
        outputs = {
            "text": model.target_tokenizer.detokenize(tokens),
            "score": tf.where(blank, 0.0, results.pop("score")),
            "tokens": model.target_tokenizer.pieces(tokens),
            "source_tokens": model.source_tokenizer.pieces(source),
        }
        for name, weights in results.items():
            targets, sources = _SIZES[name]
            outputs[name] = weights[
                ..., : longest if targets == "L" else length, : longest if sources == "L" else length
            ]
        return outputs

    return serve


# The last two axes of what is returned: L target, S source positions.
_SIZES = {
    "attention": ("L", "S"),
    "cross_heads": ("L", "S"),
    "self_heads": ("L", "L"),
    "encoder_heads": ("S", "S"),
}


def _search(model: "Translator", settings: dict[str, Any], heads: bool, source: Any) -> dict[str, Any]:
    """Translates one chunk of ids, (rows, S)."""
    lengths = tf.math.count_nonzero(source, axis=1, dtype="int32")
    limits = tf.where(lengths > 0, most_tokens(lengths), 0)
    most = most_tokens(tf.shape(source)[1])
    if model.decoder.max_positions is not None:  # the start token has one of them
        most = tf.minimum(most, model.decoder.max_positions - 1)
    settings = {
        **settings,
        "min_length": 0,
        "max_length": most,
        "return_attention": model.decoder.has_attention,
    }
    found = model.decode(settings, source, limits)
    outputs = {"tokens": found["tokens"][:, 0], "score": found["scores"][:, 0]}
    if model.decoder.has_attention:
        outputs["attention"] = found["alignment"][:, 0]
    if heads:
        for name, weights in found["heads"].items():
            # The one hypothesis: (rows, L, N, H, S) to (rows, N, H, L, S).
            outputs[f"{name}_heads"] = tf.transpose(weights[:, 0], (0, 2, 3, 1, 4))
        if "encoder" in found:
            outputs["encoder_heads"] = found["encoder"]
    return outputs


def _signature(model: "Translator", heads: bool) -> dict[str, Any]:
    """The types of what `_search` returns."""
    names = ["score"]
    if model.decoder.has_attention:
        names.append("attention")
    if heads:
        names += [f"{name}_heads" for name in model.decoder.head_parts]
        names += ["encoder_heads"] if model.encoder.has_attention else []
    return {"tokens": tf.int32, **dict.fromkeys(names, tf.float32)}
