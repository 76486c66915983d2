"""What all tokenizers share; the whitespace tokenizer stands in for them."""

import gzip

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from attention_zoo.models.tokenizer import (
    END_ID,
    PAD_ID,
    START_ID,
    UNKNOWN_ID,
    Tokenizer,
    read_lines,
    to_tensor,
    training_texts,
)
from attention_zoo.models.whitespace_tokenizer import WhitespaceTokenizer


@pytest.fixture
def tokenizer():
    return WhitespaceTokenizer(["a", "b"])


def test_special_ids():
    assert (PAD_ID, START_ID, END_ID, UNKNOWN_ID) == (0, 1, 2, 3)


def test_detokenize_stops_at_the_first_end_and_shows_unknown_tokens(tokenizer):
    ids = [[START_ID, 4, 5, END_ID, 4, END_ID], [4, PAD_ID, 5, UNKNOWN_ID, 0, 0], [END_ID, 4, 4, 4, 4, 4]]
    assert tokenizer.detokenize(ids).numpy().tolist() == [b"a b", b"a b <unk>", b""]
    assert tokenizer.detokenize(np.array(ids, "int64")).numpy()[0] == b"a b"


def test_pieces_name_every_position(tokenizer):
    assert tokenizer.pieces([[1, 4, 3, 2, 0]]).numpy().tolist() == [[b"<s>", b"a", b"<unk>", b"</s>", b""]]


class TestForPython:
    def test_the_same_as_in_graphs(self, tokenizer):
        texts = ["a b", "", "c a"]
        assert tokenizer.ids_of(texts) == tokenizer.tokenize(texts).to_list() == [[4, 5], [], [3, 4]]
        ids = np.array([[[1, 4, 5, 2]], [[4, 3, 2, 0]]], "int32")  # (2, 1, 4)
        assert tokenizer.texts_of(ids).tolist() == [["a b"], ["a <unk>"]]
        assert tokenizer.names_of(ids[0]).tolist() == [["<s>", "a", "b", "</s>"]]
        assert tokenizer.names_of(np.array([0])).tolist() == [""]

    def test_white_space_and_what_is_no_unicode(self):
        texts = ["a\x0bb\x0c a\tb\n", "\u00a0a", "a\u2003b a", "\x1ca", "\ud800 a\ud800", "? \0 a\0"]
        tokenizer = WhitespaceTokenizer(["a", "b", "?", "\u00a0a", "a\u2003b", "\x1ca"])
        assert tokenizer.ids_of(texts) == tokenizer.tokenize(to_tensor(texts)).to_list()
        assert tokenizer.ids_of(texts)[:3] == [[4, 5, 4, 5], [7], [8, 4]]

    def test_nothing(self, tokenizer):
        assert tokenizer.ids_of([]) == []
        assert tokenizer.texts_of(np.zeros((0, 3), "int32")).shape == (0,)

    def test_another_preparation_counts_at_once(self, tokenizer):
        assert tokenizer.ids_of(["A"]) == [[3]]
        tokenizer.preparation = "moses_lowercase"
        assert tokenizer.ids_of(["A"]) == [[4]]

    def test_a_saved_model_does_not_hold_them(self, tokenizer, tmp_path):
        module = tf.Module()
        module.tokenizer = tokenizer
        counts = []
        for name in ("before", "after"):
            tf.saved_model.save(module, str(tmp_path / name))
            saved = SavedModel.FromString((tmp_path / name / "saved_model.pb").read_bytes())
            counts.append(len(saved.meta_graphs[0].graph_def.library.function))
            tokenizer.ids_of(["a"])
        assert counts[0] == counts[1]


def test_empty_batches(tokenizer):
    assert tokenizer.tokenize([]).shape[0] == 0
    assert tokenizer.detokenize(tf.zeros((0, 3), tf.int32)).shape == (0,)
    assert tokenizer.detokenize(tf.zeros((2, 0), tf.int32)).numpy().tolist() == [b"", b""]


@pytest.mark.parametrize("texts", [3, None, [1, 2], np.array([1.5])])
def test_tokenize_refuses_what_is_no_text(tokenizer, texts):
    with pytest.raises(ValueError, match="expected a string tensor or a list of strings, received"):
        tokenizer.tokenize(texts)


@pytest.mark.parametrize("texts", ["a b", [["a"]]])
def test_tokenize_refuses_other_shapes(tokenizer, texts):
    with pytest.raises(ValueError, match=r"expected strings of shape \(B,\).*single text into a list"):
        tokenizer.tokenize(texts)


@pytest.mark.parametrize(
    "use",
    [
        lambda empty: empty.vocabulary_size,
        lambda empty: empty.tokenize(["a"]),
        lambda empty: empty.detokenize([[4]]),
        lambda empty: empty.pieces([[4]]),
    ],
)
def test_a_tokenizer_without_vocabulary_says_so(use):
    with pytest.raises(ValueError, match="expected a vocabulary, received none yet"):
        use(WhitespaceTokenizer())


def test_base_class_has_no_tokens():
    with pytest.raises(ValueError, match="expected a vocabulary"):
        Tokenizer().tokenize(["a"])


def test_read_lines_splits_at_line_feeds_only(tmp_path):
    path = tmp_path / "text"
    path.write_bytes("\ufeffone\u2028more \t\r\n\ntwo\x0c2 ".encode())
    assert read_lines(path) == ["one\u2028more", "", "two\x0c2"]


def test_read_lines_of_gzip(tmp_path):
    path = tmp_path / "text.gz"
    path.write_bytes(gzip.compress("größer\nzwei\n".encode()))
    assert read_lines(str(path)) == ["größer", "zwei"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("text", b"", "expected text, received an empty file"),
        ("text.gz", gzip.compress(b"", mtime=0), "expected text, received an empty file"),
        ("text", b"fine\ngr\xfc\xdfe\n", "expected UTF-8 text, received byte 0xfc in line 2"),
        ("text.gz", b"plain text", "expected a gzip file, received a damaged one"),
        (
            "text.gz",
            gzip.compress(b"some text" * 9, mtime=0)[:-9],
            "expected a gzip file, received a damaged one",
        ),
    ],
)
def test_read_lines_errors_name_the_file(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        read_lines(path)
    assert str(path) in str(error.value)


def test_read_lines_of_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: expected a text file"):
        read_lines(tmp_path / "nowhere")


def test_training_texts_from_strings_and_files(tmp_path):
    path = tmp_path / "text"
    path.write_text("one\n  \ntwo\n")
    assert list(training_texts(iter(["zero", "", path]))) == ["zero", "one", "two"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("abc", "received 'abc'; put it into a list"),
        (["abc", 3], "received 3"),
        ([], "received none"),
        (["", "  "], "only blank ones"),
    ],
)
def test_training_texts_errors(texts, message):
    with pytest.raises(ValueError, match=message):
        list(training_texts(texts))
