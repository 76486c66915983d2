"""Marian's translation models, as OPUS-MT publishes them, as translators of ours."""

import os
import pathlib
from typing import Any

import numpy as np

from attention_zoo.models import marian_files
from attention_zoo.models.marian_files import MarianFiles
from attention_zoo.models.marian_tokenizer import MarianTokenizer
from attention_zoo.models.tokenizer import END_ID, PAD_ID, SPECIAL_PIECES, START_ID, UNKNOWN_ID
from attention_zoo.models.transformer_decoder import TransformerDecoder
from attention_zoo.models.transformer_encoder import TransformerEncoder
from attention_zoo.models.translator import Translator

# The output bias of tokens that Marian does not have: never said, and of no weight in the softmax. No
# lower, so that label smoothing, which looks at all tokens, stays what it is when training goes on.
_NEVER = -100.0


def load_marian(folder: str | os.PathLike) -> Translator:
    """Makes a translator of a Marian model, such as those of OPUS-MT by Helsinki-NLP.

    The model is a Transformer that normalizes after each sublayer, with sines and cosines in halves, scaled
    embeddings that are the output matrix too, and an output bias. The folder holds the SentencePiece models
    `source.spm` and `target.spm`, and

    - as published by Hugging Face: `config.json`, `vocab.json` (also `target_vocab.json` if the languages
      have one each), and `model.safetensors` or `pytorch_model.bin`, of which only weights are loaded;
    - or as published by OPUS-MT: `decoder.yml` and the `.npz` and vocabulary files that it names.

    The rows of the vocabulary are put in another order, with our special ids first. The numbers are those
    of the program that the files are for. Both differ in one thing: Marian divides positions by
    10000^(2i / (D - 2)), Hugging Face, with weights that Marian has trained, by 10000^(2i / D). Texts are
    not prepared otherwise than by SentencePiece.

    Args:
        folder: The folder.

    Returns:
        The translator, not compiled.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is damaged, the architecture is another, or weights or vocabulary do not fit.
        ImportError: If safetensors or PyTorch is needed and not installed.

    Reference:
        Tiedemann and Thottingal 2020, "OPUS-MT: Building open translation services for the World".
    """
    files = marian_files.read(pathlib.Path(folder))
    source_rows, target_rows = (_rows(pieces) for pieces in (files.source_pieces, files.target_pieces))
    positions = {"positions": "sinusoidal", "position_order": "halves"}
    model = Translator(
        TransformerEncoder(len(source_rows), **positions, **files.encoder),
        TransformerDecoder(len(target_rows), **positions, **files.decoder, output_bias=True),
        _tokenizer(files.source_model, files.source_pieces, source_rows, "source"),
        _tokenizer(files.target_model, files.target_pieces, target_rows, "target"),
        share_embeddings=files.shared,
        **({} if files.max_source_length is None else {"max_source_length": files.max_source_length}),
    )
    model.build()
    _assign(model, files, source_rows, target_rows)
    return model


def _rows(pieces: list[str]) -> list[int | None]:
    """Which of their ids each of ours is; None for what they do not have.

    Hugging Face's model begins its outputs with padding; Marian itself with an embedding of zeros, and has
    neither of both tokens.
    """
    special: dict[int, int | None] = {
        PAD_ID: None,
        START_ID: pieces.index(marian_files.PAD_PIECE) if marian_files.PAD_PIECE in pieces else None,
        END_ID: pieces.index(marian_files.END_PIECE),
        UNKNOWN_ID: pieces.index(marian_files.UNKNOWN_PIECE),
    }
    rest = [number for number in range(len(pieces)) if number not in special.values()]
    return [special[number] for number in range(len(SPECIAL_PIECES))] + rest


def _permuted(array: np.ndarray, rows: list[int | None], missing: float) -> np.ndarray:
    """The rows in our order, with one number throughout in those that are missing."""
    result = array[[0 if row is None else row for row in rows]]
    result[[row is None for row in rows]] = missing
    return result


def _tokenizer(model: bytes, pieces: list[str], rows: list[int | None], side: str) -> MarianTokenizer:
    try:
        return MarianTokenizer(model, [pieces[row] for row in rows[len(SPECIAL_PIECES) :]])
    except ValueError as error:
        raise ValueError(f"{side}.spm and the {side} vocabulary: {error}") from None


def _assign(
    model: Translator, files: MarianFiles, source_rows: list[int | None], target_rows: list[int | None]
) -> None:
    """Gives a built model its weights."""
    parts = {"encoder": (model.encoder, source_rows), "decoder": (model.decoder, target_rows)}
    for name, (stack, rows) in parts.items():
        stack.embedding.embeddings.assign(_permuted(files.embeddings[name], rows, 0.0))
        for block, weights in zip(stack.blocks, files.blocks[name], strict=True):
            for path, pair in weights.items():
                for variable, value in zip(_variables(block, path), pair, strict=True):
                    variable.assign(value)
    model.decoder.output_bias_vector.assign(_permuted(files.output_bias, target_rows, _NEVER))


def _variables(block: Any, path: str) -> tuple[Any, Any]:
    """The two variables of a part of a block, see `MarianFiles.blocks`."""
    name, _, part = path.partition(".")
    layer = getattr(block, name)
    if name.endswith("norm"):
        return layer.gamma, layer.beta
    if name == "feed_forward":
        dense = getattr(layer, part)
        return dense.kernel, dense.bias
    return getattr(layer, f"{part}_kernel"), getattr(layer, f"{part}_bias")
