"""MarianTokenizer; what it shares with the others is tested in test_tokenizer.py."""

import io

import keras
import pytest
import sentencepiece
import tensorflow as tf

from attention_zoo.models.marian_tokenizer import MarianTokenizer

TEXTS = ["the cat sat on the mat", "the dog sat on the log", "a cat and a dog in 1998", "der Bär läuft"]


def spm(texts=TEXTS, size=60, **options):
    """A SentencePiece model with the special ids that OPUS-MT has: its own numbers do not matter."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 3), model_writer=model, vocab_size=size, hard_vocab_limit=False,
        minloglevel=2, **options,
    )  # fmt: skip
    return model.getvalue()


@pytest.fixture(scope="module")
def model():
    return spm()


@pytest.fixture(scope="module")
def processor(model):
    return sentencepiece.SentencePieceProcessor(model_proto=model)


@pytest.fixture(scope="module")
def vocabulary(processor):
    """In another order than the model's, with a language, a foreign piece and without one of its own."""
    pieces = [processor.id_to_piece(i) for i in range(3, processor.vocab_size())]
    pieces.remove("9")
    return [">>fra<<", *reversed(pieces), "漢字"]


@pytest.fixture(scope="module")
def tokenizer(model, vocabulary):
    return MarianTokenizer(model, vocabulary)


def ids_of(processor, vocabulary, text):
    """By the packages' own means, in Python."""
    return [
        vocabulary.index(piece) + 4 if piece in vocabulary else 3
        for piece in processor.encode(text, out_type=str)
    ]


HARD = [
    "",
    "  ",
    "  the   cat ",
    "😀 漢字 cat",
    "in 1998",
    "</s><s><unk><pad>",
    b"\xff cat \x80",
    "ｃａｔ",
    "a\x00b",
]


def test_pieces_of_the_model_have_the_ids_of_the_vocabulary(tokenizer, processor, vocabulary):
    ids = tokenizer.tokenize([*TEXTS, *HARD])
    assert ids.dtype == tf.int32
    assert ids.to_list() == [ids_of(processor, vocabulary, text) for text in [*TEXTS, *HARD]]
    assert tokenizer.vocabulary_size == len(vocabulary) + 4
    assert not {0, 1, 2} & set(ids.flat_values.numpy())
    assert 3 in ids[len(TEXTS) + 4].numpy()  # the 9 that the vocabulary lacks
    assert len(vocabulary) + 3 in ids[len(TEXTS) + 3].numpy()  # a piece that the model does not know


def test_detokenizing_gives_back_the_text(tokenizer):
    back = tokenizer.detokenize(tokenizer.tokenize([*TEXTS, "  the   cat ", "漢字 cat", "9"]).to_tensor())
    unknown = "a cat and a dog in 1 ⁇  ⁇ 8"  # as SentencePiece writes them
    expected = [*TEXTS[:2], unknown, TEXTS[3], "the cat", "漢字 cat", "⁇"]
    assert [text.decode() for text in back.numpy()] == expected
    ended = tf.concat([tokenizer.tokenize(["the cat"]), [[2, 9, 9]]], axis=1).to_tensor()
    assert tokenizer.detokenize(ended).numpy()[0] == b"the cat"


def test_language_token_at_the_start_stays_whole(tokenizer, processor, vocabulary):
    cat = ids_of(processor, vocabulary, "the cat")
    texts = [">>fra<< the cat", ">>fra<<the cat", ">>fra<<", ">>deu<< the cat", "a >>fra<< cat", " >>fra<< a"]
    received = tokenizer.tokenize([*texts, ">>fra<< >>fra<< a"]).to_list()
    assert received[:3] == [[4, *cat], [4, *cat], [4]]
    # Elsewhere, or of a language that the vocabulary lacks, it is text.
    assert received[3:6] == [ids_of(processor, vocabulary, text) for text in texts[3:]]
    assert received[6] == [4, *ids_of(processor, vocabulary, " >>fra<< a")]
    assert tokenizer.pieces(tokenizer.tokenize([">>fra<<"]).to_tensor()).numpy()[0] == b">>fra<<"


def test_works_in_a_graph_a_saved_model_and_a_keras_file(tokenizer, processor, vocabulary, tmp_path):
    texts = tf.constant([">>fra<< the cat", "", "der Bär"])
    expected = tokenizer.tokenize(texts).to_list()

    class Module(tf.Module):
        def __init__(self):
            self.tokenizer = tokenizer

        @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
        def round_trip(self, texts):
            ids = self.tokenizer.tokenize(texts)
            return ids.to_tensor(), self.tokenizer.detokenize(ids.to_tensor())

    module = Module()
    tf.saved_model.save(module, tmp_path / "saved")
    for function in (module.round_trip, tf.saved_model.load(tmp_path / "saved").round_trip):
        ids, back = function(texts)
        assert [[i for i in row if i] for row in ids.numpy().tolist()] == expected
        assert [text.decode() for text in back.numpy()] == [">>fra<< the cat", "", "der Bär"]

    model = keras.Sequential([tokenizer])
    model.save(tmp_path / "tokenizer.keras")
    copy = keras.saving.load_model(tmp_path / "tokenizer.keras").layers[0]
    assert copy.tokenize(texts).to_list() == expected
    assert (copy.model, copy.vocabulary) == (tokenizer.model, tuple(vocabulary))
    assert "漢字" not in str(tokenizer.get_config())


def test_two_tokenizers_keep_apart(tokenizer, processor, vocabulary, tmp_path):
    """Their models are resources of one graph, see `sentencepiece_tokenizer.sub_words`."""
    other = MarianTokenizer(spm(["un chat noir", "le chien"], 30), ["▁", "u", "n", "c", "h", "a", "t"])
    expected = [x.tokenize(["un chat"]).to_list() for x in (tokenizer, other)]
    assert expected[0] != expected[1]
    module = tf.Module()
    module.parts = [tokenizer, other]
    module.both = tf.function(
        lambda texts: [x.tokenize(texts).to_tensor() for x in (tokenizer, other)],
        input_signature=[tf.TensorSpec((None,), tf.string)],
    )
    tf.saved_model.save(module, tmp_path / "both")
    received = tf.saved_model.load(tmp_path / "both").both(tf.constant(["un chat"]))
    assert [x.numpy().tolist() for x in received] == expected


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (["a", "b", "a"], "expected different pieces.*received 'a' a second time"),
        (["a", "</s>"], "received '</s>' a second time"),
        (["a", ""], "received ''"),
        (["a", 1], "received 1"),
        ([], "expected at least one piece"),
        ("abc", "expected a list of pieces, received the string 'abc'"),
        (None, "received only a model"),
    ],
)
def test_wrong_vocabularies(model, vocabulary, message):
    with pytest.raises(ValueError, match=message):
        MarianTokenizer(model, vocabulary)


def test_wrong_models(model):
    for wrong, message in [
        (b"", "received 0 bytes"),
        (b"no model", "received 8 bytes that are none, or are damaged"),
        (model[: len(model) // 2], "damaged"),
        ("a path", "expected the bytes of a SentencePiece model, received str"),
        (None, "received only a vocabulary"),
    ]:
        with pytest.raises(ValueError, match=message):
            MarianTokenizer(wrong, ["a"])
    with pytest.raises(ValueError, match="expected a vocabulary, received none yet"):
        MarianTokenizer().tokenize(["a"])
