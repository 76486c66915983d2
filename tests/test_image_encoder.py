import functools
import math
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from contracts import random
from keras import ops
from references import array, dense, softmax
from transformer_references import encoder_block, normalize, sinusoid

from attention_zoo.models import image_backbones
from attention_zoo.models.image_encoder import ImageEncoder
from attention_zoo.models.resizing import resize
from attention_zoo.models.self_attention_cnn import SelfAttentionCNN

DATA = pathlib.Path(__file__).parents[2] / "shared/data"
MOBILENET = DATA / "cnn/mobilenet_v2_1.0_224_imagenet_no_top.weights.h5"
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), "uint8")
KINDS = {
    "cnn": {"backbone": "TinyNet", "image_size": (16, 24)},
    "own": {"backbone": "self_attention_cnn", "image_size": (16, 24), "widths": (4, 8)},
    "patches": {"backbone": "patches", "image_size": (16, 24), "patch_size": 4},
}
SHAPES = {"cnn": (4, 6, 5), "own": (4, 6, 8), "patches": (4, 6, 48)}
BLOCKS = {"units": 8, "positions": True, "layers": 2, "num_heads": 2, "feed_forward_units": 12}

kinds = pytest.mark.parametrize("kind", KINDS)


# A network as keras.applications has them, but small.


def TinyNet(include_top, weights, input_shape):
    if min(input_shape[:2]) < 4:
        raise ValueError("Input size must be at least 4x4")
    x = inputs = keras.Input(input_shape)
    for width in (4, 5):
        x = keras.layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False)(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.Activation("tanh")(x)
    network = keras.Model(inputs, x)
    if weights == "imagenet":
        Internet.downloads += 1
        if Internet.network is None:
            raise Exception("URL fetch failure on https://storage.example")
        network.set_weights(Internet.network.get_weights())
    return network


def preprocess_input(x):
    return x[..., ::-1] / 100.0


class Internet:
    downloads = 0
    network = None


@pytest.fixture(autouse=True)
def tiny_net(monkeypatch):
    monkeypatch.setattr(keras.applications, "TinyNet", TinyNet, raising=False)
    monkeypatch.setattr(Internet, "network", None)
    monkeypatch.setattr(Internet, "downloads", 0)


def draw_weights(layer):
    for index, weight in enumerate(layer.weights):
        value = random(*weight.shape, seed=7 + index) / 2
        weight.assign(np.abs(value) + 0.5 if "variance" in weight.name else value)
    return layer


def built(kind="patches", **kwargs):
    encoder = ImageEncoder(**{**KINDS[kind], **kwargs})
    encoder.build()
    return draw_weights(encoder)


def trained_network():
    return draw_weights(TinyNet(False, None, (16, 24, 3)))


def file_of(network, folder):
    path = folder / "trained.weights.h5"
    network.save_weights(path)
    return path


# The memory.


@kinds
def test_memory_is_that_of_every_encoder(kind):
    encoder = built(kind)
    memory = encoder(IMAGES)
    height, width, channels = SHAPES[kind]
    assert set(memory) == {"values", "mask", "summary"}
    assert memory["values"].shape == (2, height * width, channels)
    assert memory["mask"].dtype == "bool"
    np.testing.assert_array_equal(memory["mask"], np.ones((2, height * width), bool))
    np.testing.assert_allclose(memory["summary"], np.mean(memory["values"], axis=1), atol=1e-5)
    assert (encoder.grid, encoder.feature_dim, encoder.output_dim) == ((height, width), channels, channels)
    assert (encoder.has_attention, encoder.max_positions) == (False, None)


def test_grid_is_known_before_anything_is_encoded():
    assert ImageEncoder("self_attention_cnn", image_size=64).grid == (8, 8)
    assert ImageEncoder("patches", image_size=(64, 32)).grid == (4, 2)
    assert ImageEncoder("TinyNet", image_size=(10, 12)).grid == (3, 3)


def test_patches_are_squares_of_pixels_row_by_row():
    values = built()(IMAGES)["values"]
    for position in range(24):
        row, column = divmod(position, 6)
        square = IMAGES[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].astype("float64")
        np.testing.assert_allclose(values[:, position], square.reshape(2, 48) / 127.5 - 1, atol=1e-5)


@pytest.mark.parametrize("normalize_first", [False, True])
def test_vision_transformer_equals_numpy(normalize_first):
    encoder = built(**BLOCKS, normalize_first=normalize_first, activation="gelu")
    memory = encoder(IMAGES, return_attention=True)
    patches = array(encoder.features(IMAGES)).reshape(2, 24, 48)
    places = [sinusoid(position // 6, 4) + sinusoid(position % 6, 4) for position in range(24)]
    for row in range(2):
        x, attention = dense(encoder.projection, patches[row]) + np.array(places), []
        for block in encoder.blocks:
            x, weights = encoder_block(block, x)
            attention.append(weights)
        if normalize_first:
            x = normalize(encoder.output_norm, x)
        np.testing.assert_allclose(memory["values"][row], x, atol=2e-4)
        np.testing.assert_allclose(memory["summary"][row], x.mean(axis=0), atol=2e-4)
        np.testing.assert_allclose(memory["attention"][row], attention, atol=2e-4)


def test_asking_for_attention_changes_nothing():
    encoder = built(**BLOCKS)
    assert encoder.has_attention
    memory, asked = encoder(IMAGES), encoder(IMAGES, return_attention=True)
    assert asked["attention"].shape == (2, 2, 2, 24, 24)
    assert asked["attention"].dtype == "float32"
    for name, values in memory.items():
        np.testing.assert_allclose(asked[name], values, atol=1e-5)


@pytest.mark.parametrize("options", [{"dropout": 0.5}, {"attention_dropout": 0.5, **BLOCKS}])
def test_dropout_is_active_in_training_only(options):
    encoder = built(**options)
    plain = built(**{**options, "dropout": 0.0, "attention_dropout": 0.0})
    expected = plain(IMAGES)["values"]
    np.testing.assert_array_equal(encoder(IMAGES, training=False)["values"], expected)
    assert np.abs(encoder(IMAGES, training=True)["values"] - expected).max() > 1e-2


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@kinds
def test_half_precision_is_close(kind, policy):
    options = {"units": 8, "positions": True, "layers": 1, "num_heads": 2, "feed_forward_units": 12}
    before = keras.config.dtype_policy()
    memory, half = built(kind, **options)(IMAGES), built(kind, **options, dtype=policy)(IMAGES)
    assert keras.config.dtype_policy() == before
    for name in ("values", "summary"):
        assert half[name].dtype == policy.removeprefix("mixed_")
        np.testing.assert_allclose(ops.cast(half[name], "float32"), memory[name], atol=0.15)


# Images.


@kinds
def test_bytes_equal_floats(kind):
    encoder = built(kind)
    np.testing.assert_array_equal(encoder(IMAGES)["values"], encoder(IMAGES.astype("float32"))["values"])


@pytest.mark.parametrize("size", [(16, 24), (8, 9), (16, 50), (37, 24), (1, 1), (70, 53)])
def test_resizing_equals_tensorflow(size):
    images = random(2, *size, 3) * 255
    expected = tf.image.resize(images, (16, 24), antialias=True)
    np.testing.assert_allclose(resize(images, (16, 24)), expected, atol=1e-2)  # of 255


@kinds
def test_images_of_any_size_are_resized(kind):
    encoder = built(kind)
    images = np.random.default_rng(1).integers(0, 256, (2, 33, 20, 3), "uint8")
    resized = tf.image.resize(images, (16, 24), antialias=True)
    np.testing.assert_allclose(encoder(images)["values"], encoder(resized)["values"], atol=1e-3)


def test_compiled_equals_eager():
    """With XLA, which cannot compile TensorFlow's own antialiased resizing."""
    encoder = built(**{**BLOCKS, "layers": 1})
    images = tf.constant(IMAGES[:, :11])
    expected = encoder(images)
    compiled = tf.function(encoder, jit_compile=True)(images)
    for name, values in expected.items():
        np.testing.assert_allclose(compiled[name], values, atol=1e-4)


@kinds
def test_one_graph_reads_images_of_all_sizes(kind):
    encoder = built(kind, **BLOCKS)
    graph = tf.function(encoder, input_signature=[tf.TensorSpec((None, None, None, 3), "uint8")])
    assert graph.get_concrete_function().output_shapes["values"].as_list() == [None, 24, 8]
    for images in (IMAGES, IMAGES[:1, :9, :7]):
        np.testing.assert_allclose(graph(images)["values"], encoder(images)["values"], atol=1e-4)


@pytest.mark.parametrize(
    ("name", "module"),
    [("VGG16", "vgg16"), ("ResNet50", "resnet50"), ("MobileNetV2", "mobilenet_v2"),
     ("DenseNet121", "densenet"), ("EfficientNetB0", "efficientnet")],
)  # fmt: skip
def test_preprocessing_is_that_of_each_network(name, module):
    expected = getattr(keras.applications, module).preprocess_input(IMAGES.astype("float32"))
    np.testing.assert_allclose(
        image_backbones.preprocess(name, tf.constant(IMAGES, "float32")), expected, atol=1e-4
    )


def test_every_network_has_its_preprocessing():
    assert {"MobileNetV2", "ResNet50", "EfficientNetB0", "VGG16"} <= set(image_backbones.names())
    for name in image_backbones.names():
        assert image_backbones.preprocess(name, tf.zeros((1, 2, 2, 3))).shape == (1, 2, 2, 3)


# Features.


@kinds
def test_features_equal_their_images(kind):
    encoder = built(kind, **BLOCKS, frozen=True)
    features = encoder.features(IMAGES)
    assert features.shape == (2, *SHAPES[kind])
    memory, cached = encoder(IMAGES), encoder(np.array(features))
    for name, values in memory.items():
        np.testing.assert_allclose(cached[name], values, atol=1e-5)


def test_features_may_be_kept_in_half_precision():
    encoder = built("cnn", units=8)
    values = encoder(np.array(encoder.features(IMAGES), "float16"))["values"]
    assert values.dtype == "float32"
    np.testing.assert_allclose(values, encoder(IMAGES)["values"], atol=2e-2)


# Networks of keras.applications.


def test_network_runs_on_preprocessed_images():
    encoder = built("cnn")
    expected = encoder.network(preprocess_input(IMAGES.astype("float32")), training=False)
    np.testing.assert_allclose(encoder.features(IMAGES), expected, atol=1e-5)


def statistics(encoder):
    return [np.array(weight) for weight in encoder.weights if "moving" in weight.name]


@pytest.mark.parametrize(
    ("frozen", "pretrained", "moves"), [(True, False, False), (False, True, False), (False, False, True)]
)
def test_statistics_move_only_where_a_network_learns_from_scratch(frozen, pretrained, moves, tmp_path):
    source = file_of(trained_network(), tmp_path) if pretrained else None
    encoder = ImageEncoder(**KINDS["cnn"], frozen=frozen, pretrained=source)
    expected = encoder(IMAGES)["values"]
    before = statistics(encoder)
    values = encoder(IMAGES, training=True)["values"]
    changes = [np.abs(x - y).max() for x, y in zip(before, statistics(encoder), strict=True)]
    assert all((change > 0) == moves for change in changes)
    assert (np.abs(values - expected).max() > 1e-3) == moves


def gradients(encoder, images=IMAGES):
    with tf.GradientTape() as tape:
        memory = encoder(images, training=True)
        loss = ops.sum(ops.sin(memory["values"])) + ops.sum(memory["summary"] ** 2)
    return tape.gradient(loss, encoder.trainable_weights)


@kinds
def test_gradient_reaches_every_weight(kind):
    encoder = built(kind, **BLOCKS)
    for weight, gradient in zip(encoder.trainable_weights, gradients(encoder), strict=True):
        assert np.all(np.isfinite(gradient)), weight.path
        # A key's bias adds the same to all scores of a query.
        assert np.any(np.array(gradient) != 0) or "key_bias" in weight.path, weight.path


@pytest.mark.parametrize("kind", ["cnn", "own"])
def test_frozen_network_has_no_trainable_weights(kind):
    encoder = built(kind, frozen=True, **BLOCKS)
    learns, stays = encoder.trainable_weights, encoder.network.weights
    assert not {id(weight) for weight in learns} & {id(weight) for weight in stays}
    assert len(learns) == 2 + 16 * BLOCKS["layers"]
    assert all(gradient is not None for gradient in gradients(encoder))


@pytest.mark.parametrize("kind", ["cnn", "own"])
def test_frozen_network_can_be_released_later(kind):
    encoder = built(kind, frozen=True)
    assert not encoder.trainable_weights
    encoder.frozen = False
    assert encoder.get_config()["frozen"] is False
    assert encoder.trainable_weights
    assert all(gradient is not None for gradient in gradients(encoder))


def test_frozen_network_stays_frozen_when_all_else_is_released():
    encoder = built("cnn", frozen=True, units=8)
    encoder.trainable = False
    assert not encoder.trainable_weights
    encoder.trainable = True
    assert [weight.path for weight in encoder.trainable_weights] == [
        weight.path for weight in encoder.projection.weights
    ]
    encoder.trainable = encoder.frozen = False
    assert not any(weight.trainable for weight in encoder.weights)


def test_weights_come_from_a_file(tmp_path):
    network = trained_network()
    encoder = ImageEncoder(**KINDS["cnn"], pretrained=file_of(network, tmp_path))
    expected = network(preprocess_input(IMAGES.astype("float32")))
    np.testing.assert_allclose(encoder.features(IMAGES), expected, atol=1e-5)


def test_weights_come_from_imagenet(monkeypatch):
    monkeypatch.setattr(Internet, "network", trained_network())
    encoder = ImageEncoder(**KINDS["cnn"], pretrained="imagenet")
    expected = Internet.network(preprocess_input(IMAGES.astype("float32")))
    np.testing.assert_allclose(encoder.features(IMAGES), expected, atol=1e-5)


def test_published_efficientnet_equals_keras(monkeypatch, tmp_path):
    """keras.applications makes another network of it if it downloads the weights."""
    make, size = keras.applications.EfficientNetB0, {"include_top": False, "input_shape": (32, 32, 3)}
    network = make(**size, weights=None)
    (normalization,) = (x for x in network.layers if isinstance(x, keras.layers.Normalization))
    normalization.adapt_mean.assign([0.485, 0.456, 0.406])
    normalization.adapt_variance.assign([0.229**2, 0.224**2, 0.225**2])
    path = file_of(network, tmp_path)
    monkeypatch.setattr("keras.src.utils.file_utils.get_file", lambda *args, **kwargs: str(path))
    published = make(**size, weights="imagenet")
    image = np.random.default_rng(2).integers(0, 256, (1, 32, 32, 3), "uint8")
    expected = published(image)
    scale = np.abs(expected).max()
    assert np.abs(network(image) - expected).max() > 1e-2 * scale

    @functools.wraps(make)
    def made_before(weights, **kwargs):  # it takes long
        return network if weights is None else published

    monkeypatch.setattr(keras.applications, "EfficientNetB0", made_before)
    encoder = ImageEncoder("EfficientNetB0", 32, pretrained="imagenet")
    np.testing.assert_allclose(encoder.features(image), expected, atol=1e-4 * scale)
    encoder = ImageEncoder("EfficientNetB0", 32, pretrained=path)
    np.testing.assert_allclose(encoder.features(image), expected, atol=1e-4 * scale)


@pytest.mark.skipif(not MOBILENET.exists(), reason="the trained MobileNetV2 is not here")
def test_trained_mobilenet_equals_keras():
    encoder = ImageEncoder("MobileNetV2", (32, 64), pretrained=MOBILENET, frozen=True)
    network = keras.applications.MobileNetV2((32, 64, 3), include_top=False, weights=None)
    network.load_weights(MOBILENET)
    image = np.random.default_rng(2).integers(0, 256, (1, 32, 64, 3), "uint8")
    expected = network(keras.applications.mobilenet_v2.preprocess_input(image.astype("float32")))
    assert np.abs(expected).max() > 0.1
    assert encoder.grid == (1, 2)
    np.testing.assert_allclose(encoder.features(image), expected, atol=1e-4)


# The small network.


def convolve(layer, x, stride):
    """(h, w, C), padded with zeros as much before as after, or with one more after, in NumPy."""
    kernel = array(layer.kernel)
    sizes = [-(-n // stride) for n in x.shape[:2]]
    padding = [max((size - 1) * stride + 3 - n, 0) for size, n in zip(sizes, x.shape[:2], strict=True)]
    x = np.pad(x, [*((n // 2, n - n // 2) for n in padding), (0, 0)])
    y = np.zeros((*sizes, kernel.shape[-1]))
    for row in range(sizes[0]):
        for column in range(sizes[1]):
            window = x[row * stride : row * stride + 3, column * stride : column * stride + 3]
            y[row, column] = np.einsum("hwc,hwcd->d", window, kernel)
    return y


def normalize_groups(layer, x):
    y, size = np.zeros_like(x), x.shape[-1] // math.gcd(8, x.shape[-1])
    for start in range(0, x.shape[-1], size):
        group = x[..., start : start + size]
        y[..., start : start + size] = (group - group.mean()) / np.sqrt(group.var() + layer.epsilon)
    return y * array(layer.gamma) + array(layer.beta)


def attend(layer, x):
    flat = x.reshape(-1, x.shape[-1])
    query, key, value = (flat @ array(getattr(layer, f"{name}_kernel")) for name in ("query", "key", "value"))
    average = np.array([softmax(key @ q) @ value for q in query])
    return x + array(layer.gamma) * (average @ array(layer.output_kernel)).reshape(x.shape)


@pytest.mark.parametrize("attention_stages", [0, 1, 2])
def test_small_network_equals_numpy(attention_stages):
    network = SelfAttentionCNN((4, 12), attention_stages, activation="relu")
    network.build((None, None, None, 3))
    draw_weights(network)
    assert len(network.attentions) == attention_stages
    x = random(5, 8, 3)
    y = network(x[None])
    for stage in (0, 1):
        for index, stride in ((2 * stage, 2), (2 * stage + 1, 1)):
            x = convolve(network.convolutions[index], x, stride)
            x = np.maximum(normalize_groups(network.norms[index], x), 0)
        if stage >= 2 - attention_stages:
            x = attend(network.attentions[stage - 2 + attention_stages], x)
    assert x.shape == (2, 2, 12)
    assert network.compute_output_shape((None, 5, 8, 3)) == (None, 2, 2, 12)
    np.testing.assert_allclose(y[0], x, atol=1e-3)


def test_small_network_treats_each_image_alone():
    """In training too, which batch normalization would not."""
    encoder = built("own")
    both, alone = encoder(IMAGES, training=True)["values"], encoder(IMAGES[1:], training=True)["values"]
    np.testing.assert_allclose(both[1:], alone, atol=1e-4)


# Saving.


def test_config_round_trip(tmp_path):
    arguments = {
        "backbone": "TinyNet",
        "image_size": (16, 24),
        "pretrained": str(file_of(trained_network(), tmp_path)),
        "frozen": True,
        "units": 8,
        "positions": True,
        "layers": 2,
        "num_heads": 4,
        "feed_forward_units": 5,
        "activation": keras.activations.silu,
        "normalize_first": True,
        "dropout": 0.25,
        "attention_dropout": 0.15,
        "widths": (4, 12),
        "attention_stages": 1,
        "patch_size": 8,
    }
    encoder = ImageEncoder(**arguments, name="viewer", dtype="mixed_bfloat16")
    copy = ImageEncoder.from_config(encoder.get_config())
    assert copy.get_config() == encoder.get_config()
    assert {name: getattr(copy, name) for name in arguments} == arguments


@kinds
def test_file_round_trip(kind, tmp_path):
    images = keras.Input((None, None, 3), dtype="uint8")
    model = keras.Model(images, built(kind, **BLOCKS)(images, return_attention=True))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for x, y in zip(tf.nest.flatten(loaded(IMAGES)), tf.nest.flatten(model(IMAGES)), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("from_file", [False, True])
def test_saved_model_needs_no_weights_from_elsewhere(from_file, monkeypatch, tmp_path):
    monkeypatch.setattr(Internet, "network", trained_network())
    path = file_of(Internet.network, tmp_path)
    images = keras.Input((None, None, 3), dtype="uint8")
    encoder = ImageEncoder(**KINDS["cnn"], pretrained=path if from_file else "imagenet", frozen=True)
    model = keras.Model(images, encoder(images)["values"])
    model.save(tmp_path / "model.keras")
    path.unlink()
    monkeypatch.setattr(Internet, "network", None)
    downloads = Internet.downloads
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert Internet.downloads == downloads
    np.testing.assert_array_equal(loaded(IMAGES), model(IMAGES))
    assert not loaded.trainable_weights


# Errors.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "AlexNet"}, "expected a backbone among self_attention_cnn, patches .* 'AlexNet'"),
        ({"backbone": "TinyNet", "image_size": 3}, "image_size that TinyNet takes, .* at least 4x4"),
        ({"image_size": 0}, "image_size as one or two integers of at least 1, received \\(0, 0\\)"),
        ({"image_size": (4, 4, 3)}, "image_size as one or two integers"),
        ({"image_size": (16, 22)}, "patch_size that divides both sides .* 4 and image_size \\(16, 22\\)"),
        ({"patch_size": 1}, "patch_size of at least 2, received 1"),
        ({"units": 0}, "units of at least 1, received 0"),
        ({"layers": -1}, "layers of at least 0, received -1"),
        ({"num_heads": 0}, "num_heads of at least 1, received 0"),
        ({"feed_forward_units": 0}, "feed_forward_units of at least 1, received 0"),
        ({"units": 6, "positions": True}, "multiple of 4 with positions=True, received 6"),
        ({"units": 6, "layers": 1, "num_heads": 4}, "num_heads to divide the width, received 4 and 6"),
        ({"pretrained": "imagenet"}, "no pretrained weights for 'patches', received 'imagenet'"),
        ({"backbone": "self_attention_cnn", "widths": ()}, "expected widths of at least 1"),
        ({"backbone": "self_attention_cnn", "widths": (4, 3)}, "other than 3 channels"),
        ({"backbone": "self_attention_cnn", "attention_stages": 4}, "attention_stages from 0 to 3"),
        ({"dropout": 1.5}, "between 0 and 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ImageEncoder(**{**KINDS["patches"], **arguments})


def test_missing_file_of_weights_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"found no file at .*nowhere"):
        ImageEncoder(**KINDS["cnn"], pretrained=tmp_path / "nowhere.weights.h5")


def test_file_of_another_network_is_refused(tmp_path):
    inputs = keras.Input((16, 24, 3))
    path = file_of(keras.Model(inputs, keras.layers.Conv2D(7, 3)(inputs)), tmp_path)
    with pytest.raises(ValueError, match=r"file with the weights of TinyNet .* received .*trained"):
        ImageEncoder(**KINDS["cnn"], pretrained=path)


@pytest.mark.parametrize("name", ["page.weights.h5", "page.h5", "page.html"])
def test_file_of_another_kind_is_refused(name, tmp_path):
    (tmp_path / name).write_text("<html>not found</html>")
    with pytest.raises(ValueError, match="file with the weights of TinyNet"):
        ImageEncoder(**KINDS["cnn"], pretrained=tmp_path / name)


def test_imagenet_without_network_says_to_pass_a_file():
    with pytest.raises(OSError, match=r"URL fetch failure .* pass a file of them as `pretrained`"):
        ImageEncoder(**KINDS["cnn"], pretrained="imagenet")


@pytest.mark.parametrize(
    "shape", [(16, 24, 3), (2, 16, 24), (2, 16, 24, 1), (2, 16, 24, 4), (2, 6, 4, 5), (2, 4, 6, 6)]
)
def test_what_is_no_image_and_no_features_is_refused(shape):
    encoder = built("cnn")
    with pytest.raises(ValueError, match=r"RGB images .* or their features \(B, 4, 6, 5\), received"):
        encoder(np.zeros(shape, "float32"))


def test_features_of_features_are_refused():
    encoder = built("cnn")
    with pytest.raises(ValueError, match="expected RGB images"):
        encoder.features(np.zeros((2, 4, 6, 5)))


def test_images_that_are_no_numbers_are_refused():
    with pytest.raises(TypeError, match="expected images as uint8 or float, received string"):
        built("cnn").features(["photo.jpg"])


def test_attention_without_blocks_is_refused():
    with pytest.raises(ValueError, match="expected layers of at least 1 with return_attention=True"):
        built()(IMAGES, return_attention=True)
