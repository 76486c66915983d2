import io
import json
import os
import re

import numpy as np
import pytest
import tensorflow as tf
from rich.console import Console

from attention_zoo.models.image_encoder import ImageEncoder
from attention_zoo.training import feature_cache
from attention_zoo.training.caption_batching import CaptionBatches
from attention_zoo.training.feature_cache import cached_features
from attention_zoo.training.image_data import CaptionedImages

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 8, 12, 3), "uint8")
CAPTIONS = [[f"{i}", "and more"] for i in range(7)]
PATCHES = {"backbone": "patches", "image_size": (8, 12), "patch_size": 4, "frozen": True}
OWN = {"backbone": "self_attention_cnn", "image_size": 8, "widths": (4, 8), "frozen": True}


def data(images=IMAGES):
    return CaptionedImages(images, CAPTIONS)


def patches(**kwargs):
    return ImageEncoder(**{**PATCHES, **kwargs})


class CountingEncoder(ImageEncoder):
    """Counts the batches that are encoded, which the others do not reveal."""

    fail_at = None

    def __init__(self, **kwargs):
        super().__init__(**{**PATCHES, **kwargs})
        self.sizes = []

    def features(self, images, training=None):
        def count(images):
            self.sizes.append(len(images))
            if len(self.sizes) == self.fail_at:
                raise KeyError("stop")
            return images

        images = tf.ensure_shape(tf.numpy_function(count, [images], images.dtype), images.shape)
        return super().features(images, training=training)


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


def features_in(folder):
    return sorted(folder.glob("*.npy"))


# Values.


def test_features_are_those_of_the_encoder(tmp_path):
    encoder = patches()
    cached = cached_features(encoder, data(), tmp_path / "new" / "folder", batch_size=3)
    squares = IMAGES.reshape(7, 2, 4, 3, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(7, 2, 3, 48)
    np.testing.assert_allclose(cached.images, squares / 127.5 - 1, atol=1e-3)
    assert cached.captions == CAPTIONS
    assert isinstance(cached.images, np.memmap)
    assert not cached.images.flags.writeable
    assert cached.images.dtype == "float16"
    np.testing.assert_allclose(encoder(cached.images)["values"], encoder(IMAGES)["values"], atol=1e-3)


def test_images_of_another_size_are_resized(tmp_path):
    encoder = ImageEncoder(**OWN)
    cached = cached_features(encoder, data(), tmp_path)
    np.testing.assert_allclose(cached.images, encoder.features(IMAGES), atol=5e-3)
    assert cached.images.shape == (7, *encoder.grid, 8)


def test_files_give_the_features_of_their_images(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(7)]
    for path, image in zip(paths, IMAGES, strict=True):
        path.write_bytes(tf.io.encode_png(image).numpy())
    encoder = patches(image_size=(4, 8))
    cached = cached_features(encoder, data(paths), tmp_path / "cache", batch_size=3)
    np.testing.assert_allclose(cached.images, encoder.features(IMAGES), atol=2e-3)


def test_mirrored_images_have_features_of_their_own(tmp_path):
    plain, mirrored = (cached_features(patches(), data(), tmp_path, mirrored=m) for m in (False, True))
    expected = cached_features(patches(), data(np.ascontiguousarray(IMAGES[:, :, ::-1])), tmp_path)
    np.testing.assert_array_equal(mirrored.images, expected.images)
    assert not np.array_equal(plain.images, mirrored.images)
    assert len(features_in(tmp_path)) == 3


def test_batches_take_the_features(tmp_path):
    from attention_zoo.models.whitespace_tokenizer import WhitespaceTokenizer

    cached = cached_features(patches(), data(), tmp_path)
    words = WhitespaceTokenizer([str(i) for i in range(7)])
    batches = CaptionBatches(cached, words, batch_size=7, shuffle=False)
    inputs, labels = next(iter(batches.dataset()))
    np.testing.assert_array_equal(inputs["source"], cached.images[labels[:, 0].numpy() - 4])


# When they are computed.


def test_features_are_computed_once(tmp_path):
    encoder = CountingEncoder()
    first = cached_features(encoder, data(), tmp_path, batch_size=3)
    assert encoder.sizes == [3, 3, 1]
    again = CountingEncoder()
    second = cached_features(again, data(IMAGES.copy()), tmp_path)
    assert again.sizes == []
    np.testing.assert_array_equal(first.images, second.images)
    # The captions are not what is cached.
    other = cached_features(again, CaptionedImages(IMAGES, ["x"] * 7), tmp_path)
    assert (again.sizes, other.captions) == ([], [["x"]] * 7)


@pytest.mark.parametrize(
    ("config", "changed"),
    [
        (PATCHES, {"image_size": (12, 8)}),
        (PATCHES, {"patch_size": 2}),
        (PATCHES, {"dtype": "mixed_bfloat16"}),
        (OWN, {"activation": "tanh"}),
    ],
)
def test_another_backbone_is_another_file(config, changed, tmp_path):
    encoder, before = ImageEncoder(**{**config, **changed}), ImageEncoder(**config)
    cached_features(before, data(), tmp_path)
    encoder.build()
    encoder.set_weights(before.get_weights())
    cached = cached_features(encoder, data(), tmp_path)
    assert len(features_in(tmp_path)) == 2
    np.testing.assert_allclose(cached.images, tf.cast(encoder.features(IMAGES), "float32"), atol=0.02)


def test_other_weights_are_another_file(tmp_path):
    encoder = ImageEncoder(**OWN)
    before = cached_features(encoder, data(), tmp_path).images
    weight = encoder.network.weights[0]
    weight.assign(weight + 0.5)
    after = cached_features(encoder, data(), tmp_path).images
    assert len(features_in(tmp_path)) == 2
    assert np.abs(np.array(after) - before).max() > 0.01


def test_what_follows_the_backbone_does_not_matter(tmp_path):
    cached_features(patches(), data(), tmp_path)
    encoder = patches(units=8, layers=1, num_heads=2, feed_forward_units=4, activation="gelu", dropout=0.5)
    cached_features(encoder, data(), tmp_path)
    assert len(features_in(tmp_path)) == 1


def test_other_images_are_another_file(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "_BLOCK", 2)
    changed = IMAGES.copy()
    changed[5, 0, 0, 0] ^= 1
    for images in (IMAGES, changed, IMAGES[::-1].copy(), IMAGES.reshape(7, 12, 8, 3)):
        cached = cached_features(patches(), data(images), tmp_path)
        expected = patches().features(images)
        np.testing.assert_allclose(cached.images, expected, atol=2e-3)
    assert len(features_in(tmp_path)) == 4
    cached_features(patches(), data()[:5], tmp_path)
    assert len(features_in(tmp_path)) == 5


def test_files_are_known_by_name_size_and_time(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(7)]
    for path in paths:
        path.write_bytes(tf.io.encode_png(IMAGES[0]).numpy())
        os.utime(path, (1000, 1000))
    encoder = CountingEncoder()

    def computed():
        before = len(encoder.sizes)
        cached_features(encoder, data(paths), tmp_path / "cache")
        return len(encoder.sizes) > before

    assert computed()
    assert not computed()
    os.utime(paths[3], (1000, 1001))
    assert computed()
    os.utime(paths[3], (1000, 1000))
    assert not computed()
    paths[3].write_bytes(tf.io.encode_png(IMAGES[1]).numpy() + b"\0")
    os.utime(paths[3], (1000, 1000))
    assert computed()
    paths[4] = paths[4].rename(tmp_path / "other.png")
    assert computed()


# What is on disk.


def test_description_lies_beside_the_features(tmp_path):
    cached_features(patches(), data(), tmp_path)
    (path,) = features_in(tmp_path)
    assert files_in(tmp_path) == [path.with_suffix(".json").name, path.name]
    description = json.loads(path.with_suffix(".json").read_text())
    assert path.stem.removeprefix("features-") in description["fingerprint"]
    assert description["shape"] == [7, 2, 3, 48]
    assert description["encoder"]["backbone"] == "patches"


def test_interruption_leaves_no_features(tmp_path):
    encoder = CountingEncoder()
    encoder.fail_at = 2
    with pytest.raises(tf.errors.OpError, match="stop"):
        cached_features(encoder, data(), tmp_path, batch_size=3)
    assert [name for name in files_in(tmp_path) if not name.endswith(".json")] == []
    encoder.fail_at = None
    cached = cached_features(encoder, data(), tmp_path, batch_size=3)
    np.testing.assert_allclose(cached.images, patches().features(IMAGES), atol=2e-3)


def test_features_get_their_name_when_they_are_whole(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(feature_cache._Display, "advance", lambda *_: seen.extend(features_in(tmp_path)))
    cached_features(patches(), data(), tmp_path, batch_size=3)
    assert (seen, len(features_in(tmp_path))) == ([], 1)


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_damaged_features_are_refused(damage, tmp_path):
    cached_features(patches(), data(), tmp_path)
    (path,) = features_in(tmp_path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-5])
    else:
        np.save(path, np.zeros((7, 2, 3, 48), "float32"))
    with pytest.raises(ValueError, match=r"in .*\.npy, which is damaged; delete it"):
        cached_features(patches(), data(), tmp_path)


# What is shown.


def test_log_has_one_plain_line(tmp_path):
    file = io.StringIO()
    cached_features(patches(), data(), tmp_path, console=Console(file=file, width=20))
    assert re.fullmatch(r"features of 7 images in \d:\d\d, [\d,.]+ images/s\n", file.getvalue())
    file = io.StringIO()
    cached_features(patches(), data(), tmp_path, console=Console(file=file, width=20), mirrored=True)
    assert file.getvalue().startswith("features of 7 mirrored images in ")
    file = io.StringIO()
    cached_features(patches(), data(), tmp_path, console=Console(file=file))
    assert file.getvalue() == ""


def test_terminal_has_a_bar_with_speed_and_time_left(tmp_path):
    file = io.StringIO()
    console = Console(file=file, width=90, force_terminal=True, color_system=None)
    cached_features(patches(), data(), tmp_path, batch_size=3, console=console)
    assert re.search(r"7/7 [\d,.]+ images/s, 0:00 left", file.getvalue())
    assert file.getvalue().rstrip().endswith("images/s")


def test_nothing_is_shown_where_nobody_looks(tmp_path, capsys):
    cached_features(patches(), data(), tmp_path)
    assert capsys.readouterr().out == ""


# Errors.


def test_backbone_that_learns_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected a frozen encoder"):
        cached_features(patches(frozen=False), data(), tmp_path)


def test_features_of_features_are_refused(tmp_path):
    features = cached_features(patches(), data(), tmp_path)
    message = r"image files or uint8 images, received float16 features \(7, 2, 3, 48\)"
    with pytest.raises(ValueError, match=message):
        cached_features(patches(), features, tmp_path)


def test_batch_of_no_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="batch_size of at least 1, received 0"):
        cached_features(patches(), data(), tmp_path, batch_size=0)


def test_damaged_image_is_named(tmp_path):
    paths = [tmp_path / f"{i}.jpg" for i in range(7)]
    for path in paths:
        path.write_bytes(b"<html>not found</html>")
    with pytest.raises(
        ValueError, match=r"^cached_features: .*0\.jpg: expected an image .* leave the image out$"
    ):
        cached_features(patches(), data(paths), tmp_path / "cache")
    assert features_in(tmp_path / "cache") == []


def test_features_too_large_are_refused(tmp_path):
    encoder = ImageEncoder(**OWN)
    encoder.build()
    for weight in encoder.network.weights:
        weight.assign(weight + 1e5)
    with pytest.raises(ValueError, match=r"float16 can hold, of at most 65504, received"):
        cached_features(encoder, data(), tmp_path)
