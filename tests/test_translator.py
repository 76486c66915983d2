import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import LENGTH, random_texts
from small_models import shifted

from attention_zoo.layers import LuongAttention
from attention_zoo.models import RNNDecoder, RNNEncoder, Translator, WhitespaceTokenizer, presets, serving
from attention_zoo.models.tokenizer import END_ID

TEXTS = ["ba do", "", "mo", "  \t ", "fi ge ku la mo", "ni ni"]


def copy_task(tokenizer, texts):
    """Batches that teach to say what was read."""
    labels = np.zeros((len(texts), LENGTH), "int32")
    for row, ids in zip(labels, tokenizer.tokenize(texts).to_list(), strict=True):
        row[: len(ids) + 1] = [*ids, END_ID]
    return {"source": labels, "target": shifted(labels)}, labels


@pytest.fixture(scope="module")
def training(tokenizer):
    """A translator that learned to copy, and the history of its training. Tests must not train it on."""
    keras.utils.set_random_seed(1)
    model = Translator.from_preset(
        "bahdanau",
        tokenizer,
        tokenizer,
        encoder={"embedding_dim": 24, "units": 16, "dropout": 0.1},
        decoder={"embedding_dim": 24, "units": 32, "dropout": 0.1, "attention": {"units": 16}},
        max_source_length=40,
    )
    model.compile(keras.optimizers.Adam(0.01))
    inputs, labels = copy_task(tokenizer, random_texts(1024, seed=2))
    history = model.fit(
        inputs, labels, batch_size=64, epochs=20, verbose=0,
        validation_data=copy_task(tokenizer, random_texts(64, seed=3)),
    )  # fmt: skip
    return model, history


@pytest.fixture(scope="module")
def translator(training):
    return training[0]


@pytest.fixture(scope="module")
def words():
    return WhitespaceTokenizer(["a", "b", "c"])


@pytest.fixture
def without_attention(words):
    return Translator.from_preset(
        "seq2seq",
        words,
        words,
        encoder={"embedding_dim": 4, "units": 4},
        decoder={"embedding_dim": 4, "units": 4},
    )


@pytest.fixture
def calls(translator, monkeypatch):
    """Keeps a test from compiling: `generate` only notes what it was asked."""
    asked = []

    def generate(self, source, *, limits, max_length, forced_prefix, **settings):
        assert max_length >= limits.max()
        prefix_shape = None if forced_prefix is None else forced_prefix.shape
        asked.append(
            types.SimpleNamespace(
                compiled_for=(source.shape, prefix_shape, max_length, *settings.items()),
                limits=limits,
                settings=settings,
            )
        )
        tokens = np.zeros((len(source), 1, 2), "int32")
        tokens[..., 0] = 2
        ones = np.ones((len(source), 1))
        return {"tokens": tokens, "scores": -ones, "lengths": ones.astype("int32"), "attention": None}

    monkeypatch.setattr(Translator, "generate", generate)
    return asked


def values(translation):
    return (translation.text, translation.tokens, translation.source_tokens)


def test_training_learns(training):
    _, history = training
    losses, accuracies = history.history["val_loss"], history.history["val_token_accuracy"]
    assert losses[-1] < 0.5 * losses[0]
    assert accuracies[-1] > 0.8
    assert accuracies[-1] > accuracies[0]


# === What comes out ===


def test_translates_what_it_learned(translator):
    translations = translator.translate(TEXTS, beams=2)
    assert [t.text for t in translations] == ["ba do", "", "mo", "", "fi ge ku la mo", "ni ni"]  # in order
    assert translations[0].tokens == ["ba", "do", "</s>"]
    assert translations[0].source_tokens == ["ba", "do", "</s>"]
    assert translations[0].alternatives == []
    assert all(t.score < 0 for t in translations if t.text)
    blank = translations[1]
    assert (blank.score, blank.tokens, blank.source_tokens, blank.attention) == (0.0, [], [], None)
    assert translator.translate([], beams=2) == []


def test_one_string_gives_one_translation(translator):
    single = translator.translate("ba do", beams=2)
    (listed,) = translator.translate(["ba do"], beams=2)
    assert values(single) == values(listed)
    assert single.score == listed.score
    assert values(translator.translate(np.array(["ba do"]), beams=2)[0]) == values(listed)


def test_result_depends_neither_on_batch_size_nor_on_other_texts(translator):
    together = translator.translate(TEXTS, beams=2)
    by_threes = translator.translate(TEXTS, beams=2, batch_size=3)  # the last of the four alone
    for one, other in zip(together, by_threes, strict=True):
        assert values(one) == values(other)
        np.testing.assert_allclose(one.score, other.score, atol=1e-5)
    beside_long_text = translator.translate(["ba do", "mo " * 30], beams=2)[0]
    assert values(beside_long_text) == values(together[0])
    np.testing.assert_allclose(beside_long_text.score, together[0].score, atol=1e-5)


def test_any_characters_give_a_text(translator):
    # Unknown characters are unknown tokens; a lone surrogate cannot be written in UTF-8.
    texts = ["😀🎉", "日本語 ba", "ba\u200d\u0000do", "é" * 5, "مرحبا", "ba\ud800"]
    for translation in translator.translate(texts, beams=2):
        assert isinstance(translation.text, str)
        assert translation.tokens[-1] == "</s>"


def test_attention_changes_nothing_and_fits_the_tokens(translator):
    plain = translator.translate(TEXTS, beams=2)
    with_attention = translator.translate(TEXTS, beams=2, return_attention=True)
    for one, other in zip(plain, with_attention, strict=True):
        assert values(one) == values(other)
        np.testing.assert_allclose(one.score, other.score, atol=1e-5)
        assert one.attention is None
        assert other.attention.shape == (len(other.tokens), len(other.source_tokens))
        np.testing.assert_allclose(other.attention.sum(axis=1), np.ones(len(other.tokens)), atol=1e-5)


def test_it_copies_words_and_looks_at_them(translator):
    texts = random_texts(32, seed=9)
    found = translator.translate(texts, beams=2, return_attention=True, batch_size=8)
    copied = [t for t, text in zip(found, texts, strict=True) if t.text == text]
    assert len(copied) > 0.6 * len(texts)
    looks = np.concatenate([np.argmax(t.attention, axis=1)[:-1] for t in copied])
    words = np.concatenate([np.arange(len(t.tokens) - 1) for t in copied])
    assert np.mean(looks == words) > 0.8


def test_alternatives_are_sorted(translator):
    best = translator.translate("ba do fi", beams=3, n_best=3)
    hypotheses = [best, *best.alternatives]
    scores = [t.score for t in hypotheses]
    assert scores == sorted(scores, reverse=True)
    assert len({tuple(t.tokens) for t in hypotheses}) == len(hypotheses) == 3
    assert all(t.alternatives == [] and t.source_tokens == best.source_tokens for t in best.alternatives)


def test_prefix_and_lengths(translator):
    prefixed, free, prefixed_twice = translator.translate(
        ["ba do", "mo", "fi"], beams=2, prefix=["ku", "", "la ni"]
    )
    assert prefixed.text.split()[0] == "ku"
    assert free.text == "mo"
    assert prefixed_twice.text.split()[:2] == ["la", "ni"]
    assert all(
        t.text.startswith("ku") for t in translator.translate(["ba do", "mo", "fi"], beams=2, prefix="ku")
    )
    cut = translator.translate("fi ge ku la mo", beams=2, max_length=3)
    assert len(cut.tokens) <= 4  # and the end
    long = translator.translate("ba", beams=2, min_length=6)
    assert len(long.tokens) >= 7


def test_greedy(translator):
    assert [t.text for t in translator.translate(["ba do fi", "mo"], beams=1)] == ["ba do fi", "mo"]


# === Drawing and diverse beams ===


def test_drawing_depends_on_the_seed_and_not_on_the_batch(translator):
    def drawn(texts, seed, batch_size):
        settings = {"sample": True, "temperature": 3.0, "n_best": 5, "seed": seed, "batch_size": batch_size}
        return [
            [x.text for x in (best, *best.alternatives)] for best in translator.translate(texts, **settings)
        ]

    first = drawn(TEXTS, 5, 8)
    assert first == drawn(TEXTS, 5, 1)
    assert first != drawn(TEXTS, 6, 8)
    keras.utils.set_random_seed(1)
    unseeded = drawn(TEXTS, None, 8)
    assert unseeded != drawn(TEXTS, None, 8)
    keras.utils.set_random_seed(1)
    assert unseeded == drawn(TEXTS, None, 8)


def test_drawn_translations_are_sorted_by_their_score(translator):
    best = translator.translate("fi ge ku", sample=True, temperature=3.0, n_best=5, seed=1)
    scores = [best.score, *(other.score for other in best.alternatives)]
    assert len(scores) == 5
    assert scores == sorted(scores, reverse=True)


def test_drawing_from_one_token_is_greedy(translator):
    drawn = translator.translate(TEXTS, sample=True, top_k=1, seed=3)
    greedy = translator.translate(TEXTS, beams=1)
    assert [values(one) for one in drawn] == [values(one) for one in greedy]
    np.testing.assert_allclose([x.score for x in drawn], [x.score for x in greedy], atol=1e-5)


def test_options_reach_the_search(translator, calls):
    translator.translate(
        "ba", beams=4, groups=2, diversity_penalty=0.5, no_repeat_ngram=3, product_dtype="bfloat16"
    )
    translator.translate("ba", sample=True, top_p=0.5, repetition_penalty=1.5, seed=2**40 + 1)
    beams, drawing = (call.settings for call in calls)
    assert (beams["groups"], beams["diversity_penalty"], beams["no_repeat_ngram"]) == (2, 0.5, 3)
    assert (beams["product_dtype"], drawing["product_dtype"]) == ("bfloat16", None)
    assert (drawing["top_p"], drawing["repetition_penalty"]) == (0.5, 1.5)
    assert drawing["seed"].tolist() == [1, 2**9]
    assert drawing["rows"][0] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": 3}, "expected sample=True with top_k=3"),
        ({"temperature": 0.5}, "expected sample=True with temperature=0.5"),
        ({"sample": True, "groups": 2}, "expected sample=False with groups=2"),
        ({"beams": 1, "diversity_penalty": 1.0}, "expected beams of at least 2 with diversity_penalty=1.0"),
        ({"sample": True, "top_k": 0}, "top_k: expected an integer of at least 1"),
        ({"sample": True, "top_p": 1.5}, "top_p"),
        ({"sample": True, "seed": -1}, "seed: expected an integer from 0"),
        ({"beams": 4, "groups": 3, "diversity_penalty": 1.0}, "groups"),
        ({"repetition_penalty": 0.5}, "repetition_penalty"),
    ],
)
def test_options_that_do_not_fit_are_explained(translator, settings, message):
    with pytest.raises(ValueError, match=message):
        translator.translate("ba", **settings)


# === Scoring ===


def test_score_of_a_translation_is_what_the_search_found(translator):
    found = translator.translate(["ba do", "mo"], beams=2, return_attention=True)
    scored = translator.score(["ba do", "mo"], [best.text for best in found], return_attention=True)
    for one, other in zip(scored, found, strict=True):
        assert values(one) == values(other)
        assert one.score == pytest.approx(other.score, abs=1e-5)
        np.testing.assert_allclose(one.attention, other.attention, atol=1e-5)
        np.testing.assert_allclose(one.heads["cross"][0, 0], one.attention, atol=1e-6)


def test_score_is_the_sum_of_the_tokens(translator):
    right, wrong = translator.score(["ba do", "ba do"], ["ba do", "do mo fi"], length_penalty=0.0)
    assert right.score > wrong.score
    assert right.log_probabilities.shape == (3,) and wrong.log_probabilities.shape == (4,)
    assert wrong.score == pytest.approx(wrong.log_probabilities.sum(), abs=1e-6)
    _, penalized = translator.score(["ba do", "ba do"], ["ba do", "do mo fi"], length_penalty=0.7)
    assert penalized.score == pytest.approx(wrong.score / ((5 + 4) / 6) ** 0.7, abs=1e-5)
    assert translator.score("ba do", "ba do", length_penalty=0.0).score == pytest.approx(
        right.score, abs=1e-5
    )
    assert translator.score("ba do", "").tokens == ["</s>"]  # the empty translation is one


def test_scores_depend_neither_on_batch_size_nor_on_order(translator):
    sources, targets = random_texts(8, seed=4), random_texts(8, seed=5)
    together = translator.score(sources, targets)
    by_twos = translator.score(sources[::-1], targets[::-1], batch_size=2)[::-1]
    assert [one.text for one in together] == targets
    np.testing.assert_allclose([x.score for x in together], [x.score for x in by_twos], atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((["ba"], ["ba", "do"]), ValueError, "1 sources and 2 targets"),
        (("ba", ["ba"]), TypeError, "received str and list"),
        ((["ba", " "], ["ba", "do"]), ValueError, "blank one, number 1"),
        ((["ba"], [3]), TypeError, "score: expected targets"),
        (("ba " * 60, "ba"), ValueError, "score: expected texts of at most 40 tokens"),
    ],
)
def test_pairs_that_cannot_be_scored_are_explained(translator, arguments, error, message):
    with pytest.raises(error, match=message):
        translator.score(*arguments)


# === What is compiled ===


def test_few_shapes_are_compiled(translator, calls):
    for count in range(1, 71, 3):
        for length in (1, 14, 15, 16, 20, 31, 38):
            translator.translate(["ba " * length] * count, batch_size=50)
    shapes = {call.compiled_for[0] for call in calls}
    assert shapes <= {(rows, width) for rows in (1, 8, 32, 50) for width in (16, 32, 64)}
    assert len({call.compiled_for for call in calls}) == len(shapes)


def test_batch_is_not_padded_far_beyond_its_texts(translator, calls):
    translator.translate(["ba"] * 40, batch_size=1000)
    translator.translate(["ba"] * 5, batch_size=5)
    assert [call.compiled_for[0][0] for call in calls] == [64, 5]


def test_lengths_and_number_types_cost_no_compile(translator, calls):
    for max_length in range(1, 17):
        translator.translate("ba", max_length=max_length, beams=np.int64(2), length_penalty=np.float32(1))
        assert calls[-1].limits.tolist() == [max_length]
    translator.translate("ba", max_length=np.int32(5), beams=2, length_penalty=1)
    assert len({call.compiled_for for call in calls}) == 1
    assert {type(value) for value in calls[-1].settings.values()} == {int, float, bool, type(None)}


def test_limits_leave_room_for_what_is_asked(translator, calls):
    translator.translate(["ba", "ba ba"], prefix=["do " * 60, ""])
    assert calls[-1].limits[:3].tolist() == [60, 26, 0]  # twice 3 and 20; nothing for a row of padding
    translator.translate(["ba", "ba ba"], min_length=90)
    assert calls[-1].limits[:2].tolist() == [90, 90]
    translator.translate("ba", min_length=3, max_length=3)
    assert calls[-1].limits.tolist() == [3]


# === What is refused ===


@pytest.mark.parametrize(
    "texts", [5, b"ba", None, {"ba": "do"}, ["ba", None], [["ba"]], [b"ba"], ["ba", 5], 1.5]
)
def test_texts_of_the_wrong_type_are_explained(translator, texts):
    with pytest.raises(TypeError, match="expected texts to be a string or a sequence of strings, received"):
        translator.translate(texts)


@pytest.mark.parametrize("prefix", [5, b"ba", [None], {"ba": 1}])
def test_prefixes_of_the_wrong_type_are_explained(translator, prefix):
    with pytest.raises(TypeError, match="expected prefix to be a string or a sequence of strings, received"):
        translator.translate(["ba"], prefix=prefix)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beams": 0}, "beams: expected an integer of at least 1, received 0"),
        ({"beams": -3}, "beams: expected an integer of at least 1"),
        ({"n_best": 0}, "n_best: expected an integer from 1 to 4, received 0"),
        ({"beams": 2, "n_best": 3}, "n_best: expected an integer from 1 to 2, received 3"),
        ({"batch_size": 0}, "batch_size: expected an integer of at least 1"),
        ({"max_length": 0}, "max_length: expected an integer of at least 1"),
        ({"max_length": 3, "min_length": 4}, "max_length: expected an integer of at least 4, received 3"),
        ({"min_length": -1}, "min_length: expected an integer of at least 0"),
        ({"length_penalty": -1}, "length_penalty: expected a number of at least 0"),
        ({"product_dtype": "int8"}, "product_dtype: expected \"bfloat16\" or None, received 'int8'"),
        (
            {"coverage_penalty": float("nan")},
            "coverage_penalty: expected a number of at least 0, received nan",
        ),
        ({"prefix": ["ba", "ba"]}, r"expected one prefix, or one per input \(1\), received 2"),
        (
            {"prefix": "ba ba ba", "max_length": 2},
            "prefixes of at most max_length=2 tokens, received one of 3",
        ),
    ],
)
def test_values_out_of_range_are_explained(translator, settings, message):
    with pytest.raises(ValueError, match=message):
        translator.translate(["ba"], **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"beams": 2.0},
        {"beams": "4"},
        {"n_best": None},
        {"batch_size": 1.5},
        {"max_length": "9"},
        {"min_length": [1]},
        {"length_penalty": "1"},
        {"coverage_penalty": None},
    ],
)
def test_numbers_of_the_wrong_type_are_explained(translator, settings):
    (name,) = settings
    with pytest.raises(TypeError, match=f"{name}: expected a"):
        translator.translate(["ba"], **settings)


def test_too_long_text_is_explained(translator):
    with pytest.raises(ValueError, match=r"at most 40 tokens, received one of 10001 .*sentence by sentence"):
        translator.translate(["ba", "do " * 10_000])


def test_model_without_attention(without_attention):
    for arguments in ({"return_attention": True}, {"coverage_penalty": 0.2}):
        with pytest.raises(ValueError, match="expected a model with attention for"):
            without_attention.translate("a b", **arguments)
    assert without_attention.translate("a b", beams=1).attention is None


# === Composition ===


def test_preset_with_changes(words):
    sizes = {"embedding_dim": 4, "units": 4}
    model = Translator.from_preset(
        "bahdanau",
        words,
        words,
        encoder=sizes,
        decoder={**sizes, "attention": {"units": 3, "normalize": True}},
    )
    assert (model.encoder.units, model.decoder.units, model.decoder.attention.units) == (4, 4, 3)
    assert model.decoder.attention.normalize
    assert model.built
    layer = LuongAttention("general")
    model = Translator.from_preset(
        "bahdanau", words, words, encoder=sizes, decoder={**sizes, "attention": layer}
    )
    assert model.decoder.attention is layer
    model = Translator.from_preset(
        "bahdanau", words, words, encoder=sizes, decoder={**sizes, "attention": None}
    )
    assert model.decoder.attention is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": {"unitz": 3}}, "RNNEncoder: expected arguments among .*units.*; received unitz"),
        (
            {"decoder": {"attention": {"unitz": 3}}},
            "AdditiveAttention: expected arguments among .*received unitz",
        ),
        (
            {"decoder": {"attention": {"class": "Attention"}}},
            '"class" among AdditiveAttention, LuongAttention',
        ),
        ({"encoder": {"class": "CNN"}}, "\"class\" among RNNEncoder, TransformerEncoder; received 'CNN'"),
    ],
)
def test_changes_that_a_preset_does_not_take_are_explained(words, changes, message):
    with pytest.raises(ValueError, match=message):
        Translator.from_preset("bahdanau", words, words, **changes)


def test_unknown_preset_is_explained(words):
    with pytest.raises(ValueError, match="Did you mean 'bahdanau'"):
        Translator.from_preset("bahdanu", words, words)


SMALL = [
    name for name, preset in presets.PRESETS.items() if preset.task == "translation" and name[-6:] != "_paper"
]


@pytest.mark.parametrize("name", SMALL)
def test_every_preset_runs(name, words):
    if name.startswith("transformer"):
        encoder = decoder = {"layers": 1, "units": 16, "feed_forward_units": 4}
    else:
        decoder = {"embedding_dim": 4, "units": 4}
        encoder = {**decoder, "units": 2 if name == "luong_dot" else 4}
        decoder |= {"attention": {"units": 3}} if name in ("bahdanau", "luong_concat") else {}
    model = Translator.from_preset(name, words, words, encoder=encoder, decoder=decoder)
    inputs = {"source": tf.constant([[4, 5, 2]]), "target": tf.constant([[1, 4]])}
    assert model(inputs).shape == (1, 2, words.vocabulary_size)
    copy = Translator.from_config(model.get_config())
    assert copy.get_config() == model.get_config()


def test_learned_positions_limit_what_is_read_and_said(words):
    sizes = {"layers": 1, "units": 8, "feed_forward_units": 4, "num_heads": 1, "positions": "learned"}
    model = Translator.from_preset(
        "transformer_tiny",
        words,
        words,
        encoder={**sizes, "max_positions": 5},
        decoder={**sizes, "max_positions": 7, "tie_embeddings": False},
    )
    found = model.translate("a b c", beams=2, min_length=6)
    assert len(found.tokens) == 7  # with its end
    assert model.score("a b c", found.text).score == pytest.approx(found.score, abs=1e-5)
    serve = serving.translation(model, {"beams": 2, "n_best": 1})  # what `export` writes
    assert serve(tf.constant(["a b c"]))["text"].shape == (1,)
    with pytest.raises(ValueError, match="expected at most 5 positions"):
        model.translate("a b c a b c")


def test_composed_by_hand(words):
    model = Translator(RNNEncoder(7, 4, 3), RNNDecoder(7, 4, 3), words, words, max_source_length=5)
    with pytest.raises(ValueError, match="at most 5 tokens, received one of 6"):
        model.translate("a b c a b")
    assert model.score("a", "b").score < 0  # nobody has built it before


def test_vocabulary_of_another_model_is_explained(words, tmp_path):
    model = Translator(RNNEncoder(8, 4, 3), RNNDecoder(7, 4, 3), words, words)
    for use in (lambda: model.translate("a b"), lambda: model.export(tmp_path / "model")):
        with pytest.raises(
            ValueError, match=r"with the 8 ids of the RNNEncoder, .*WhitespaceTokenizer with 7"
        ):
            use()
