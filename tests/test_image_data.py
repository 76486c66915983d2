import gzip
import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from attention_zoo.training.image_data import CaptionedImages, read_image

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), "uint8")
CAPTIONS = [["a cat", "it sits"], ["a dog"], ["two, three", 'a "star"', "x | y"]]


@pytest.fixture
def folder(tmp_path):
    """A folder with the images a.jpg, b.jpg and c.jpg; what is in them does not matter here."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.jpg").write_bytes(b"")
    return folder


def names(data):
    return [path.name for path in data.images]


# Images and captions.


def test_length_and_indexing():
    data = CaptionedImages(IMAGES, CAPTIONS)
    assert len(data) == 3
    image, captions = data[-1]
    np.testing.assert_array_equal(image, IMAGES[2])
    assert captions == CAPTIONS[2]
    assert [captions for _, captions in data] == CAPTIONS
    part = data[1:]
    assert isinstance(part, CaptionedImages)
    assert part.captions == CAPTIONS[1:]
    with pytest.raises(IndexError):
        data[3]


def test_arrays_are_never_copied():
    data = CaptionedImages(IMAGES, CAPTIONS)
    assert data.images is IMAGES
    assert np.shares_memory(data[1:].images, IMAGES)
    features = np.zeros((3, 2, 2, 8), "float16")
    other = data.with_images(features)
    assert other.images is features
    assert other.captions == CAPTIONS


def test_memory_map_stays_one(tmp_path):
    np.save(tmp_path / "features.npy", np.ones((3, 2, 2, 8), "float16"))
    features = np.load(tmp_path / "features.npy", mmap_mode="r")
    data = CaptionedImages(features, CAPTIONS)
    assert data.images is features
    assert isinstance(data[1:].images, np.memmap)
    message = r"each image of a memory map, received none for 1 of 3, the first being \[1\]"
    with pytest.raises(ValueError, match=message):
        CaptionedImages(features, ["a", " ", "b"])


def test_files_become_paths(folder):
    data = CaptionedImages([str(folder / "a.jpg"), folder / "b.jpg"], ["x", "y"])
    assert data.images == [folder / "a.jpg", folder / "b.jpg"]
    assert all(isinstance(path, pathlib.Path) for path in data.images)
    assert data[1] == (folder / "b.jpg", ["y"])
    assert data[:1].images == [folder / "a.jpg"]


def test_plain_strings_are_one_caption_each():
    assert CaptionedImages(IMAGES, ["a", "b", "c"]).captions == [["a"], ["b"], ["c"]]


def test_blank_captions_and_images_without_one_are_left_out(caplog):
    data = CaptionedImages(IMAGES, [[" a cat\n", "", "  "], [], ("b",)])
    assert data.captions == [["a cat"], ["b"]]
    np.testing.assert_array_equal(data.images, IMAGES[[0, 2]])
    assert data.dropped == 1
    assert "left out 1 of 3 images without a caption" in caplog.text
    assert CaptionedImages(IMAGES, CAPTIONS).dropped == 0


def test_files_of_images_that_are_left_out_may_be_missing(folder):
    data = CaptionedImages([folder / "a.jpg", folder / "missing.jpg"], ["x", ""])
    assert (data.images, data.dropped) == ([folder / "a.jpg"], 1)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES[0], r"expected uint8 images .* received uint8 \(4, 5, 3\); add an axis"),
        (IMAGES[..., :2], r"received uint8 \(3, 4, 5, 2\)"),
        (IMAGES.astype("int32"), r"received int32 \(3, 4, 5, 3\)"),
        (IMAGES / 255, r"features .* of other than 3 channels, received float64 \(3, 4, 5, 3\)"),
        (np.zeros((3, 4, 8), "float32"), r"received float32 \(3, 4, 8\)"),
        (np.array(["a.jpg"] * 3), r"received <U5 \(3,\)"),
        ("a.jpg", "an array or a list of paths, received the single path 'a.jpg'"),
        (pathlib.Path("a.jpg"), "received the single path"),
        (list(IMAGES), "expected a list of paths, received ndarray as image 0; .* np.stack"),
        ({"a.jpg", "b.jpg", "c.jpg"}, "as a NumPy array or a list of paths, received set"),
        (IMAGES[:2], "received 2 images and captions of 3"),
    ],
)
def test_wrong_images_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        CaptionedImages(images, CAPTIONS)


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ("abc", "list of lists of strings, or a list of strings, received 'abc'"),
        (None, "received None"),
        ([["a"], "b", ["c"]], "list of captions for each image, received 'b' for image 1"),
        ([["a"], b"b", ["c"]], "list of captions for each image, received b'b' for image 1"),
        ([["a"], 5, ["c"]], "list of captions for each image, received 5 for image 1"),
        ([["a"], ["b", 5], ["c"]], "captions as strings, received 5 for image 1"),
        ([["a"], ["b"]], "received 3 images and captions of 2"),
        ([[], [" "], []], "received 3 images, none with a caption"),
    ],
)
def test_wrong_captions_are_refused(captions, message):
    with pytest.raises(ValueError, match=message):
        CaptionedImages(IMAGES, captions)


def test_missing_files_are_named(folder):
    paths = [folder / f"{name}.jpg" for name in "abcdefgh"]
    message = r"expected 8 image files, found 5 of them missing: .*d.jpg, .*e.jpg, .*f.jpg and 2 more"
    with pytest.raises(FileNotFoundError, match=message):
        CaptionedImages(paths, ["x"] * 8)


# Files of captions.

LAYOUTS = {
    "numbered": (
        "b.jpg#0\ta dog\n"
        "a.jpg#0\ta cat\na.jpg#1\tit sits \n"
        'c.jpg#0\ttwo, three\nc.jpg#1\ta "star"\nc.jpg#2\tx | y\n'
    ),
    "csv": (
        "image,caption\nb.jpg,a dog\na.jpg,a cat\na.jpg, it sits\n"
        'c.jpg,"two, three"\nc.jpg,"a ""star"""\nc.jpg,x | y\n'
    ),
    "tsv": (
        "image\tcaption\nb.jpg\ta dog\na.jpg\ta cat\na.jpg\tit sits\n\n"
        'c.jpg\ttwo, three\nc.jpg\ta "star"\nc.jpg\tx | y'
    ),
    "bars": (
        "image_name| comment_number| comment\r\n"
        "b.jpg| 0| a dog\r\na.jpg| 0| a cat\r\na.jpg| 1   it sits\r\n"
        'c.jpg| 0| two, three\r\nc.jpg| 1| a "star"\r\nc.jpg| 2| x | y\r\n'
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same(layout, folder, tmp_path):
    path = tmp_path / "captions"
    path.write_bytes(LAYOUTS[layout].encode())
    data = CaptionedImages.from_files(folder, str(path))
    assert data.images == [folder / "b.jpg", folder / "a.jpg", folder / "c.jpg"]
    assert data.captions == [CAPTIONS[1], CAPTIONS[0], CAPTIONS[2]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_blank_captions_are_no_error(layout, folder, tmp_path):
    row = {"numbered": "a.jpg#7\t", "csv": "a.jpg,", "tsv": "a.jpg\t", "bars": "a.jpg| 7|"}[layout]
    (tmp_path / "captions").write_text(LAYOUTS[layout].replace("\r", "") + "\n" + row + "\n")
    data = CaptionedImages.from_files(folder, tmp_path / "captions")
    assert dict(zip(names(data), data.captions, strict=True))["a.jpg"] == CAPTIONS[0]


def test_gzipped_captions(folder, tmp_path):
    (tmp_path / "captions.gz").write_bytes(gzip.compress(LAYOUTS["csv"].encode()))
    assert len(CaptionedImages.from_files(folder, tmp_path / "captions.gz")) == 3


@pytest.mark.parametrize("as_file", [False, True])
def test_names_choose_and_order(as_file, folder, tmp_path):
    (tmp_path / "captions").write_text(LAYOUTS["tsv"])
    wanted = ["c.jpg", "b.jpg"]
    if as_file:
        wanted = tmp_path / "train.txt"
        wanted.write_text("c.jpg \nb.jpg\n\n")
    (folder / "a.jpg").unlink()  # not wanted, not missed
    data = CaptionedImages.from_files(folder, tmp_path / "captions", wanted)
    assert names(data) == ["c.jpg", "b.jpg"]
    assert data.captions == [CAPTIONS[2], CAPTIONS[1]]


def test_names_without_captions_are_refused(folder, tmp_path):
    (tmp_path / "captions").write_text(LAYOUTS["tsv"])
    (tmp_path / "train.txt").write_text("c.jpg\nz.jpg\n")
    message = "train.txt: expected names .* in .*captions, received 1 of 2 that have none: z.jpg"
    with pytest.raises(ValueError, match=message):
        CaptionedImages.from_files(folder, tmp_path / "captions", tmp_path / "train.txt")
    with pytest.raises(ValueError, match=r"names: .* received more than once a.jpg"):
        CaptionedImages.from_files(folder, tmp_path / "captions", ["a.jpg", "b.jpg", "a.jpg"])


def test_listed_images_without_a_file_are_refused(folder, tmp_path):
    (tmp_path / "captions").write_text(LAYOUTS["tsv"])
    (folder / "a.jpg").unlink()
    message = "captions: .* expected 3 image files, found 1 of them missing: .*a.jpg"
    with pytest.raises(FileNotFoundError, match=message):
        CaptionedImages.from_files(folder, tmp_path / "captions")
    with pytest.raises(FileNotFoundError, match="nowhere: expected a folder of images, found none"):
        CaptionedImages.from_files(tmp_path / "nowhere", tmp_path / "captions")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a dog\na cat\n", "received the first line 'a dog'"),
        ("a.jpg\ta dog\n", r"received the first line 'a.jpg\\ta dog'"),
        ("a.jpg#0\ta dog\na cat\n", "name#number<TAB>caption, received in line 2: 'a cat'"),
        ("image,caption\na.jpg,a dog, a cat\n", r"in line 2: 'a.jpg,a dog, a cat' \(3 fields\)"),
        ('image,caption\na.jpg,"a dog\nb.jpg,b\n', "received in line 3"),
        ("image_name| comment_number| comment\na.jpg| a dog\n", "in line 2: 'a.jpg| a dog'"),
        ("image\tcaption\n", "received 0 images, none with a caption"),
        ("", "expected text, received an empty file"),
    ],
)
def test_other_files_are_refused(content, message, folder, tmp_path):
    (tmp_path / "captions").write_text(content)
    with pytest.raises(ValueError, match="captions: .*" + message.replace("|", r"\|")):
        CaptionedImages.from_files(folder, tmp_path / "captions")


# COCO.

COCO = {
    "info": {},
    "images": [
        {"id": 7, "file_name": "c.jpg", "width": 5},
        {"id": 3, "file_name": "a.jpg"},
        {"id": 4, "file_name": "b.jpg"},
    ],
    "annotations": [
        {"image_id": 3, "id": 1, "caption": "a cat"},
        {"image_id": 7, "id": 2, "caption": "A star.\n"},
        {"image_id": 3, "id": 3, "caption": "it sits"},
    ],
}


def test_coco(folder, tmp_path):
    (tmp_path / "captions.json").write_text(json.dumps(COCO))
    data = CaptionedImages.from_coco(folder, str(tmp_path / "captions.json"))
    assert names(data) == ["c.jpg", "a.jpg"]
    assert data.captions == [["A star."], ["a cat", "it sits"]]
    assert data.dropped == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,caption\n", "expected JSON, received something else"),
        (b"\xff\xfe\xff", "expected JSON, received something else"),
        ("[1, 2]", "received other JSON"),
        ({"images": COCO["images"]}, "received other JSON .*'annotations'"),
        (COCO | {"annotations": [{"image_id": 3, "bbox": []}]}, "received other JSON .*'caption'"),
        (COCO | {"annotations": [{"image_id": 9, "caption": "x"}]}, r"received other JSON \(KeyError: 9\)"),
        (COCO | {"annotations": [{"image_id": 3, "caption": 5}]}, "captions as strings, received 5"),
        (COCO | {"annotations": []}, "none with a caption"),
    ],
)
def test_other_json_is_refused(content, message, folder, tmp_path):
    content = json.dumps(content) if isinstance(content, dict) else content
    content = content.encode() if isinstance(content, str) else content
    (tmp_path / "captions.json").write_bytes(content)
    with pytest.raises(ValueError, match="captions.json: .*" + message):
        CaptionedImages.from_coco(folder, tmp_path / "captions.json")


def test_coco_without_its_files(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing.json: expected a JSON file of captions"):
        CaptionedImages.from_coco(folder, tmp_path / "missing.json")
    (tmp_path / "captions.json").write_text(json.dumps(COCO))
    (folder / "a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"captions.json: .* 2 image files, found 1 .* missing"):
        CaptionedImages.from_coco(folder, tmp_path / "captions.json")


# Reading.


def read(path, size=(4, 5)):
    dataset = tf.data.Dataset.from_tensors(str(path)).map(lambda path: read_image(path, size))
    assert dataset.element_spec == tf.TensorSpec((*size, 3), tf.float32)
    return next(iter(dataset)).numpy()


def test_image_is_read_in_its_range(tmp_path):
    (tmp_path / "a.png").write_bytes(tf.io.encode_png(IMAGES[0]).numpy())
    np.testing.assert_array_equal(read(tmp_path / "a.png"), IMAGES[0])
    grey = np.full((8, 2, 1), 77, "uint8")
    (tmp_path / "grey.jpg").write_bytes(tf.io.encode_jpeg(grey).numpy())
    np.testing.assert_allclose(read(tmp_path / "grey.jpg", (3, 2)), np.full((3, 2, 3), 77), atol=2)


def test_no_path_is_a_zero_image():
    np.testing.assert_array_equal(read(""), np.zeros((4, 5, 3)))


@pytest.mark.parametrize("content", [None, b"", b"<html>not found</html>", "cut"])
def test_damaged_file_is_named(content, tmp_path):
    path = tmp_path / "photo.jpg"
    if content is not None:
        whole = tf.io.encode_jpeg(np.tile(IMAGES[0], (20, 20, 1))).numpy()
        path.write_bytes(whole[: len(whole) // 2] if content == "cut" else content)
    message = r"ValueError: .*photo.jpg: expected an image .* that can be decoded, received [^{\[]*; replace"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        read(path)
