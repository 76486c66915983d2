"""SentencePieceTokenizer; what it shares with the others is tested in test_tokenizer.py."""

import concurrent.futures
import io
import json
import pathlib
import subprocess
import sys
import unicodedata

import keras
import numpy as np
import pytest
import sentencepiece
import tensorflow as tf

from attention_zoo.models.sentencepiece_tokenizer import SentencePieceTokenizer
from attention_zoo.models.tokenizer import to_tensor

TEXTS = ["the cat sat on the mat", "the dog sat on the log", "a cat and a dog in 1998", "der Bär läuft"]


@pytest.fixture(scope="module")
def tokenizer():
    return SentencePieceTokenizer.train(TEXTS, vocabulary_size=40)


def decoded(tensor):
    return [text.decode() for text in tensor.numpy()]


@pytest.mark.parametrize("model_type", ["unigram", "bpe", "char"])
def test_detokenizing_gives_back_the_normalized_text(model_type):
    tokenizer = SentencePieceTokenizer.train(TEXTS, 40, model_type=model_type)
    ids = tokenizer.tokenize([*TEXTS, "  the   cat ", "ｃａｔ", "Ba\u0308r"])
    assert ids.dtype == tf.int32
    assert tokenizer.vocabulary_size <= 40
    assert int(tf.reduce_min(ids.flat_values)) > 3
    assert decoded(tokenizer.detokenize(ids.to_tensor())) == [*TEXTS, "the cat", "cat", "Bär"]


def test_hard_input_never_fails(tokenizer):
    texts = [
        "",
        "   ",
        "😀",
        "漢字 カタカナ",
        b"\xff\xfe cat \x80",
        "cat\x00dog",
        "the cat " * 5_000,
        "</s><s>",
    ]
    ids = tokenizer.tokenize(texts)
    assert ids[:2].to_list() == [[], []]
    assert 3 in ids[2].numpy() and 3 in ids[3].numpy()
    assert 2 not in ids[7].numpy() and 1 not in ids[7].numpy()
    back = decoded(tokenizer.detokenize(ids.to_tensor()))
    assert back[:3] == ["", "", "⁇"]
    assert back[4] == "⁇ cat ⁇"
    assert back[6] == ("the cat " * 5_000).strip()


@pytest.mark.parametrize(("model_type", "normalization"), [("unigram", "nmt_nfkc"), ("bpe", "identity")])
def test_python_puts_together_what_the_graph_does(model_type, normalization):
    texts = [*TEXTS, "ｆｕｌｌ ﬁne ½ ₂ 漢字 🙂 ▁ a  b"]
    tokenizer = SentencePieceTokenizer.train(texts, 80, model_type=model_type, normalization=normalization)
    ids = np.random.default_rng(0).integers(0, tokenizer.vocabulary_size, (500, 12)).astype("int32")
    ids[:, 6] = np.arange(500) % 8  # special ones more often than by chance
    assert tokenizer.texts_of(ids).tolist() == decoded(tokenizer.detokenize(ids))
    hard = [*texts, "", " ", "\ud800", "\0 a", "</s> <s>"]
    assert tokenizer.ids_of(hard) == tokenizer.tokenize(to_tensor(hard)).to_list()


def test_emoji_and_cjk_that_were_learned_come_back():
    texts = ["漢字 と 😀", "안녕 세상", "🇩🇪 👩‍🚀"]
    tokenizer = SentencePieceTokenizer.train(texts, 50, normalization="identity")
    assert decoded(tokenizer.detokenize(tokenizer.tokenize(texts).to_tensor())) == texts


def test_pieces_join_to_the_text(tokenizer):
    ids = tf.concat([tokenizer.tokenize(["the cat"]), [[2, 0]]], axis=1).to_tensor()
    pieces = [piece.decode() for piece in tokenizer.pieces(ids).numpy()[0]]
    assert pieces[-2:] == ["</s>", ""]
    assert "".join(pieces[:-2]) == "▁the▁cat"


def test_normalization(tokenizer):
    assert decoded(tokenizer.detokenize(tokenizer.tokenize(["ﬁ"]).to_tensor()))[0] != "ﬁ"
    folded = SentencePieceTokenizer.train(["the cat"], 20, normalization="nmt_nfkc_cf")
    assert decoded(folded.detokenize(folded.tokenize(["THE Cat"]).to_tensor())) == ["the cat"]
    decomposed = unicodedata.normalize("NFD", "Bär")
    identity = SentencePieceTokenizer.train([decomposed], 20, normalization="identity")
    assert decoded(identity.detokenize(identity.tokenize([decomposed]).to_tensor())) == [decomposed]


def test_split_digits():
    texts = ["in 1998", "in 1999", "on 1998"] * 9
    whole = SentencePieceTokenizer.train(texts, 30)
    split = SentencePieceTokenizer.train(texts, 30, split_digits=True)
    assert len(whole.tokenize(["1998"])[0]) < 4
    assert [p.decode() for p in split.pieces(split.tokenize(["1998"]).to_tensor()).numpy()[0]] == list(
        "▁1998"
    )


def test_training_is_repeatable_and_takes_files(tmp_path, tokenizer):
    path = tmp_path / "text"
    path.write_text("\n".join(TEXTS), encoding="utf-8")
    assert SentencePieceTokenizer.train(iter(TEXTS), 40).model == tokenizer.model
    assert SentencePieceTokenizer.train([path], 40).model == tokenizer.model


def test_vocabulary_larger_than_the_text_supports(caplog):
    tokenizer = SentencePieceTokenizer.train(["ab ab"], 1000)
    assert tokenizer.vocabulary_size < 1000
    assert f"only {tokenizer.vocabulary_size} pieces, not 1000" in caplog.text


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [
        (["abc"], 6, "expected vocabulary_size >= 8 .*received 6; raise it, or lower character_coverage"),
        (["abc"], 4, "expected vocabulary_size > 4.*received 4"),
        ([], 50, "expected texts to learn a vocabulary from, received none"),
        (["abc", None], 50, "expected texts .*received None"),
    ],
)
def test_training_errors(texts, size, message):
    with pytest.raises(ValueError, match=message):
        SentencePieceTokenizer.train(texts, size)


def test_training_is_silent():
    code = (
        "import sys, os, tensorflow as tf, tensorflow_text\n"
        "from attention_zoo.models import SentencePieceTokenizer\n"
        "train = SentencePieceTokenizer.train\n"
        "tf.constant(0)\n"  # TensorFlow speaks when it starts
        "sys.stderr.flush(); os.write(2, b'TRAINING')\n"
        f"train({TEXTS!r}, 30); train({TEXTS!r}, 30, model_type='bpe')\n"
    )
    root = pathlib.Path(__file__).parents[1]
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=300
    )
    assert process.stderr.partition("TRAINING")[1:] == ("TRAINING", "")


def test_damaged_models(tokenizer):
    for model, message in [
        (b"", "received 0 bytes"),
        (b"no model", "received 8 bytes that are none, or are damaged"),
        (tokenizer.model[: len(tokenizer.model) // 2], "damaged"),
        ("a path", "expected the bytes of a model, received str"),
    ]:
        with pytest.raises(ValueError, match=message):
            SentencePieceTokenizer(model)


def test_model_with_other_special_ids():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["abc"] * 3),
        model_writer=model,
        vocab_size=20,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with pytest.raises(
        ValueError, match=r"expected a model with .*'pad_id': 0.* received one with .*'pad_id': -1"
    ):
        SentencePieceTokenizer(model.getvalue())


def test_missing_tensorflow_text_names_the_remedy(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_text", None)
    with pytest.raises(ImportError, match="pip install tensorflow-text"):
        SentencePieceTokenizer(tokenizer.model)


LONG_WORDS = ("the translation of the translation", "a station", "", "translations")


@pytest.fixture(scope="module")
def merges():
    return SentencePieceTokenizer.train([*LONG_WORDS, "the a of"], 40, model_type="bpe")


class TestDropout:
    def draw(self, merges, rate, seed=0):
        return merges.tokenize_with_dropout(LONG_WORDS, rate, seed).to_list()

    def test_rates_of_nothing_and_of_everything(self, merges):
        assert self.draw(merges, 0.0) == merges.tokenize(LONG_WORDS).to_list()
        assert [len(ids) for ids in self.draw(merges, 1.0)] == [len(text) + bool(text) for text in LONG_WORDS]

    def test_the_text_stays(self, merges):
        for seed in range(20):
            ids = merges.tokenize_with_dropout(LONG_WORDS, 0.3, seed)
            assert [text.decode() for text in merges.detokenize(ids.to_tensor()).numpy()] == list(LONG_WORDS)

    def test_more_dropout_more_tokens(self, merges):
        counts = [
            sum(len(ids) for seed in range(30) for ids in self.draw(merges, rate, seed))
            for rate in (0.0, 0.1, 0.3, 0.6, 1.0)
        ]
        assert counts == sorted(set(counts))

    def test_the_seed_decides(self, merges):
        one, other, third = self.draw(merges, 0.3, 1), self.draw(merges, 0.3, 2), self.draw(merges, 0.3, 1)
        assert one == third != other
        with concurrent.futures.ThreadPoolExecutor(1) as pool:  # as in a data pipeline
            assert pool.submit(self.draw, merges, 0.3, 1).result() == one

    def test_errors(self, merges, tokenizer):
        with pytest.raises(ValueError, match=r"rate from 0 to 1, received -0\.1"):
            self.draw(merges, -0.1)
        with pytest.raises(ValueError, match=r"seed from 0 to 2\^32 - 1, received -1"):
            self.draw(merges, 0.1, -1)
        with pytest.raises(ValueError, match=r'not BPE; train it with model_type="bpe"'):
            tokenizer.tokenize_with_dropout(["a"], 0.1, 0)


@keras.saving.register_keras_serializable(package="attention_zoo_tests")
class TwoTokenizers(keras.Model):
    """Holds two tokenizers, or one twice, and serves text to text."""

    def __init__(self, first, second, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = first, second
        self.dense = keras.layers.Dense(1)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {**super().get_config(), "first": serialize(self.first), "second": serialize(self.second)}

    @classmethod
    def from_config(cls, config):
        first, second = map(
            keras.saving.deserialize_keras_object, (config.pop("first"), config.pop("second"))
        )
        return cls(first, second, **config)


@pytest.mark.parametrize("joint", [True, False])
def test_keras_file_carries_the_model(tmp_path, tokenizer, joint):
    other = tokenizer if joint else SentencePieceTokenizer.train(["ganz anderer Text"], 30)
    model = TwoTokenizers(tokenizer, other)
    model(tf.ones((1, 2)))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.first.model == tokenizer.model
    assert loaded.second.model == other.model
    assert (loaded.first is loaded.second) == joint
    assert tokenizer.get_config()["model"] is None
    assert loaded.first.tokenize(TEXTS).to_list() == tokenizer.tokenize(TEXTS).to_list()


def test_saved_model_works_in_a_fresh_process_after_being_moved(tmp_path, tokenizer):
    model = TwoTokenizers(tokenizer, tokenizer)
    model(tf.ones((1, 2)))
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        "serve",
        lambda texts: {
            "text": tokenizer.detokenize(tokenizer.tokenize(texts).to_tensor()),
            "tokens": tokenizer.pieces(tokenizer.tokenize(texts).to_tensor()),
        },
        input_signature=[tf.TensorSpec((None,), tf.string, name="texts")],
    )
    archive.write_out(str(tmp_path / "written"), verbose=False)
    (tmp_path / "written").rename(tmp_path / "moved")
    code = (
        "import json, sys, tensorflow as tf, tensorflow_text\n"
        "serve = tf.saved_model.load(sys.argv[1]).signatures['serving_default']\n"
        "out = serve(texts=tf.constant(json.loads(sys.argv[2])))\n"
        "print(json.dumps([[x.decode() for x in out['text'].numpy()], out['tokens'].shape.as_list()]))\n"
    )
    texts = ["the cat", "", "der  Bär"]
    process = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "moved"), json.dumps(texts)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    text, shape = json.loads(process.stdout)
    assert text == ["the cat", "", "der Bär"]
    assert shape == [3, max(map(len, tokenizer.tokenize(texts).to_list()))]


def test_in_data_pipeline(tokenizer):
    dataset = tf.data.Dataset.from_tensor_slices(TEXTS).batch(4).map(tokenizer.tokenize)
    assert next(iter(dataset)).to_list() == tokenizer.tokenize(TEXTS).to_list()


def test_survives_a_new_random_seed():
    tokenizer = SentencePieceTokenizer.train(TEXTS, vocabulary_size=40)
    before = tokenizer.tokenize(tf.constant(TEXTS)).to_list()
    keras.utils.set_random_seed(1)  # clears TensorFlow's kernels
    assert tokenizer.tokenize(tf.constant(TEXTS)).to_list() == before
