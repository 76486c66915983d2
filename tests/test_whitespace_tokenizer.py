"""WhitespaceTokenizer; what it shares with the others is tested in test_tokenizer.py."""

import keras
import pytest
import tensorflow as tf

from attention_zoo.models.whitespace_tokenizer import WhitespaceTokenizer


def test_train_keeps_the_most_frequent_words_and_the_first_of_equal_ones():
    tokenizer = WhitespaceTokenizer.train(["rare b b", "a a c c b d"], vocabulary_size=7)
    assert tokenizer.vocabulary == ("b", "a", "c")
    assert tokenizer.vocabulary_size == 7


def test_train_with_fewer_words_than_asked_for(caplog):
    tokenizer = WhitespaceTokenizer.train(["a b", "</s> <unk>"], vocabulary_size=10)
    assert tokenizer.vocabulary == ("a", "b")
    assert "only 2 words, not 6" in caplog.text


def test_train_without_room_for_words():
    with pytest.raises(ValueError, match=r"expected vocabulary_size > 4.*received 4"):
        WhitespaceTokenizer.train(["a"], vocabulary_size=4)


def test_training_and_tokenizing_agree_on_what_a_word_is():
    text = "a\u00a0b\tc\vd\u3000e \x85f\x0cg"
    tokenizer = WhitespaceTokenizer.train([text], vocabulary_size=100)
    assert tokenizer.tokenize([text]).to_list() == [[4, 5, 6, 7, 8]]


def test_round_trip_and_hard_input():
    tokenizer = WhitespaceTokenizer(["größer", "😀", "漢字"])
    texts = ["  größer   😀 漢字", "", "   ", "</s> größer", "😀 " * 10_000]
    ids = tokenizer.tokenize(texts)
    assert ids.dtype == tf.int32
    assert ids[:4].to_list() == [[4, 5, 6], [], [], [3, 4]]  # "</s>" in a text is an unknown word
    assert ids[4].shape == (10_000,)
    assert tokenizer.detokenize(ids[:3].to_tensor()).numpy()[0].decode() == "größer 😀 漢字"
    assert tokenizer.tokenize(tf.constant([b"\xff\xfe"])).to_list() == [[3]]


@pytest.mark.parametrize("word", ["a", "", "c d", "c\n", "</s>", 7])
def test_vocabulary_is_checked(word):
    with pytest.raises(ValueError, match="expected different words without white space"):
        WhitespaceTokenizer(["a", "b", word])


def test_vocabulary_is_no_string():
    with pytest.raises(ValueError, match="expected a list of words"):
        WhitespaceTokenizer("abc")


def test_in_graph_and_data_pipeline():
    tokenizer = WhitespaceTokenizer(["a", "b"])
    back = tf.function(
        lambda texts: tokenizer.detokenize(tokenizer.tokenize(texts).to_tensor()),
        input_signature=[tf.TensorSpec((None,), tf.string)],
    )
    assert back(tf.constant(["a  b", "b c"])).numpy().tolist() == [b"a b", b"b <unk>"]
    dataset = tf.data.Dataset.from_tensor_slices(["a b", "b"]).batch(2).map(tokenizer.tokenize)
    assert next(iter(dataset)).to_list() == [[4, 5], [5]]


def test_a_vocabulary_has_words():
    with pytest.raises(ValueError, match="expected at least one word"):
        WhitespaceTokenizer([])
    with pytest.raises(ValueError, match="expected at least one word"):
        WhitespaceTokenizer.train(["</s> <unk>"], vocabulary_size=10)


def test_keras_file_carries_the_vocabulary(tmp_path):
    inputs = keras.Input((1,), dtype="string")
    vocabulary = ["größer", "a\u2028b", "\x85"]
    words = WhitespaceTokenizer(vocabulary, name="words")
    assert words.get_config()["vocabulary"] is None
    model = keras.Sequential([inputs, words])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras").layers[0]
    assert loaded.name == "words"
    assert loaded.vocabulary == tuple(vocabulary)
    assert loaded.tokenize(["\x85 größer"]).to_list() == [[6, 4]]
