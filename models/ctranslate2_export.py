"""Our Transformers in the form of CTranslate2."""

import os
from typing import Any

import keras
import numpy as np

from attention_zoo.layers.multi_head_attention import MultiHeadAttention
from attention_zoo.models import saving
from attention_zoo.models.tokenizer import PAD_ID, SPECIAL_PIECES, START_ID, Tokenizer, to_strings
from attention_zoo.models.transformer_decoder import TransformerDecoder
from attention_zoo.models.transformer_encoder import TransformerEncoder
from attention_zoo.models.transformer_stack import TransformerStack
from attention_zoo.models.translator import Translator

# The output bias of tokens that are never said: low enough for any softmax, and a number in half precision.
_NEVER = -1e4
# Sinusoidal positions become a table; CTranslate2 reads and writes no longer texts.
_MOST_POSITIONS = 4096


def export_ctranslate2(model: Translator, folder: str | os.PathLike) -> None:
    """Writes a Transformer as a folder that `ctranslate2.Translator` reads.

    CTranslate2 takes tokens and returns tokens: those of the tokenizers, which are written along, into
    `source_tokenizer` and `target_tokenizer`; the end token is added to the source by itself. Padding and
    the start token have no share of the probability.

    Greedy search says the same. Beam search differs in three things: its `length_penalty` divides by
    length^alpha, ours by ((5 + length) / 6)^alpha, so that both score alike with 0; its
    `min_decoding_length` is 1 unless set to 0; and it lets a hypothesis end only where that is among the K
    best continuations of all, ours wherever it has a good score.

    Args:
        model: A translator of `TransformerEncoder` and `TransformerDecoder`, with sinusoidal or learned
            positions and one key for each query head.
        folder: Where to write; must not exist, or be empty.

    Raises:
        ImportError: If ctranslate2 is not installed.
        FileExistsError: If `folder` exists and is not an empty folder.
        ValueError: If the model is another.

    Reference:
        Klein et al. 2020, "Efficient and High-Quality Neural Machine Translation with OpenNMT".
    """
    try:
        import ctranslate2.specs
    except ImportError as error:
        raise ImportError(
            "export_ctranslate2: expected ctranslate2 to be installed; pip install 'attention-zoo[convert]' "
            f"({error})"
        ) from error
    _check(model)
    model.check_vocabularies()
    model.build()
    encoder, decoder = model.encoder, model.decoder
    # Not by from_config, which would give both the same heads and activation.
    specification = ctranslate2.specs.TransformerSpec(
        ctranslate2.specs.TransformerEncoderSpec(encoder.layers, encoder.num_heads, **_options(encoder)),
        ctranslate2.specs.TransformerDecoderSpec(decoder.layers, decoder.num_heads, **_options(decoder)),
    )
    _set_stack(specification.encoder, encoder, specification.encoder.embeddings[0])
    _set_stack(specification.decoder, decoder, specification.decoder.embeddings)
    _set_output(specification.decoder.projection, decoder)
    specification.register_source_vocabulary(_tokens(model.source_tokenizer))
    specification.register_target_vocabulary(_tokens(model.target_tokenizer))
    specification.config.add_source_eos = True
    specification.validate()
    specification.optimize()
    with saving.written_whole(folder) as temporary:
        specification.save(str(temporary))
        for side in ("source", "target"):
            assets = temporary / f"{side}_tokenizer"
            assets.mkdir()
            getattr(model, f"{side}_tokenizer").save_assets(str(assets))


def _check(model: Any) -> None:
    """Raises ValueError for models that CTranslate2 cannot express."""
    if not isinstance(model, Translator):
        raise ValueError(f"export_ctranslate2: expected a Translator, received a {type(model).__name__}")
    for part, expected in ((model.encoder, TransformerEncoder), (model.decoder, TransformerDecoder)):
        if type(part) is not expected:
            raise ValueError(
                f"export_ctranslate2: expected a {expected.__name__}, received a {type(part).__name__}; only "
                "Transformers can be written for CTranslate2"
            )
        if part.positions == "rotary":
            raise ValueError(
                'export_ctranslate2: expected positions="sinusoidal" or "learned", received "rotary" in the '
                f"{expected.__name__}"
            )
        if part.num_key_value_heads not in (None, part.num_heads):
            raise ValueError(
                f"export_ctranslate2: expected a key for each of {part.num_heads} query heads, received "
                f"num_key_value_heads={part.num_key_value_heads} in the {expected.__name__}"
            )
        if part.activation not in _activations():
            raise ValueError(
                "export_ctranslate2: expected the activation "
                f"{', '.join(function.__name__ for function in _activations())}, received "
                f"{getattr(part.activation, '__name__', part.activation)} in the {expected.__name__}"
            )


def _activations() -> dict[Any, str]:
    """Keras's activations and what CTranslate2 calls them; its GELU is the exact one, as Keras's."""
    return {keras.activations.relu: "RELU", keras.activations.gelu: "GELU", keras.activations.silu: "SWISH"}


def _options(stack: TransformerStack) -> dict[str, Any]:
    from ctranslate2.specs import Activation

    activation = getattr(Activation, _activations()[stack.activation])
    return {"pre_norm": stack.normalize_first, "activation": activation}


def _set_stack(specification: Any, stack: TransformerStack, embeddings: Any) -> None:
    """Embeddings, positions and blocks."""
    embeddings.weight = _array(stack.embedding.embeddings)
    specification.scale_embeddings = stack.scale_embeddings
    specification.position_encodings.encodings = _positions(stack)
    if stack.output_norm is not None:
        _set_norm(specification.layer_norm, stack.output_norm)
    for layer, block in zip(specification.layer, stack.blocks, strict=True):
        _set_attention(layer.self_attention, block.self_attention, ["query", "key", "value"], ["output"])
        _set_norm(layer.self_attention.layer_norm, block.self_attention_norm)
        if isinstance(stack, TransformerDecoder):
            parts = ["query"], ["key", "value"], ["output"]
            _set_attention(layer.attention, block.cross_attention, *parts)
            _set_norm(layer.attention.layer_norm, block.cross_attention_norm)
        _set_linear(layer.ffn.linear_0, block.feed_forward.hidden.kernel, block.feed_forward.hidden.bias)
        output = block.feed_forward.output_layer
        _set_linear(layer.ffn.linear_1, output.kernel, output.bias)
        _set_norm(layer.ffn.layer_norm, block.feed_forward_norm)


def _positions(stack: TransformerStack) -> np.ndarray:
    """The table of positions: (L, D)."""
    if stack.positions == "learned":
        return _array(stack.position.embeddings)
    nothing = np.zeros((1, _MOST_POSITIONS, stack.units), "float32")
    return _array(stack.position(nothing)[0])


def _set_attention(specification: Any, attention: MultiHeadAttention, *groups: list[str]) -> None:
    """Projections, those of a group side by side."""
    for linear, names in zip(specification.linear, groups, strict=True):
        kernels, biases = (
            [_array(getattr(attention, f"{name}_{kind}")) for name in names] for kind in ("kernel", "bias")
        )
        _set_linear(linear, np.concatenate(kernels, axis=1), np.concatenate(biases))


def _set_output(specification: Any, decoder: TransformerDecoder) -> None:
    weight = decoder.embedding.embeddings if decoder.tie_embeddings else decoder.output_kernel
    bias = np.zeros(decoder.vocabulary_size, "float32")
    if decoder.output_bias:
        bias = _array(decoder.output_bias_vector)
    bias[[PAD_ID, START_ID]] = _NEVER
    specification.weight, specification.bias = _array(weight), bias


def _set_linear(specification: Any, kernel: Any, bias: Any) -> None:
    # The output axis comes first there.
    specification.weight = np.ascontiguousarray(_array(kernel).T)
    specification.bias = _array(bias)


def _set_norm(specification: Any, norm: Any) -> None:
    specification.gamma, specification.beta = _array(norm.gamma), _array(norm.beta)


def _array(weight: Any) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(weight), "float32")


def _tokens(tokenizer: Tokenizer) -> list[str]:
    """The names of all tokens, by which CTranslate2 knows them; no two of them are the same."""
    ids = np.arange(len(SPECIAL_PIECES), tokenizer.vocabulary_size)
    return [*SPECIAL_PIECES, *to_strings(tokenizer.pieces(ids))]
