"""CTranslate2, with a model made here; in the type of numbers that CT2_COMPUTE_TYPE names."""

import os
import tempfile
from collections.abc import Callable
from typing import Any

import ctranslate2
import numpy as np
import sizes
from ctranslate2.specs import TransformerSpec
from peers import common, device


def decode(task: common.Task) -> tuple[int, Callable]:
    """See `common`."""
    compute_type = os.environ.get("CT2_COMPUTE_TYPE", "float32")
    with tempfile.TemporaryDirectory() as folder:
        parameters = write_model(task.size, folder)
        place = "cuda" if device.GPU else "cpu"
        translator = ctranslate2.Translator(
            folder, place, compute_type=compute_type, intra_threads=task.threads
        )

    def prepare(source: list[list[int]], beams: int) -> Callable:
        words = [[_word(i) for i in row] for row in source]

        def translate() -> list[int]:
            found = translator.translate_batch(
                words,
                beam_size=beams,
                min_decoding_length=task.target_length,
                max_decoding_length=task.target_length,
            )
            return [len(result.hypotheses[0]) for result in found]

        return translate

    return parameters, prepare


def write_model(size: sizes.Size, folder: str) -> int:
    """Writes a model with random weights, and returns their number."""
    spec = TransformerSpec.from_config(size.layers, size.num_heads, pre_norm=False)
    random = np.random.default_rng(1)
    shared = random.normal(scale=size.units**-0.5, size=(size.vocabulary, size.units)).astype("float32")
    spec.encoder.embeddings[0].weight = spec.decoder.embeddings.weight = shared
    spec.decoder.projection.weight = shared
    parameters = shared.size

    def fill(linear: Any, outputs: int, inputs: int) -> None:
        nonlocal parameters
        linear.weight = random.normal(scale=inputs**-0.5, size=(outputs, inputs)).astype("float32")
        linear.bias = np.zeros(outputs, "float32")
        parameters += linear.weight.size + outputs

    def normalize(norm: Any) -> None:
        nonlocal parameters
        norm.gamma, norm.beta = np.ones(size.units, "float32"), np.zeros(size.units, "float32")
        parameters += 2 * size.units

    units, hidden = size.units, size.feed_forward_units
    for layer in [*spec.encoder.layer, *spec.decoder.layer]:
        fill(layer.self_attention.linear[0], 3 * units, units)
        fill(layer.self_attention.linear[1], units, units)
        fill(layer.ffn.linear_0, hidden, units)
        fill(layer.ffn.linear_1, units, hidden)
        normalize(layer.self_attention.layer_norm)
        normalize(layer.ffn.layer_norm)
    for layer in spec.decoder.layer:
        for linear, outputs in zip(layer.attention.linear, (units, 2 * units, units), strict=True):
            fill(linear, outputs, units)
        normalize(layer.attention.layer_norm)
    words = ["<blank>", "<s>", "</s>", "<unk>", *map(_word, range(sizes.FIRST_ID, size.vocabulary))]
    spec.register_source_vocabulary(words)
    spec.register_target_vocabulary(words)
    spec.validate()
    spec.optimize()
    spec.save(folder)
    return parameters


def _word(token: int) -> str:
    return "</s>" if token == sizes.END_ID else f"w{token}"


if __name__ == "__main__":
    common.main(decode=decode)
