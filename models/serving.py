"""The graphs that a SavedModel serves: strings or images in, strings out."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from attention_zoo.models import image_files
from attention_zoo.models.shapes import BATCH_SIZES, most_tokens, padded_length_in_graph
from attention_zoo.models.tokenizer import END_ID, PAD_ID

if TYPE_CHECKING:
    from attention_zoo.models.captioner import Captioner
    from attention_zoo.models.encoder_decoder import EncoderDecoder
    from attention_zoo.models.translator import Translator


def translation(model: "Translator", settings: dict[str, Any], heads: bool = False) -> Callable:
    """The function behind a signature of `Translator.export`.

    Args:
        model: The translator.
        settings: Arguments of the search.
        heads: Whether to return the attention of every layer and head.

    Returns:
        Function from "texts", string (B,), to a dict of tensors. Only the search in it is compiled, for a
        few input shapes.
    """

    def most(source: Any) -> Any:
        tokens = most_tokens(tf.shape(source)[1])
        if model.decoder.max_positions is None:
            return tokens
        return tf.minimum(tokens, model.decoder.max_positions - 1)  # the start token has one of them

    search = _compiled_search(model, settings, heads, most)

    def serve(texts: Any) -> dict[str, Any]:
        ids = model.source_tokenizer.tokenize(texts)
        blank = ids.row_lengths() == 0  # (B,): such a text stays all padding, and its translation empty
        ends = tf.ragged.boolean_mask(tf.fill([tf.shape(texts)[0], 1], END_ID), ~blank[:, None])
        source = tf.concat([ids, ends], axis=1).to_tensor(PAD_ID)  # (B, S)
        length = tf.shape(source)[1]
        too_long = tf.debugging.assert_less_equal(
            length,
            model.max_source_length,
            f"expected texts of at most {model.max_source_length} tokens; translate sentence by sentence",
        )
        with tf.control_dependencies([too_long]):
            width = padded_length_in_graph(length, model.encoder.max_positions)
        lengths = tf.math.count_nonzero(source, axis=1, dtype="int32")  # (B,)
        limits = tf.where(blank, 0, most_tokens(lengths))
        padded = tf.pad(source, [[0, 0], [0, width - length]])
        results = _in_chunks(search, padded, limits, _signature(model, heads))
        tokens = tf.where(blank[:, None], PAD_ID, results.pop("tokens"))  # (B, L)
        longest, outputs = _texts(model.target_tokenizer, tokens)
        outputs["score"] = tf.where(blank, 0.0, results.pop("score"))
        outputs["source_tokens"] = model.source_tokenizer.pieces(source)
        return outputs | _without_padding(results, longest, length)

    return serve


def captions(model: "Captioner", settings: dict[str, Any], heads: bool = False) -> Callable:
    """The function behind the signatures of `Captioner.export` that take pixels.

    Args:
        model: The captioner.
        settings: Arguments of the search.
        heads: Whether to return the attention of every layer and head.

    Returns:
        Function from "images", uint8 (B, h, w, 3), to a dict of tensors. Only the search in it is compiled:
        XLA is slow at the convolutions of large networks on a CPU.
    """
    height, width = model.encoder.grid
    most = model.most_tokens()
    search = _compiled_search(model, settings, heads, lambda _: most)

    def serve(images: Any) -> dict[str, Any]:
        features = model.encoder.features(image_files.resize(images, model.encoder.image_size))
        limits = tf.fill([tf.shape(features)[0]], most)
        results = _in_chunks(search, features, limits, _signature(model, heads))
        longest, outputs = _texts(model.tokenizer, results.pop("tokens"))
        outputs["score"] = results.pop("score")
        outputs |= _without_padding(results, longest, height * width)
        if "attention" in outputs:
            shape = (-1, longest, height, width)
            outputs["attention"] = tf.reshape(outputs["attention"], shape)  # (B, L, H, W)
        return outputs

    return serve


def captions_of_files(model: "Captioner", serve: Callable) -> Callable:
    """The function behind the signature of `Captioner.export` that takes the bytes of files.

    Args:
        model: The captioner.
        serve: What `captions` returned.

    Returns:
        Function from "encoded", string (B,), to what `serve` returns.
    """
    size = model.encoder.image_size

    def serve_files(encoded: Any) -> dict[str, Any]:
        pixels = tf.TensorSpec((*size, 3), tf.float32)
        images = tf.map_fn(
            lambda one: image_files.resize(image_files.decode(one), size), encoded, fn_output_signature=pixels
        )
        return serve(images)  # (B, h, w, 3)

    return serve_files


def _in_chunks(search: Callable, source: Any, limits: Any, signature: dict[str, Any]) -> dict[str, Any]:
    """Searches with a few batch sizes, each of which is compiled once.

    Args:
        search: What `_compiled_search` returned.
        source: What the encoder reads, (B, ...).
        limits: int (B,), most tokens of each output.
        signature: The types of what the search returns.

    Returns:
        What the search returns, of B rows.
    """
    count = tf.shape(source)[0]
    rows = tf.where(count <= 1, BATCH_SIZES[0], tf.where(count <= BATCH_SIZES[1], *BATCH_SIZES[1:]))
    chunks = tf.maximum(1, -(-count // rows))

    def chunked(x: Any) -> Any:
        x = tf.pad(x, [[0, chunks * rows - count]] + [[0, 0]] * (len(x.shape) - 1))
        return tf.reshape(x, tf.concat([[chunks, rows], tf.shape(x)[1:]], 0))  # (chunks, rows, ...)

    results = tf.map_fn(
        lambda x: search(*x), (chunked(source), chunked(limits)), fn_output_signature=signature
    )
    return {
        name: tf.reshape(x, tf.concat([[chunks * rows], tf.shape(x)[2:]], 0))[:count]  # (B, ...)
        for name, x in results.items()
    }


def _texts(tokenizer: Any, tokens: Any) -> tuple[Any, dict[str, Any]]:
    """The length of the longest output, and the texts and pieces of all: int (B, L) -> (), dict."""
    longest = tf.maximum(0, tf.reduce_max(tf.math.count_nonzero(tokens, axis=1, dtype="int32")))
    tokens = tokens[:, :longest]
    return longest, {"text": tokenizer.detokenize(tokens), "tokens": tokenizer.pieces(tokens)}


# The last two axes of what is returned: L target, S source positions.
_SIZES = {
    "attention": ("L", "S"),
    "cross_heads": ("L", "S"),
    "self_heads": ("L", "L"),
    "encoder_heads": ("S", "S"),
}


def _without_padding(results: dict[str, Any], targets: Any, sources: Any) -> dict[str, Any]:
    """The attention among as many target and source positions."""
    lengths = {"L": targets, "S": sources}
    return {
        name: weights[..., : lengths[_SIZES[name][0]], : lengths[_SIZES[name][1]]]
        for name, weights in results.items()
    }


def _compiled_search(
    model: "EncoderDecoder", settings: dict[str, Any], heads: bool, most: Callable
) -> Callable:
    """The search for the outputs of one chunk, which signatures share: it is traced once.

    Args:
        model: The model.
        settings: Arguments of the search.
        heads: Whether to return the attention of every layer and head.
        most: Function from a chunk of the source to the most tokens of all, which must follow from its
            shape: it decides shapes of the compiled search.

    Returns:
        Function of source (rows, ...) and limits (rows,) to a dict of tensors.
    """

    @tf.function(jit_compile=True, autograph=False)
    def search(source: Any, limits: Any) -> dict[str, Any]:
        found = model.decode(
            {
                **settings,
                "min_length": 0,
                "max_length": most(source),
                "return_attention": model.decoder.has_attention,
            },
            source,
            limits,
        )
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

    return search


def _signature(model: "EncoderDecoder", heads: bool) -> dict[str, Any]:
    """The types of what the search returns."""
    names = ["score"]
    if model.decoder.has_attention:
        names.append("attention")
    if heads:
        names += [f"{name}_heads" for name in model.decoder.head_parts]
        names += ["encoder_heads"] if model.encoder.has_attention else []
    return {"tokens": tf.int32, **dict.fromkeys(names, tf.float32)}
