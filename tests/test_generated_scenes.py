import itertools
import subprocess
import sys

import numpy as np
import pytest

from attention_zoo.training.generated_scenes import (
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    box_share,
    captions,
    scene,
    training_and_held_out,
)


@pytest.fixture(scope="module")
def scenes():
    training, held_out = training_and_held_out(500, 300, seed=4)
    return training + held_out


def seen(image, box):
    """Size, colour, shape and box of what the pixels in and right around a box show."""
    grey = background(image)
    rows, columns = (slice(box[side] - 1, box[side + 2] + 1) for side in (0, 1))
    down, right = np.nonzero(foreground(image)[rows, columns])
    top, left = down.min() + rows.start, right.min() + columns.start
    bottom, end = down.max() + rows.start + 1, right.max() + columns.start + 1
    middle = image[(top + bottom) // 2 - 1 :, (left + end) // 2 - 1 :][:3, :3].mean(axis=(0, 1))
    colour = min(COLOURS, key=lambda name: np.linalg.norm(middle - COLOURS[name]))
    # How far every pixel is on the way from the background to the colour of the object.
    way = grey - middle
    filled = (grey - image[box[0] : box[2], box[1] : box[3]]) @ way / (way @ way)
    areas = {"square": 1, "circle": np.pi / 4, "cross": 1 - 0.7**2, "star": 0.33}
    shape = min(areas, key=lambda name: abs(filled.mean() - areas[name]))
    # A triangle is as large as a cross, but stands on a broad foot.
    if shape == "cross" and filled[-(len(filled) // 3) :].mean() > 0.6:
        shape = "triangle"
    size = "large" if max(bottom - top, end - left) > 0.29 * len(image) else "small"
    return SceneObject(size, colour, shape, (top, left, bottom, end))


def background(image):
    ring = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    return ring.mean(axis=0)


def foreground(image):
    return np.abs(image - background(image)).max(axis=-1) > 40


def sentence(objects):
    """The caption by the rule: the smaller one first, else the left or upper one."""
    names = [f"a {thing.size} {thing.colour} {thing.shape}" for thing in objects]
    if len(objects) == 1:
        return names[0]
    rows = [(thing.box[0] + thing.box[2]) / 2 for thing in objects]
    columns = [(thing.box[1] + thing.box[3]) / 2 for thing in objects]
    sideways = abs(columns[0] - columns[1]) > abs(rows[0] - rows[1])
    at = columns if sideways else rows
    sizes = [thing.size for thing in objects]
    first = int(at[1] < at[0]) if sizes[0] == sizes[1] else sizes.index("small")
    second = 1 - first
    earlier, later = ("left of", "right of") if sideways else ("above", "below")
    return f"{names[first]} {earlier if at[first] < at[second] else later} {names[second]}"


@pytest.mark.parametrize("image_size", [48, 64, 97])
def test_the_caption_says_what_the_pixels_show(image_size):
    for drawn in training_and_held_out(150, 1, seed=1, image_size=image_size)[0]:
        assert drawn.image.shape == (image_size, image_size, 3) and drawn.image.dtype == np.uint8
        assert drawn.caption == sentence([seen(drawn.image, thing.box) for thing in drawn.objects])


def test_boxes_bound_the_coloured_pixels_within_a_pixel(scenes):
    for drawn in scenes:
        outside = foreground(drawn.image)
        for thing in drawn.objects:
            found = seen(drawn.image, thing.box).box
            assert max(abs(a - b) for a, b in zip(thing.box, found, strict=True)) <= 1
            top, left, bottom, right = thing.box
            outside[top:bottom, left:right] = False
        assert not outside.any()


def test_objects_stand_in_the_order_of_the_caption(scenes):
    for drawn in scenes:
        at = [drawn.caption.find(f"a {o.size} {o.colour} {o.shape}") for o in drawn.objects]
        assert at == sorted(at) and len(set(at)) == len(at) and at[0] == 0


def test_words_point_at_the_object_they_speak_of(scenes):
    for drawn in scenes:
        said = drawn.caption.split()
        assert len(said) == len(drawn.words)
        for index, thing in enumerate(drawn.objects):
            spoken = [word for word, of in zip(said, drawn.words, strict=True) if of == index]
            assert spoken == [thing.size, thing.colour, thing.shape]
        silent = {word for word, of in zip(said, drawn.words, strict=True) if of is None}
        assert silent <= {"a", *" ".join(RELATIONS).split()}


def test_boxes_lie_inside_the_picture(scenes):
    for drawn in scenes:
        for top, left, bottom, right in (thing.box for thing in drawn.objects):
            assert 1 <= top < bottom <= 63 and 1 <= left < right <= 63


def test_the_named_axis_is_clear_and_the_boxes_are_apart_on_it(scenes):
    pairs = [drawn for drawn in scenes if len(drawn.objects) == 2]
    for drawn in pairs:
        first, second = (np.array(thing.box) for thing in drawn.objects)
        axis = int("left of" in drawn.caption or "right of" in drawn.caption)
        centres = np.abs(first[:2] + first[2:] - second[:2] - second[2:])
        assert centres[axis] >= 2 * centres[1 - axis]
        gap = max(first[axis] - second[axis + 2], second[axis] - first[axis + 2])
        assert gap >= 2
        assert drawn.objects[0][:3] != drawn.objects[1][:3]


def test_sizes_vary_and_do_not_touch(scenes):
    sides = {size: set() for size in SIZES}
    for thing in itertools.chain(*(drawn.objects for drawn in scenes)):
        sides[thing.size].add(thing.box[2] - thing.box[0])
    assert sides == {"small": {11, 12, 13, 14}, "large": {23, 24, 25, 26, 27, 28}}


def test_every_look_and_relation_occurs(scenes):
    looks = {thing[:3] for drawn in scenes for thing in drawn.objects}
    assert looks == set(itertools.product(SIZES, COLOURS, SHAPES))
    for relation in RELATIONS:
        assert any(relation in drawn.caption for drawn in scenes)
    assert 0.7 < np.mean([len(drawn.objects) == 2 for drawn in scenes]) < 0.8


def test_captions_lists_every_sentence_once(scenes):
    listed = captions()
    # One object; both of one size; a small one and a large one.
    assert len(listed) == len(set(listed)) == 60 + 2 * 30 * 29 * 2 + 30 * 30 * 4
    assert {drawn.caption for drawn in scenes} <= set(listed)


def test_generation_is_repeatable():
    for once, again in zip(
        *(itertools.chain(*training_and_held_out(8, 4, seed=2)) for _ in range(2)), strict=True
    ):
        np.testing.assert_array_equal(once.image, again.image)
        assert (once.caption, once.objects, once.words) == (again.caption, again.objects, again.words)


def test_another_seed_gives_other_scenes():
    one, other = (training_and_held_out(20, 20, seed=seed) for seed in (2, 3))
    for part in (0, 1):
        pictures = [{drawn.image.tobytes() for drawn in drawing[part]} for drawing in (one, other)]
        assert len(pictures[0]) == len(pictures[1]) == 20 and not pictures[0] & pictures[1]


def test_a_scene_does_not_depend_on_how_many_are_drawn():
    few, many = training_and_held_out(3, 9), training_and_held_out(12, 2)
    for part, count in ((0, 3), (1, 2)):
        for number in range(count):
            np.testing.assert_array_equal(few[part][number].image, many[part][number].image)


def test_no_layout_is_both_in_training_and_held_out():
    # The parity keeps the two sides apart for every seed, so it is what to look at.
    training, held_out = training_and_held_out(200, 200, seed=6)
    for part, parity in ((training, 0), (held_out, 1)):
        assert {sum(sum(thing.box[:2]) for thing in drawn.objects) % 2 for drawn in part} == {parity}


def test_held_out_scenes_are_drawn_apart_from_training():
    training, held_out = training_and_held_out(50, 50, seed=7)
    assert sum(one.caption == other.caption for one, other in zip(training, held_out, strict=True)) < 5


def test_a_scene_can_be_drawn_alone():
    random = np.random.default_rng(9)
    first, second = scene(random), scene(random)
    assert not np.array_equal(first.image, second.image)
    assert sum(sum(thing.box[:2]) for thing in scene(random, held_out=True).objects) % 2 == 1


def test_box_share_by_hand():
    image = np.zeros((10, 20, 3), np.uint8)
    one = SceneObject("small", "red", "circle", (0, 0, 2, 2))  # 4 of 200 pixels
    two = SceneObject("large", "red", "circle", (2, 4, 6, 9))  # 20 of 200 pixels
    drawn = Scene(image, "", (one, two), ())
    assert box_share([drawn]) == pytest.approx((0.02 + 0.1) / 2)
    assert box_share([drawn, Scene(image, "", (two,), ())]) == pytest.approx((0.02 + 0.1 + 0.1) / 3)


def test_box_share_needs_a_scene():
    with pytest.raises(ValueError, match="expected at least one scene"):
        box_share([])


@pytest.mark.parametrize("counts", [(0, 5), (5, 0), (-1, 5)])
def test_counts_are_checked(counts):
    with pytest.raises(ValueError, match="expected counts of at least 1, received"):
        training_and_held_out(*counts)


def test_image_size_is_checked():
    with pytest.raises(ValueError, match="expected image_size of at least 48, received 47"):
        training_and_held_out(1, 1, image_size=47)
    with pytest.raises(ValueError, match="expected image_size of at least 48, received 32"):
        scene(np.random.default_rng(0), image_size=32)


def test_drawing_needs_no_tensorflow():
    code = (
        "import sys; from attention_zoo.training import generated_scenes; "
        "generated_scenes.training_and_held_out(1, 1); "
        "sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
