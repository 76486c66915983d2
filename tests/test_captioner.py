import io
import unittest.mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import attention_zoo as az
from attention_zoo.layers import AdditiveAttention, LuongAttention, MultiHeadAttention, SpatialAttention
from attention_zoo.models import (
    Captioner,
    ImageEncoder,
    RNNDecoder,
    TransformerDecoder,
    Translator,
    WhitespaceTokenizer,
    serving,
)

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (20, 40, 230)}
WORDS = WhitespaceTokenizer([*COLOURS, "left", "of"])
SIZE = (16, 32)
ENCODER = {"image_size": SIZE, "patch_size": 8, "units": 16, "layers": 1, "num_heads": 2}
ENCODER |= {"feed_forward_units": 16, "dropout": 0.0}
DECODER = {"units": 16, "layers": 1, "num_heads": 2, "feed_forward_units": 16, "dropout": 0.0}


def scenes():
    """Every pair of colours, the left half and the right half of an image, and what to say about it."""
    images, texts = [], []
    for left in COLOURS:
        for right in COLOURS:
            image = np.zeros((*SIZE, 3), "uint8")
            image[:, : SIZE[1] // 2], image[:, SIZE[1] // 2 :] = COLOURS[left], COLOURS[right]
            images.append(image)
            texts.append(left if left == right else f"{left} left of {right}")
    return np.stack(images), texts


IMAGES, TEXTS = scenes()


def batch(texts=TEXTS, images=IMAGES):
    ids = WORDS.tokenize(tf.constant(texts)).to_list()
    target, labels = np.zeros((2, len(ids), 5), "int32")
    for row, tokens in enumerate(ids):
        target[row, : len(tokens) + 1] = [1, *tokens]
        labels[row, : len(tokens) + 1] = [*tokens, 2]
    return {"source": images, "target": target}, labels


def composed(decoder, **kwargs):
    """A captioner over patches, of which this decoder is made."""
    return Captioner(ImageEncoder("patches", SIZE, patch_size=8, units=8), decoder, WORDS, **kwargs)


@pytest.fixture(scope="module")
def model():
    """Learned the nine images by heart."""
    keras.utils.set_random_seed(0)
    model = Captioner.from_preset("vit_captioner", WORDS, ENCODER, DECODER, max_caption_length=6)
    # A rate that stays so high leaves it now and then with what it had learned before, at the last step too.
    rate = keras.optimizers.schedules.CosineDecay(0.01, decay_steps=200)
    model.compile(optimizer=keras.optimizers.Adam(rate), jit_compile=False)
    x, y = batch()
    model.fit(x, y, batch_size=9, epochs=200, verbose=0)
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"{number}.png" for number in range(len(IMAGES))]
    for path, image in zip(paths, IMAGES, strict=True):
        path.write_bytes(tf.io.encode_png(image).numpy())
    return paths


def texts(captions):
    return [caption.text for caption in captions]


# === Captions ===


def test_says_what_it_learned(model):
    captions = model.caption(IMAGES, beams=2)
    assert texts(captions) == TEXTS
    assert captions[1].tokens == ["red", "left", "of", "green", "</s>"]
    assert all(caption.score < 0 for caption in captions)
    assert captions[0].attention is None
    assert captions[0].alternatives == []
    np.testing.assert_array_equal(captions[3].image, IMAGES[3])
    assert model.caption([], beams=2) == []


def test_takes_images_in_every_form(model, files):
    (expected,) = model.caption(IMAGES[1:2], beams=2)
    as_bytes = files[1].read_bytes()
    for image in (IMAGES[1], files[1], str(files[1]), as_bytes, tf.constant(IMAGES[1]), IMAGES[1] / 1.0):
        caption = model.caption(image, beams=2)
        assert caption.text == expected.text
        assert caption.score == pytest.approx(expected.score, abs=1e-5)
        np.testing.assert_array_equal(caption.image, IMAGES[1])
    assert texts(model.caption([IMAGES[0], files[1], as_bytes], beams=2)) == [TEXTS[0], TEXTS[1], TEXTS[1]]


def test_takes_images_of_any_size_together(model):
    large = np.repeat(np.repeat(IMAGES[1], 3, axis=0), 4, axis=1)
    assert texts(model.caption([large, IMAGES[2]], beams=2)) == [TEXTS[1], TEXTS[2]]


def test_grey_and_transparent_files_are_read_as_rgb(model, tmp_path):
    grey = np.full((8, 8, 1), 200, "uint8")
    transparent = np.concatenate([IMAGES[1], np.full((*SIZE, 1), 255, "uint8")], axis=-1)
    for image, expected in ((grey, np.repeat(grey, 3, axis=-1)), (transparent, IMAGES[1])):
        caption = model.caption(tf.io.encode_png(image).numpy(), beams=2)
        np.testing.assert_array_equal(caption.image, expected)


def test_takes_unusual_files(model):
    """Animated, of four inks, of one pixel, and large."""
    frames = [Image.fromarray(image) for image in IMAGES[:2]]
    for kind, options in (("GIF", {"save_all": True, "append_images": frames[1:]}), ("JPEG", {})):
        file = io.BytesIO()
        (frames[0] if options else frames[0].convert("CMYK")).save(file, kind, **options)
        caption = model.caption(file.getvalue(), beams=2)
        assert caption.text == TEXTS[0]
        assert caption.image.shape == (*SIZE, 3)
    assert model.caption(IMAGES[0][:1, :1], beams=2).text == TEXTS[0]
    large = np.broadcast_to(IMAGES[8][:1, :1], (8000, 4000, 3))
    assert model.caption(large, beams=2).text == TEXTS[8]


def test_a_damaged_file_is_named(model, files, tmp_path):
    for name, content in (("cut.png", files[0].read_bytes()[:40]), ("empty.jpg", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}, which cannot be decoded"):
            model.caption([files[0], tmp_path / name])


def test_takes_features(model):
    features = model.encoder.features(IMAGES).numpy()
    captions = model.caption(features.astype("float16"), beams=2)
    assert texts(captions) == TEXTS
    assert captions[0].image is None
    assert model.caption(features[4], beams=2).text == TEXTS[4]


def test_does_not_depend_on_the_batch(model):
    many = model.caption(IMAGES, beams=2, return_attention=True)
    few = model.caption(IMAGES, beams=2, return_attention=True, batch_size=4)  # the last one alone
    assert texts(few) == texts(many)
    for one, other in zip(few, many, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-5)
        np.testing.assert_allclose(one.attention, other.attention, atol=1e-5)


def test_attention_lies_on_the_grid(model):
    best = model.caption(IMAGES[1], beams=3, n_best=2, return_attention=True)
    assert model.encoder.grid == (2, 4)
    for caption in (best, *best.alternatives):
        assert caption.attention.shape == (len(caption.tokens), 2, 4)
        np.testing.assert_allclose(caption.attention.sum((1, 2)), 1, atol=1e-5)
        layers, heads = 1, 2
        assert caption.heads["cross"].shape == (layers, heads, len(caption.tokens), 8)
        assert caption.heads["encoder"].shape == (layers, heads, 8, 8)
        mean = caption.heads["cross"][-1].mean(0).reshape(-1, 2, 4)
        np.testing.assert_allclose(caption.attention, mean, atol=1e-5)
    assert len(best.alternatives) == 1
    assert best.alternatives[0].score <= best.score


def test_prefix_and_lengths(model):
    prefixes = ["blue", "green left"]
    for caption, prefix in zip(model.caption(IMAGES[:2], beams=2, prefix=prefixes), prefixes, strict=True):
        assert caption.text.startswith(prefix)
    assert len(model.caption(IMAGES[1], beams=2, max_length=2).tokens) <= 3
    longer = model.caption(IMAGES[0], beams=2, min_length=9)  # more than the model's own maximum
    assert len(longer.tokens) >= 10


def test_what_is_drawn_depends_on_the_image_and_the_seed_alone(model):
    def drawn(seed, batch_size):
        return model.caption(IMAGES, sample=True, temperature=3.0, n_best=3, seed=seed, batch_size=batch_size)

    everything = [[c.text, *texts(c.alternatives)] for c in drawn(1, 32)]
    assert everything == [[c.text, *texts(c.alternatives)] for c in drawn(1, 4)]
    assert everything != [[c.text, *texts(c.alternatives)] for c in drawn(2, 32)]


def test_score_is_that_of_the_search(model, files):
    found = model.caption(IMAGES, beams=2, return_attention=True)
    scored = model.score(files, TEXTS, return_attention=True)
    for one, other in zip(scored, found, strict=True):
        assert (one.text, one.tokens) == (other.text, other.tokens)
        assert one.score == pytest.approx(other.score, abs=1e-4)
        np.testing.assert_allclose(one.attention, other.attention, atol=1e-4)
    alone = model.score(IMAGES[1], TEXTS[1], length_penalty=0.0)
    assert alone.score == pytest.approx(alone.log_probabilities.sum(), abs=1e-5)
    assert model.score(IMAGES[1], TEXTS[2]).score < alone.score


# === Training ===


def test_penalty_is_that_of_the_paper():
    """Summed over captions, sum of -log p + lambda sum_s (1 - sum_t a_ts)^2, divided by all tokens."""
    keras.utils.set_random_seed(1)
    decoder = RNNDecoder(WORDS.vocabulary_size, 8, 8, attention=SpatialAttention(8), cell="lstm")
    model = composed(decoder, doubly_stochastic=0.7)
    model.build()
    model.compile(optimizer="sgd", jit_compile=False)
    x, y = batch()
    y[4:6] = 0  # two images without a caption
    x["target"][4:6] = 0
    _, attention = model(x, return_attention=True)
    real = x["target"] != 0
    seen = (attention.numpy() * real[..., None]).sum(1)  # (B, S)
    penalty = 0.7 * ((1 - seen) ** 2).sum(1)[real.any(1)].sum() / real.sum()

    def penalty_of_training():
        return model._evaluate(x, y, None, training=True)["loss"] - model._evaluate(x, y, None)["loss"]

    with tf.GradientTape() as tape:
        found = penalty_of_training()
    assert penalty > 0.1
    assert float(found) == pytest.approx(penalty, rel=1e-4)
    weights = decoder.attention.trainable_weights
    for weight, gradient in zip(weights, tape.gradient(found, weights), strict=True):
        weight.assign_sub(gradient)
    assert float(penalty_of_training()) < 0.99 * penalty


@pytest.mark.slow
def test_penalty_draws_attention_to_the_whole_image():
    def unseen(strength):
        keras.utils.set_random_seed(2)
        attention = SpatialAttention(8, gate=False)
        model = composed(
            RNNDecoder(WORDS.vocabulary_size, 8, 8, attention=attention), doubly_stochastic=strength
        )
        model.compile(optimizer=keras.optimizers.Adam(0.01), jit_compile=False)
        x, y = batch()
        model.fit(x, y, batch_size=9, epochs=40, verbose=0)
        _, weights = model(x, return_attention=True)
        long = np.sum(y != 0, axis=1) == 5
        return np.mean((5 / 8 - weights.numpy()[long].sum(1)) ** 2)

    assert unseen(3.0) < 0.5 * unseen(0.0)


def test_learns_through_the_images_once_they_are_not_frozen():
    """Fine-tuning: gradients reach the first convolution after `frozen` is changed and the model compiled."""
    encoder = {"image_size": SIZE, "widths": (4, 8), "frozen": True}
    decoder = {"units": 8, "embedding_dim": 8, "attention": {"units": 8}}
    model = Captioner.from_preset("self_attention_cnn_captioner", WORDS, encoder, decoder)
    x, y = batch()

    def change():
        """How much an epoch changes the first convolution and the embedding."""
        weights = model.encoder.network.convolutions[0].kernel, model.decoder.embedding.embeddings
        before = [weight.numpy() for weight in weights]
        model.compile(run_eagerly=True)  # it is a single step
        assert np.isfinite(model.fit(x, y, batch_size=9, verbose=0).history["loss"]).all()
        return [np.abs(weight.numpy() - old).max() for weight, old in zip(weights, before, strict=True)]

    kernel, embedding = change()
    assert kernel == 0 < embedding
    model.encoder.frozen = False
    kernel, embedding = change()
    assert min(kernel, embedding) > 0


# === Compositions ===


@pytest.mark.parametrize("query_state", ["previous", "current"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: None,
        lambda: AdditiveAttention(8),
        lambda: LuongAttention("general"),
        lambda: SpatialAttention(8),
        lambda: MultiHeadAttention(2, 4),
    ],
    ids=["none", "additive", "luong", "spatial", "heads"],
)
def test_every_attention_looks_at_the_grid(make, query_state):
    decoder = RNNDecoder(WORDS.vocabulary_size, 8, 8, attention=make(), query_state=query_state, cell="lstm")
    model = composed(decoder)
    x, _ = batch()
    logits, attention = model(x, return_attention=True)
    assert logits.shape == (9, 5, WORDS.vocabulary_size)
    if make() is None:
        assert attention is None
    else:
        assert attention.shape[-1] == 8
        state = decoder.initial_state(decoder.prepare(model.encoder(IMAGES)))
        step, _, weights = decoder.step(x["target"][:, :1], state, decoder.prepare(model.encoder(IMAGES)))
        np.testing.assert_allclose(step[:, 0], logits[:, 0], atol=1e-5)
        np.testing.assert_allclose(weights[:, 0], attention[:, 0], atol=1e-5)


PRESETS = [name for name, preset in az.models.presets.PRESETS.items() if preset.task == "captioning"]
CNN = {"pretrained": None, "image_size": 32}
SMALL = {
    "show_and_tell": (CNN, {}),
    "show_attend_and_tell": (CNN, {}),
    "transformer_captioner": (CNN, {}),
    "vit_captioner": ({"image_size": 32, "layers": 1}, {}),
    "self_attention_cnn_captioner": ({"image_size": 32}, {}),
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build(name):
    encoder, decoder = SMALL[name]
    model = Captioner.from_preset(name, WORDS, encoder=encoder, decoder=decoder)
    assert model.built
    preset = az.models.presets.PRESETS[name]
    assert model.doubly_stochastic == preset.model.get("doubly_stochastic", 0.0)
    assert model.decoder.has_attention == (name != "show_and_tell")
    height, width = model.encoder.grid
    features = np.zeros((2, height, width, model.encoder.feature_dim), "float32")
    logits = model({"source": features, "target": np.ones((2, 3), "int32")})
    assert logits.shape == (2, 3, WORDS.vocabulary_size)


def test_presets_know_their_task():
    with pytest.raises(ValueError, match=r"'show_and_tell', which is for captioning: use Captioner\.from"):
        Translator.from_preset("show_and_tell", WORDS, WORDS)
    with pytest.raises(ValueError, match=r"'bahdanau', which is for translation: use Translator\.from"):
        Captioner.from_preset("bahdanau", WORDS)
    with pytest.raises(ValueError, match=r"Did you mean 'vit_captioner'\?"):
        Captioner.from_preset("vit_captionr", WORDS)


# === Saving and serving ===


def test_comes_back_from_a_file(model, tmp_path):
    model.save(tmp_path / "model.keras")
    loaded = az.load(tmp_path / "model.keras")
    assert isinstance(loaded, Captioner)
    assert (loaded.max_caption_length, loaded.doubly_stochastic) == (6, 0.0)
    assert texts(loaded.caption(IMAGES, beams=2)) == TEXTS
    x, y = batch()
    loaded.fit(x, y, batch_size=9, epochs=1, verbose=0)  # it was compiled, and still is


def test_serves_images_and_files(model, files, tmp_path):
    with unittest.mock.patch.object(model, "decode", wraps=model.decode) as decode:
        model.export(tmp_path / "model", beams=2)
    assert decode.call_count == 2  # traced once for images and files, and once for the heads
    served = tf.saved_model.load(tmp_path / "model").signatures
    expected = model.caption(IMAGES, beams=2, return_attention=True)
    encoded = tf.constant([path.read_bytes() for path in files])
    for outputs in (
        served["serving_default"](images=tf.constant(IMAGES)),
        served["encoded"](encoded=encoded),
        served["heads"](images=tf.constant(IMAGES)),
    ):
        assert [text.decode() for text in outputs["text"].numpy()] == TEXTS
        np.testing.assert_allclose(outputs["score"], [best.score for best in expected], atol=1e-4)
        for row, best in enumerate(expected):
            count = len(best.tokens)
            assert [piece.decode() for piece in outputs["tokens"].numpy()[row, :count]] == best.tokens
            np.testing.assert_allclose(outputs["attention"][row, :count], best.attention, atol=1e-4)
    for part in ("cross", "self", "encoder"):  # of the last signature
        for row, best in enumerate(expected):
            rows, columns = best.heads[part].shape[2:]
            found = outputs[f"{part}_heads"][row, ..., :rows, :columns]
            np.testing.assert_allclose(found, best.heads[part], atol=1e-4)
    larger = served["serving_default"](images=tf.constant(np.repeat(IMAGES, 2, axis=1)))
    assert [text.decode() for text in larger["text"].numpy()] == TEXTS
    assert isinstance(az.load(tmp_path / "model"), Captioner)


def test_serves_no_more_tokens_than_there_are_positions():
    """The decoder's table is shorter than the model's longest caption."""
    keras.utils.set_random_seed(4)
    model = composed(TransformerDecoder(20, **DECODER, positions="learned", max_positions=6))
    model.tokenizer = WhitespaceTokenizer([f"w{number}" for number in range(16)])
    expected = texts(model.caption(IMAGES, beams=1))
    found = serving.captions(model, {})(tf.constant(IMAGES))  # what `export` writes
    assert [text.decode() for text in found["text"].numpy()] == expected
    assert found["tokens"].shape[1] <= 6  # the end token included


def test_serves_without_attention(tmp_path):
    model = composed(RNNDecoder(WORDS.vocabulary_size, 8, 8))
    model.export(tmp_path / "model", beams=1, product_dtype="bfloat16")
    served = tf.saved_model.load(tmp_path / "model").signatures
    assert "heads" not in served
    scores = served["serving_default"](images=tf.constant(IMAGES))["score"]
    assert set(served["serving_default"].structured_outputs) == {"text", "score", "tokens"}
    rounded = [caption.score for caption in model.caption(IMAGES, beams=1, product_dtype="bfloat16")]
    np.testing.assert_allclose(scores, rounded, atol=1e-4)
    exact = [caption.score for caption in model.caption(IMAGES, beams=1)]
    assert 1e-4 < np.abs(np.subtract(scores, exact)).max() < 0.05


# === Errors ===


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ("nothing.jpg", FileNotFoundError, "expected an image file, found none at nothing.jpg"),
        (b"no image", ValueError, "received 8 bytes, which cannot be decoded"),
        (7, TypeError, "expected an image .* received int"),
        (np.zeros((4, 4), "uint8"), TypeError, r"received the shape \(4, 4\)"),
        (np.zeros((4, 4, 1), "uint8"), ValueError, r"an image of numbers of shape \(h, w, 3\)"),
        (np.zeros((4, 4, 4), "uint8"), ValueError, r"an image of numbers of shape \(h, w, 3\)"),
        (IMAGES / 255, ValueError, "multiply them by 255"),
        (np.full((4, 4, 3), np.nan), ValueError, "finite values"),
        (IMAGES.astype("int32") * 2, ValueError, "from 0 to 255, received values from 60 to 440"),
        ([IMAGES[0], None], ValueError, "received shape .* of object"),
        ([IMAGES[0], np.zeros((2, 4, 192))], ValueError, "received both in one batch"),
    ],
)
def test_refuses_what_is_no_image(model, images, error, message):
    with pytest.raises(error, match=f"caption: .*{message}"):
        model.caption(images)


def test_refuses_wrong_arguments(model, tmp_path):
    with pytest.raises(ValueError, match="expected a caption for each image, received 9 images and 1"):
        model.score(IMAGES, ["red"])
    with pytest.raises(ValueError, match=r"one per input \(9\), received 2"):
        model.caption(IMAGES, prefix=["red", "blue"])
    with pytest.raises(ValueError, match="n_best: expected an integer from 1 to 2, received 3"):
        model.caption(IMAGES, beams=2, n_best=3)
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(ValueError, match=r"text\.jpg, which cannot be decoded"):
        model.caption(tmp_path / "text.jpg")
    without = composed(RNNDecoder(WORDS.vocabulary_size, 8, 8))
    with pytest.raises(ValueError, match="Captioner: expected a model with attention for return_attention"):
        without.caption(IMAGES, return_attention=True)
    with pytest.raises(ValueError, match=r"expected a decoder with attention with doubly_stochastic=1\.0"):
        composed(RNNDecoder(WORDS.vocabulary_size, 8, 8), doubly_stochastic=1)
    with pytest.raises(ValueError, match="max_caption_length: expected an integer of at least 1"):
        composed(RNNDecoder(WORDS.vocabulary_size, 8, 8), max_caption_length=0)
    other = Captioner(model.encoder, TransformerDecoder(20, **DECODER), WORDS)
    with pytest.raises(ValueError, match="expected a tokenizer with the 20 ids of the TransformerDecoder"):
        other.caption(IMAGES)
