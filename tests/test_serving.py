"""The signatures of a SavedModel against the model itself; what they do with bad text is in test_saving."""

import unittest.mock

import keras
import numpy as np
import pytest
import tensorflow as tf

from attention_zoo.models import Translator, WhitespaceTokenizer

TEXTS = ["a b", "", "c c b a"]
SIZES = {"layers": 2, "units": 8, "feed_forward_units": 8, "num_heads": 2}
NAMES = {"cross": "cross_heads", "self": "self_heads", "encoder": "encoder_heads"}


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(3)
    words = WhitespaceTokenizer(["a", "b", "c"])
    decoder = {**SIZES, "tie_embeddings": False}  # tied and untrained, it would say one word for ever
    return Translator.from_preset("transformer_tiny", words, words, encoder=SIZES, decoder=decoder)


@pytest.fixture(scope="module")
def outputs(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("transformer") / "model"
    with unittest.mock.patch.object(model, "decode", wraps=model.decode) as decode:
        model.export(folder, beams=2)
    assert decode.call_count == 2  # each signature is traced once
    signatures = tf.saved_model.load(folder).signatures
    return {
        name: {key: x.numpy() for key, x in signatures[name](texts=tf.constant(TEXTS)).items()}
        for name in ("serving_default", "heads")
    }


def test_text_score_and_alignment_are_those_of_the_model(model, outputs):
    expected = model.translate(TEXTS, beams=2, return_attention=True)
    for signature in ("serving_default", "heads"):
        found = outputs[signature]
        assert [text.decode() for text in found["text"]] == [best.text for best in expected]
        np.testing.assert_allclose(found["score"], [best.score for best in expected], atol=1e-5)
        for row, best in zip(found["attention"], expected, strict=True):
            rows, columns = best.attention.shape
            np.testing.assert_allclose(row[:rows, :columns], best.attention, atol=1e-5)
    assert not set(NAMES.values()) & set(outputs["serving_default"])  # nobody pays for what is not asked for


def test_heads_are_those_of_the_model(model, outputs):
    expected = model.translate(TEXTS, beams=2, return_attention=True)
    for part, name in NAMES.items():
        found = outputs["heads"][name]
        assert found.shape[:3] == (len(TEXTS), 2, 2)
        for row, best in zip(found, expected, strict=True):
            if best.text:
                rows, columns = best.heads[part].shape[-2:]
                np.testing.assert_allclose(row[..., :rows, :columns], best.heads[part], atol=1e-5)
