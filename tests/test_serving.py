"""The signatures of a SavedModel against the model itself; what they do with bad text is in test_saving."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from attention_zoo.models import Translator, WhitespaceTokenizer

TEXTS = ["a b", "", "c c b a"]
SIZES = {"layers": 2, "units": 8, "feed_forward_units": 8, "num_heads": 2}
NAMES = {"cross": "cross_heads", "self": "self_heads", "encoder": "encoder_heads"}


def served(model, folder):
    model.export(folder, beams=2)
    loaded = tf.saved_model.load(folder)
    return {
        name: {key: x.numpy() for key, x in loaded.signatures[name](texts=tf.constant(TEXTS)).items()}
        for name in loaded.signatures
    }


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(3)
    words = WhitespaceTokenizer(["a", "b", "c"])
    decoder = {**SIZES, "tie_embeddings": False}  # tied and untrained, it would say one word for ever
    return Translator.from_preset("transformer_tiny", words, words, encoder=SIZES, decoder=decoder)


@pytest.fixture(scope="module")
def outputs(model, tmp_path_factory):
    return served(model, tmp_path_factory.mktemp("transformer") / "model")


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


def test_model_without_attention_has_one_signature(tmp_path):
    words = WhitespaceTokenizer(["a", "b", "c"])
    sizes = {"embedding_dim": 4, "units": 4}
    model = Translator.from_preset("seq2seq", words, words, encoder=sizes, decoder=sizes)
    outputs = served(model, tmp_path / "model")
    assert [name for name in outputs if name != "serving_default"] in ([], ["serve"])
    assert "attention" not in outputs["serving_default"]
