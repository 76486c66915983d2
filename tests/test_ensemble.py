import numpy as np
import pytest
import tensorflow as tf

import attention_zoo
from attention_zoo.models import Ensemble, Translator, WhitespaceTokenizer

RECURRENT = {"embedding_dim": 6, "units": 8}
TRANSFORMER = {"layers": 1, "units": 8, "feed_forward_units": 8, "num_heads": 2}
TEXTS = ["a b", "c c b a"]
TRANSLATIONS = ["b", "c a b"]


def recurrent(words, preset="bahdanau", **changes):
    attention = {"attention": {"units": 4}} if preset == "bahdanau" else {}
    decoder = {**RECURRENT, **attention}
    return Translator.from_preset(preset, words, words, encoder=RECURRENT, decoder=decoder, **changes)


def transformer(words):
    return Translator.from_preset(
        "transformer_tiny", words, words, encoder=TRANSFORMER, decoder=TRANSFORMER, share_embeddings=True
    )


@pytest.fixture(scope="module")
def words():
    return WhitespaceTokenizer(["a", "b", "c"])


@pytest.fixture(scope="module")
def members(words):
    return [recurrent(words), transformer(words)]


@pytest.fixture(scope="module")
def ensemble(members):
    return Ensemble(members)


@pytest.fixture(scope="module")
def scored(ensemble, members):
    """The translations as the ensemble scores them, and as each of its members does."""
    scores = [one.score(TEXTS, TRANSLATIONS, return_attention=True) for one in (ensemble, *members)]
    return list(zip(*scores, strict=True))


def test_probability_is_the_mean_of_the_members(scored):
    for found, *apart in scored:
        mean = np.mean([np.exp(one.log_probabilities) for one in apart], axis=0)
        np.testing.assert_allclose(np.exp(found.log_probabilities), mean, rtol=1e-5)
        assert np.ptp([one.log_probabilities for one in apart], axis=0).max() > 0.1  # they do differ


def test_alignment_is_the_mean_of_the_members(scored):
    for found, *apart in scored:
        mean = np.mean([one.attention for one in apart], axis=0)
        np.testing.assert_allclose(found.attention, mean, atol=1e-6)
        assert found.heads == {}


def test_search_finds_what_it_scores(ensemble):
    found = ensemble.translate(TEXTS, beams=2, return_attention=True)
    scored = ensemble.score(TEXTS, [best.text for best in found], return_attention=True)
    for one, other in zip(found, scored, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-5)
        np.testing.assert_allclose(one.attention, other.attention, atol=1e-5)


def test_saved_as_a_whole(ensemble, scored, tmp_path):
    ensemble.export(tmp_path / "model", beams=2)
    expected = ensemble.translate(TEXTS, beams=2, return_attention=True)
    served = tf.saved_model.load(tmp_path / "model").signatures["serving_default"](texts=tf.constant(TEXTS))
    assert [text.decode() for text in served["text"].numpy()] == [best.text for best in expected]
    loaded = attention_zoo.load(tmp_path / "model")
    assert isinstance(loaded, Ensemble)
    assert loaded.count_params() == ensemble.count_params()
    for one, (other, *_) in zip(loaded.score(TEXTS, TRANSLATIONS), scored, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-6)


def test_without_attention_in_one_there_is_none(words, members):
    ensemble = Ensemble([members[0], recurrent(words, "seq2seq")])
    assert ensemble.score("a", "b").score < 0
    with pytest.raises(ValueError, match="attention"):
        ensemble.translate("a", return_attention=True)


def test_shortest_limit_counts(words, members):
    assert Ensemble([members[0], recurrent(words, max_source_length=7)]).max_source_length == 7


def test_what_cannot_vote_together_is_explained(members):
    with pytest.raises(ValueError, match="at least one member"):
        Ensemble([])
    with pytest.raises(TypeError, match="expected translators, received str"):
        Ensemble(["bahdanau"])
    for others in (["a", "b", "d"], ["a", "b"]):
        with pytest.raises(ValueError, match="same source_tokenizer"):
            Ensemble([members[0], recurrent(WhitespaceTokenizer(others))])
