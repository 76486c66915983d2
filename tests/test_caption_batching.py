import itertools

import numpy as np
import pytest
import tensorflow as tf

from attention_zoo.models.whitespace_tokenizer import WhitespaceTokenizer
from attention_zoo.training.caption_batching import CaptionBatches
from attention_zoo.training.image_data import CaptionedImages


@pytest.fixture(scope="module")
def words():
    return WhitespaceTokenizer([str(i) for i in range(400)])


def numbered_images(count):
    """Image i has i in all pixels, plus 1; none is zero."""
    return np.tile(np.arange(1, count + 1, dtype="uint8")[:, None, None, None], (1, 2, 3, 3))


def numbered_data(count, seed=0):
    """Caption j of image i begins with i and j; there are 1 to 4 of them, of 2 to 20 words."""
    random = np.random.default_rng(seed)
    captions = [
        [f"{i} {j}" + " 9" * random.integers(0, 19) for j in range(random.integers(1, 5))]
        for i in range(count)
    ]
    return CaptionedImages(numbered_images(count), captions)


def collected(batches):
    return [
        (inputs["source"].numpy(), inputs["target"].numpy(), labels.numpy())
        for inputs, labels in batches.dataset()
    ]


def order(batches):
    """(image, caption) of every row, batch by batch."""
    return [[tuple((row[:2] - 4).tolist()) for row in labels] for _, _, labels in collected(batches)]


def rows_of(batches):
    return [row for batch in order(batches) for row in batch if row[0] >= 0]


def test_ids_by_hand(words):
    data = CaptionedImages(numbered_images(3), [["0 1 2", "3"], ["5"], ["6 7", "8"]])
    batches = CaptionBatches(data, words, batch_size=4, shuffle=False)
    ((source, target, labels),) = collected(batches)
    assert source.dtype == "uint8"
    assert source[:, 0, 0, 0].tolist() == [2, 3, 1]  # by length
    assert target.tolist() == [[1, 9, 0, 0], [1, 10, 11, 0], [1, 4, 5, 6]]
    assert labels.tolist() == [[9, 2, 0, 0], [10, 11, 2, 0], [4, 5, 6, 2]]
    assert target.dtype == labels.dtype == "int32"
    assert batches.shapes == [(3, 4)]
    assert batches.padding_share == pytest.approx(3 / 12)


@pytest.mark.parametrize("captions", ["one", "all"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_an_epoch_has_every_image_in_the_announced_shapes(captions, shuffle, words):
    data = numbered_data(150)
    batches = CaptionBatches(data, words, batch_size=8, captions=captions, shuffle=shuffle)
    assert 1 < len(batches.shapes) <= 4
    found, positions, tokens = [], 0, 0
    arrays = collected(batches)
    assert len(arrays) == batches.steps_per_epoch == batches.dataset().cardinality()
    for source, target, labels in arrays:
        assert target.shape == labels.shape
        assert labels.shape in batches.shapes
        positions += labels.size
        tokens += np.count_nonzero(labels)
        for row in range(len(source)):
            if not labels[row].any():  # fills up the batch
                assert not source[row].any() and not target[row].any()
                continue
            image, caption = labels[row, :2] - 4
            found.append((image, caption))
            assert np.all(source[row] == image + 1)
            length = np.count_nonzero(labels[row])
            expected = [int(word) + 4 for word in data.captions[image][caption].split()]
            assert labels[row, :length].tolist() == [*expected, 2]
            assert target[row].tolist() == [1, *labels[row, : length - 1]] + [0] * (labels.shape[1] - length)
    if captions == "one":
        assert sorted(image for image, _ in found) == list(range(150))
    else:
        assert sorted(found) == [(i, j) for i in range(150) for j in range(len(data.captions[i]))]
    assert batches.padding_share == pytest.approx(1 - tokens / positions)


def test_each_caption_is_drawn_as_often(words):
    captions = [[f"{i} 0", f"{i} 1", f"{i} 2"] for i in range(150)] + [["150 3"]]
    batches = CaptionBatches(CaptionedImages(numbered_images(151), captions), words, batch_size=151)
    first, second = (sorted(rows_of(batches)) for _ in range(2))
    counts = np.bincount([caption for _, caption in first])
    assert counts[:3].min() > 25  # 50 expected; less than once in a million draws
    assert counts[3] == 1
    assert first != second


def test_without_shuffling_it_is_the_first_caption_in_an_order_that_never_changes(words):
    batches = CaptionBatches(numbered_data(50), words, batch_size=8, shuffle=False)
    first = order(batches)
    assert {caption for batch in first for image, caption in batch if image >= 0} == {0}
    assert order(batches) == first
    other = CaptionBatches(numbered_data(50), words, batch_size=8, shuffle=False, seed=5)
    assert order(other) == first


@pytest.mark.parametrize("captions", ["one", "all"])
def test_order_depends_on_seed_and_epoch_alone(captions, words):
    options = {"batch_size": 8, "captions": captions}
    first = CaptionBatches(numbered_data(50), words, **options, seed=3)
    epochs = [order(first) for _ in range(3)]
    assert first.epoch.numpy() == 3
    assert epochs[0] != epochs[1] != epochs[2]
    # Other rows share a batch, it is not only the order of the batches that changes.
    assert {frozenset(batch) for batch in epochs[0]} != {frozenset(batch) for batch in epochs[1]}

    resumed = CaptionBatches(numbered_data(50), words, **options, seed=3)
    resumed.epoch.assign(2)
    assert order(resumed) == epochs[2]
    resumed.epoch.assign(0)
    assert order(resumed) == epochs[0]
    other = CaptionBatches(numbered_data(50), words, **options, seed=4)
    assert order(other) != epochs[0]


def test_rows_of_one_length_are_shuffled(words):
    data = CaptionedImages(numbered_images(64), [f"{i} 0" for i in range(64)])
    batches = CaptionBatches(data, words, batch_size=8)
    together = [{frozenset(batch) for batch in order(batches)} for _ in range(2)]
    assert not together[0] & together[1]


def test_batches_have_rows_of_similar_length_in_random_order(words):
    batches = CaptionBatches(numbered_data(150), words, batch_size=8, captions="all", seed=1)
    lengths = [np.count_nonzero(labels, axis=1) for _, _, labels in collected(batches)]
    ranges = sorted((rows.min(), rows.max()) for rows in lengths)
    assert all(longest <= shortest for (_, longest), (shortest, _) in itertools.pairwise(ranges))
    longest = [rows.max() for rows in lengths]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True)


def test_few_rows_fill_up_batches(words):
    data = CaptionedImages(numbered_images(9), ["1 2", "3"] * 4 + ["4"])
    batches = CaptionBatches(data, words, batch_size=8)
    assert batches.shapes == [(5, 3)]  # 5 + 4, not 8 + 1
    assert batches.steps_per_epoch == 2
    zero = [not row.any() for source, _, _ in collected(batches) for row in source]
    assert sum(zero) == 1


def test_widths_are_few_and_worth_their_compilation(words):
    def widths(count, batch_size, lengths, **options):
        captions = [" ".join(["5"] * length) for length in np.resize(lengths, count)]
        data = CaptionedImages(np.ones((count, 1, 1, 3), "uint8"), captions)
        return [width for _, width in CaptionBatches(data, words, batch_size=batch_size, **options).shapes]

    assert widths(400, 8, [4]) == [5]
    many = widths(400, 8, np.arange(1, 40))
    assert 2 <= len(many) <= 4
    assert many == sorted(many) and many[-1] == 40
    assert len(widths(400, 8, np.arange(1, 40), max_widths=2)) == 2
    assert widths(400, 400, np.arange(1, 40)) == [40]  # one batch: nothing to save


def test_longer_captions_are_dropped_and_counted(words, caplog):
    data = CaptionedImages(numbered_images(3), [["0 0 0 0", "0 1"], ["1 0 0 0"], ["2 0 0"]])
    batches = CaptionBatches(data, words, batch_size=4, captions="all", max_caption_length=4)
    assert batches.dropped == 2  # the END counts
    assert "dropped 2 of 4 captions" in caplog.text
    assert sorted(rows_of(batches)) == [(0, 1), (2, 0)]
    assert [source[:, 0, 0, 0].tolist() for source, _, _ in collected(batches)] == [[1, 3]]
    one = CaptionBatches(data, words, batch_size=4, max_caption_length=4, shuffle=False)
    assert sorted(rows_of(one)) == [(0, 1), (2, 0)]
    assert CaptionBatches(data, words, batch_size=4, max_caption_length=5).dropped == 0


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_features_keep_their_type(dtype, words, tmp_path):
    features = np.random.default_rng(0).normal(size=(5, 2, 2, 8)).astype(dtype)
    np.save(tmp_path / "features.npy", features)
    data = CaptionedImages(np.load(tmp_path / "features.npy", mmap_mode="r"), [f"{i} 0" for i in range(5)])
    batches = CaptionBatches(data, words, batch_size=3)
    assert batches.dataset().element_spec[0]["source"] == tf.TensorSpec((3, 2, 2, 8), dtype)
    seen = 0
    for source, _, labels in collected(batches):
        for row, image in zip(source, labels[:, 0] - 4, strict=True):
            np.testing.assert_array_equal(row, features[image] if image >= 0 else np.zeros((2, 2, 8)))
            seen += image >= 0
    assert seen == 5


# --- Mirrored images ---


def slopes(count):
    """uint8 (N, 2, 4, 3) that rise to the right, of other heights."""
    image = np.array([0, 10, 20, 30], "uint8")[:, np.newaxis]  # (4, 1)
    return np.stack([np.broadcast_to(image + 40 * i + 1, (2, 4, 3)) for i in range(count)])


def falls(source):
    """Which of the images of a batch fall to the right: mirrored; zero ones do neither."""
    return source[:, 0, 0, 0].astype(float) > source[:, 0, -1, 0]


def test_half_of_the_images_are_mirrored_in_an_order_that_seed_and_epoch_decide(words):
    data = CaptionedImages(slopes(5), [[f"{i} 0", f"{i} 1", f"{i} 2"] for i in range(5)])
    runs = {}
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        batches = CaptionBatches(data, words, batch_size=4, captions="all", mirror=True, seed=seed)
        epochs = [collected(batches) for _ in range(40)]
        runs[name] = [np.concatenate([falls(source) for source, _, _ in epoch]) for epoch in epochs]
        for source, _, labels in epochs[0]:
            for row, image in zip(source, labels[:, 0] - 4, strict=True):
                expected = slopes(5)[image] if image >= 0 else np.zeros((2, 4, 3))
                assert np.array_equal(row, expected) or np.array_equal(row, expected[:, ::-1])
    np.testing.assert_array_equal(runs["one"], runs["again"])
    batches = CaptionBatches(data, words, batch_size=4, captions="all", mirror=True, seed=1)
    batches.epoch.assign(7)  # as a run that is resumed there
    resumed = np.concatenate([falls(source) for source, _, _ in collected(batches)])
    np.testing.assert_array_equal(resumed, runs["one"][7])
    assert not np.array_equal(runs["one"], runs["other"])
    assert not np.array_equal(runs["one"][0], runs["one"][1])
    assert np.sum(runs["one"]) / (40 * 15) == pytest.approx(0.5, abs=0.08)  # four standard deviations


def test_mirroring_changes_nothing_else(words):
    data = CaptionedImages(slopes(5), [[f"{i} 0", f"{i} 1 2"] for i in range(5)])
    plain, mirrored = (CaptionBatches(data, words, batch_size=2, mirror=m, seed=3) for m in (False, True))
    for one, other in zip(collected(plain), collected(mirrored), strict=True):
        np.testing.assert_array_equal(one[2], other[2])
        np.testing.assert_array_equal(one[0].max(axis=2), other[0].max(axis=2))


def test_features_are_those_of_the_mirrored_images(words):
    features = np.random.default_rng(0).normal(size=(2, 5, 2, 2, 8)).astype("float16")
    data = CaptionedImages(features[0], [[f"{i} 0", f"{i} 1"] for i in range(5)])
    batches = CaptionBatches(data, words, batch_size=5, captions="all", mirror=features[1])
    seen = set()
    for source, _, labels in (batch for _ in range(3) for batch in collected(batches)):
        for row, image in zip(source, labels[:, 0] - 4, strict=True):
            (which,) = [side for side in (0, 1) if np.array_equal(row, features[side, image])]
            seen.add((which, int(image)))
    assert len(seen) == 10  # each image from both sides, in three epochs of two captions


def test_files_are_mirrored_like_arrays(words, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path, image in zip(paths, slopes(5), strict=True):
        path.write_bytes(tf.io.encode_png(image).numpy())
    arrays = CaptionedImages(slopes(5), [f"{i} 0" for i in range(5)])
    files = CaptionBatches(arrays.with_images(paths), words, batch_size=5, image_size=(2, 4), mirror=True)
    ((seen, _, _),) = collected(files)
    ((expected, _, _),) = collected(CaptionBatches(arrays, words, batch_size=5, mirror=True))
    np.testing.assert_allclose(seen, expected, atol=1e-3)
    assert 0 < falls(seen).sum() < 5
    assert set(files.dataset().element_spec[0]) == {"source", "target"}


@pytest.mark.parametrize(
    ("images", "arguments", "message"),
    [
        (slopes(2), {"mirror": True, "shuffle": False}, r"mirror with shuffle=True, received shuffle=False"),
        (slopes(2), {"mirror": slopes(2)}, r"True or False, received an array uint8 \(2, 2, 4, 3\)"),
        (slopes(2), {"mirror": "left"}, r"mirror as True or False, received 'left'"),
        (np.zeros((2, 2, 2, 8), "float16"), {"mirror": True}, r"features of the mirrored .* received True; "),
        (
            np.zeros((2, 2, 2, 8), "float16"),
            {"mirror": np.zeros((1, 2, 2, 8), "float16")},
            r"an array float16 \(2, 2, 2, 8\), received an array float16 \(1, 2, 2, 8\)",
        ),
    ],
)
def test_what_cannot_be_mirrored(words, images, arguments, message):
    data = CaptionedImages(images, ["0", "1"])
    with pytest.raises(ValueError, match=message):
        CaptionBatches(data, words, batch_size=2, **arguments)


# --- Files ---


@pytest.fixture
def files(tmp_path):
    """Five images of different sizes, each of one colour."""
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for i, path in enumerate(paths):
        image = np.full((4 + i, 9 - i, 3), 50 * i + 20, "uint8")
        path.write_bytes(tf.io.encode_png(image).numpy())
    return CaptionedImages(paths, [[f"{i} 0", f"{i} 1 2 3"] for i in range(5)])


@pytest.mark.parametrize("image_size", [3, (2, 6)])
def test_files_are_read_and_resized(image_size, files, words):
    batches = CaptionBatches(files, words, batch_size=3, image_size=image_size, seed=1)
    size = (3, 3) if image_size == 3 else image_size
    assert batches.dataset().element_spec[0]["source"] == tf.TensorSpec((3, *size, 3), tf.float32)
    assert batches.dataset().cardinality() == 2
    arrays = CaptionBatches(files.with_images(numbered_images(5)), words, batch_size=3, seed=1)
    for _ in range(2):  # the second epoch as well
        seen = []
        for (source, target, labels), expected in zip(collected(batches), collected(arrays), strict=True):
            np.testing.assert_array_equal(labels, expected[2])
            np.testing.assert_array_equal(target, expected[1])
            for row, image in zip(source, labels[:, 0] - 4, strict=True):
                np.testing.assert_allclose(row, 50 * image + 20 if image >= 0 else 0, atol=1e-3)
                seen.append(image)
        assert sorted(seen) == [-4, 0, 1, 2, 3, 4]
    assert batches.epoch.numpy() == 2


def test_damaged_file_is_named(files, words):
    files.images[3].write_bytes(b"<html>not found</html>")
    batches = CaptionBatches(files, words, batch_size=3, image_size=3)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"3\.png: expected an image"):
        collected(batches)


def test_files_need_an_image_size(files, words):
    with pytest.raises(ValueError, match="expected an image_size to resize image files to"):
        CaptionBatches(files, words, batch_size=3)


def test_summary_is_one_line_with_the_shapes(words):
    data = CaptionedImages(numbered_images(3), [["0 1 2", "3"], ["5"], ["6 7", "8 8 8 8 8"]])
    options = {"batch_size": 4, "shuffle": False, "max_caption_length": 5}
    assert CaptionBatches(data, words, **options).summary() == (
        "3 images with one of 4 captions in 1 batches of 3x4; 25% padding; 1 captions dropped as too long"
    )
    assert CaptionBatches(data, words, **options, captions="all").summary() == (
        "3 images with each of 4 captions in 1 batches of 4x4; 31% padding; 1 captions dropped as too long"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "expected batch_size of at least 1, received 0"),
        ({"max_widths": 0}, "expected max_widths of at least 1, received 0"),
        ({"seed": -1}, "expected a seed of at least 0, received -1"),
        ({"captions": "two"}, 'expected captions as "one" or "all", received \'two\''),
        ({"max_caption_length": 2}, "at most 2 tokens, END included, received 1 .* shortest has 3"),
        ({"image_size": 0}, "image_size as one or two integers of at least 1, received 0"),
        ({"image_size": (2, 3, 4)}, r"image_size as one or two integers .* received \(2, 3, 4\)"),
    ],
)
def test_errors(words, arguments, message):
    data = CaptionedImages(numbered_images(1), ["0 1"])
    with pytest.raises(ValueError, match=message):
        CaptionBatches(data, words, **{"batch_size": 2, **arguments})
