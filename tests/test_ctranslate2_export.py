"""Our Transformers in CTranslate2: what both say, and how probable they find it."""

import json
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import WORDS, random_texts

from attention_zoo.models import (
    RNNDecoder,
    SentencePieceTokenizer,
    TransformerDecoder,
    TransformerEncoder,
    Translator,
    WhitespaceTokenizer,
)
from attention_zoo.models.ctranslate2_export import export_ctranslate2
from attention_zoo.models.tokenizer import END_ID, START_ID

TEXTS = random_texts(6, seed=1)
SIZES = {"layers": 2, "units": 16, "feed_forward_units": 24, "num_heads": 4}


def make_model(tokenizer, encoder=None, decoder=None, **both):
    size = tokenizer.vocabulary_size
    model = Translator(
        TransformerEncoder(size, **{**SIZES, **both, **(encoder or {})}),
        TransformerDecoder(size, **{**SIZES, **both, **(decoder or {})}),
        tokenizer,
        tokenizer,
    )
    model.build()
    return model


def draw_weights(model, deviation, embeddings, positions=1.0):
    random = np.random.default_rng(3)
    for weight in model.trainable_weights:
        scale = deviation
        if "embeddings" in weight.path:
            scale = positions if "position" in weight.path else embeddings
        weight.assign(("gamma" in weight.path) + scale * random.normal(size=weight.shape))
    return model


def theirs_of(model, folder):
    ctranslate2 = pytest.importorskip("ctranslate2", reason="CTranslate2 runs what is written for it")
    export_ctranslate2(model, folder)
    return ctranslate2.Translator(str(folder), intra_threads=1)


VARIANTS = {
    "defaults": {},
    "halves, bias": {"position_order": "halves", "max_wavelength": 500.0, "decoder": {"output_bias": True}},
    "pre-norm": {"normalize_first": True, "activation": "gelu", "decoder": {"tie_embeddings": False}},
    "learned": {"positions": "learned", "max_positions": 9, "activation": "swish", "scale_embeddings": False},
    "two sizes": {"encoder": {"num_heads": 2, "layers": 1, "activation": "gelu", "feed_forward_units": 8}},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_probabilities(variant, tokenizer, tmp_path):
    if variant == "defaults":
        tokenizer = SentencePieceTokenizer.train(WORDS, 20)
    model = draw_weights(make_model(tokenizer, **VARIANTS[variant]), 0.3, 0.4)
    theirs = theirs_of(model, tmp_path / "converted")
    rows = [[4, 7, 3, 9, 5], [11], [6, 6, 8]]
    sources = [[piece.decode() for piece in tokenizer.pieces(row).numpy()] for row in rows]
    for row, scored in zip(rows, theirs.score_batch(sources, [row[::-1] for row in sources]), strict=True):
        labels = [*row[::-1], END_ID]
        logits = model({"source": np.array([[*row, END_ID]]), "target": np.array([[START_ID, *row[::-1]]])})
        # Padding and start have no share of the probability there.
        expected = tf.nn.log_softmax(logits[0, :, 2:]).numpy()[range(len(labels)), np.array(labels) - 2]
        np.testing.assert_allclose(scored.log_probs, expected, atol=1e-4)


def speaking_model(tokenizer, normalize_first):
    """It comes to an end by itself: its positions look more and more like the end token.

    And it is sure of itself: ends out of place, which CTranslate2 leaves out of its beam, are improbable.
    """
    arguments = {"positions": "learned", "max_positions": 64, "normalize_first": normalize_first}
    model = make_model(tokenizer, **arguments, decoder={"output_bias": True})
    draw_weights(model, *((0.3, 0.3) if normalize_first else (0.1, 0.2, 0.5)))
    end = model.decoder.embedding.embeddings.numpy()[END_ID]
    table = model.decoder.position.embeddings
    slope = (0.6 if normalize_first else 0.2) * np.arange(64)[:, None]
    table.assign(table.numpy() + slope * end / np.linalg.norm(end))
    norm = model.decoder.output_norm or model.decoder.blocks[-1].feed_forward_norm
    for weight in (norm.gamma, norm.beta):
        weight.assign(6 * weight)
    bias = np.zeros(tokenizer.vocabulary_size)
    bias[:2] = -100  # as there
    model.decoder.output_bias_vector.assign(bias)
    return model


@pytest.mark.parametrize("normalize_first", [False, True])
def test_translations(normalize_first, tokenizer, tmp_path):
    model = speaking_model(tokenizer, normalize_first)
    theirs = theirs_of(model, tmp_path / "converted")
    for beams in (1, 4):
        ours = model.translate(TEXTS, beams=beams, length_penalty=0.0, max_length=39)
        sources = [one.source_tokens[:-1] for one in ours]  # the end is added there
        options = {"length_penalty": 0.0, "min_decoding_length": 0, "max_decoding_length": 40}
        found = theirs.translate_batch(sources, beam_size=beams, return_scores=True, **options)
        assert [one.tokens for one in ours] == [[*one.hypotheses[0], "</s>"] for one in found]
        np.testing.assert_allclose([one.score for one in ours], [one.scores[0] for one in found], atol=1e-3)
        assert max(len(one.tokens) for one in ours) < 39


def test_tokenizers_are_written_along(tokenizer, tmp_path):
    theirs_of(make_model(tokenizer), tmp_path / "converted")
    copy = WhitespaceTokenizer()
    copy.load_assets(tmp_path / "converted" / "source_tokenizer")
    assert copy.vocabulary == tokenizer.vocabulary
    vocabulary = json.loads((tmp_path / "converted" / "shared_vocabulary.json").read_text(encoding="utf-8"))
    assert vocabulary == ["<pad>", "<s>", "</s>", "<unk>", *WORDS]


def test_nothing_is_overwritten(tokenizer, tmp_path):
    pytest.importorskip("ctranslate2")
    (tmp_path / "converted").mkdir()
    (tmp_path / "converted" / "kept").write_text("kept", encoding="utf-8")
    with pytest.raises(FileExistsError, match="expected a folder that does not exist yet or is empty"):
        export_ctranslate2(make_model(tokenizer), tmp_path / "converted")
    assert [path.name for path in tmp_path.rglob("*")] == ["converted", "kept"]


def test_models_that_cannot_be_written(tokenizer, tmp_path):
    pytest.importorskip("ctranslate2")
    size = tokenizer.vocabulary_size
    sizes = {"units": 8, "embedding_dim": 8}
    recurrent = Translator.from_preset("bahdanau", tokenizer, tokenizer, encoder=sizes, decoder=sizes)
    mixed = Translator(TransformerEncoder(size, **SIZES), RNNDecoder(size, 8, 8), tokenizer, tokenizer)
    for model, message in [
        (recurrent, "expected a TransformerEncoder, received a RNNEncoder; only Transformers can be"),
        (mixed, "expected a TransformerDecoder, received a RNNDecoder"),
        (keras.Sequential(), "expected a Translator, received a Sequential"),
        (make_model(tokenizer, positions="rotary"), 'received "rotary" in the TransformerEncoder'),
        (make_model(tokenizer, decoder={"num_key_value_heads": 2}), "num_key_value_heads=2 in the Transf"),
        (make_model(tokenizer, activation="tanh"), "activation relu, gelu, silu, received tanh in the Trans"),
    ]:
        with pytest.raises(ValueError, match=message):
            export_ctranslate2(model, tmp_path / "converted")
        assert not list(tmp_path.iterdir())


def test_missing_library(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    with pytest.raises(ImportError, match=r"pip install 'attention-zoo\[convert\]'"):
        export_ctranslate2(make_model(tokenizer), tmp_path / "converted")
