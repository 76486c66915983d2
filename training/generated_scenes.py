"""A captioning task that needs no download: pictures of coloured shapes -> sentences about them.

    a small red circle
    a small red circle left of a large blue square
    a large green star above a large black cross

Every picture has one right sentence, so that an exact match is a fair measure:

- The smaller object is named first, as people say where the cup is by the table and not the other way round.
  Of two objects of one size it is the left one, or the upper one.
- "left of", "right of", "above" and "below" go by the axis on which the centres are further apart: at least
  CLEAR times as far as on the other axis, and with a gap between the boxes on it.

The place of every object is known, and for every word the object it speaks of: where a model looks when it
says a word can be measured.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Name -> shortest and longest side of an object's box, as a share of the picture's side.
SIZES = {"small": (0.18, 0.22), "large": (0.36, 0.44)}

# Name -> red, green, blue.
COLOURS = {
    "red": (215, 40, 40),
    "green": (40, 155, 60),
    "blue": (45, 85, 215),
    "yellow": (230, 200, 25),
    "purple": (150, 50, 175),
    "black": (30, 30, 30),
}

RELATIONS = ("left of", "right of", "above", "below")

# Share of the scenes that show two objects; the others show one.
PAIRS = 0.75
# How many times further apart two centres are on the axis that the sentence names than on the other one.
CLEAR = 2
# Pixels around an object that belong to none: to the border, and to the other object.
MARGIN = 1
GAP = 2
# In smaller pictures a small star and a small cross are hard to tell apart.
LEAST_IMAGE_SIZE = 48

# Variation that no word speaks of: of the grey behind the objects, its slope, every pixel, every colour.
GREYS = (180, 225)
SLOPE = 8
NOISE = 6
TINT = 20

# Samples per pixel and axis that make the edges smooth.
SAMPLES = 4


def _in_star(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Five-pointed star: the points on the inner side of at least four of the five lines that draw it."""
    # Stretched from the unit circle, where a star is a little wider than high, to the whole box.
    up = (1 - math.cos(math.pi / 5)) / 2 - y * (1 + math.cos(math.pi / 5)) / 2
    right = x * math.sin(2 * math.pi / 5)
    tips = [math.pi / 2 + tip * 2 * math.pi / 5 for tip in range(5)]
    inner = [math.cos(tip) * right + math.sin(tip) * up <= math.cos(2 * math.pi / 5) for tip in tips]
    return np.sum(inner, axis=0) >= 4


# Name -> whether the shape that fills the box from -1 to 1 holds the points y (down), x (to the right).
SHAPES = {
    "circle": lambda y, x: y * y + x * x <= 1,
    "square": lambda y, x: np.maximum(np.abs(y), np.abs(x)) <= 1,
    "triangle": lambda y, x: 2 * np.abs(x) <= y + 1,
    "star": _in_star,
    "cross": lambda y, x: np.minimum(np.abs(y), np.abs(x)) <= 0.3,
}


class SceneObject(NamedTuple):
    """What is said of an object, and where it is.

    `box` is (top, left, bottom, right) in pixels: rows top to bottom - 1, columns left to right - 1.
    """

    size: str
    colour: str
    shape: str
    box: tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """A picture, its sentence, and the truth about both.

    Attributes:
        image: uint8 (image_size, image_size, 3), red, green, blue.
        caption: The one right sentence, words separated by a space.
        objects: The one or two objects, in the order in which the caption names them.
        words: For every word of the caption, the index in `objects` of what it speaks of: words of size,
            colour and shape. None for "a" and the words of the relation.
    """

    image: np.ndarray
    caption: str
    objects: tuple[SceneObject, ...]
    words: tuple[int | None, ...]


def scene(random: np.random.Generator, image_size: int = 64, held_out: bool = False) -> Scene:
    """Draws a scene.

    One or two objects lie wholly inside the picture, without touching, on a light grey that changes a little
    from scene to scene, from corner to corner and from pixel to pixel. Two objects never have size, colour
    and shape in common: nobody could tell which of them a word speaks of.

    Args:
        random: Source of the draw, which moves on.
        image_size: Height and width of the picture, at least 48.
        held_out: Which half of all layouts to draw from. The top and left edges of the boxes add up to an odd
            number in held-out scenes and to an even one in the others, so that a layout (what is where) never
            occurs on both sides, whatever the seeds and counts.

    Returns:
        The scene.

    Raises:
        ValueError: If `image_size` is too small.

    Example:
        >>> drawn = scene(np.random.default_rng(0))
        >>> drawn.image.shape, len(drawn.words) == len(drawn.caption.split())
        ((64, 64, 3), True)
    """
    if image_size < LEAST_IMAGE_SIZE:
        raise ValueError(f"scene: expected image_size of at least {LEAST_IMAGE_SIZE}, received {image_size}")
    looks = [_look(random) for _ in range(1 + (random.random() < PAIRS))]
    while len(set(looks)) < len(looks):
        looks[1] = _look(random)
    ranges = [[int(share * image_size) for share in SIZES[look[0]]] for look in looks]
    sides = [int(random.integers(shortest, longest + 1)) for shortest, longest in ranges]
    corners = _place(random, sides, image_size, held_out)
    placed = [
        SceneObject(*look, (top, left, top + side, left + side))
        for look, side, (top, left) in zip(looks, sides, corners, strict=True)
    ]
    # They are placed from left to right or from top to bottom, and sorting keeps that order among equals.
    objects = tuple(sorted(placed, key=lambda thing: list(SIZES).index(thing.size)))
    caption, words = _phrase(objects[0]), _indices(0)
    if len(objects) == 2:
        relation = _relation(*objects)
        caption = f"{caption} {relation} {_phrase(objects[1])}"
        words += (None,) * len(relation.split()) + _indices(1)
    return Scene(_render(random, objects, image_size), caption, objects, words)


def training_and_held_out(
    training_count: int, held_out_count: int, seed: int = 0, image_size: int = 64
) -> tuple[list[Scene], list[Scene]]:
    """Two lists of scenes that share no layout (see `scene`).

    Scene i of a list depends on the seed, the list and i alone, not on how many are drawn. Captions recur on
    both sides, for there are only as many as `captions` lists. Few of them are frequent, so that many
    held-out scenes have a caption that does not occur in training: score these apart to measure how well a
    model puts known words together in new ways.

    Args:
        training_count: Number of scenes to train on.
        held_out_count: Number of scenes to test on.
        seed: Seed of the draw, 0 or more.
        image_size: Height and width of the pictures, at least 48.

    Returns:
        The scenes for training and the held-out scenes.

    Raises:
        ValueError: If a count is less than 1, or `image_size` is too small.

    Example:
        >>> training, held_out = training_and_held_out(6, 2)
        >>> np.stack([drawn.image for drawn in training]).shape
        (6, 64, 64, 3)
    """
    if training_count < 1 or held_out_count < 1:
        raise ValueError(
            "training_and_held_out: expected counts of at least 1, received "
            f"{training_count} training and {held_out_count} held-out"
        )
    # A stream of random numbers for every scene: an earlier one can draw more or fewer without moving it.
    training, held_out = (
        [
            scene(np.random.default_rng([seed, half, number]), image_size, bool(half))
            for number in range(count)
        ]
        for half, count in enumerate((training_count, held_out_count))
    )
    return training, held_out


def captions() -> list[str]:
    """All sentences that a scene can have: 7140, of which 60 speak of one object.

    Returns:
        Different sentences, those about one object first.

    Example:
        >>> captions()[0], len(captions())
        ('a small red circle', 7140)
    """
    looks = list(itertools.product(SIZES, COLOURS, SHAPES))
    pairs = []
    for first, second in itertools.permutations(looks, 2):
        if (first[0], second[0]) == ("small", "large"):
            relations = RELATIONS
        elif first[0] == second[0]:
            relations = ("left of", "above")
        else:
            relations = ()
        pairs += [f"{_phrase(first)} {relation} {_phrase(second)}" for relation in relations]
    return [_phrase(look) for look in looks] + pairs


def box_share(scenes: Sequence[Scene]) -> float:
    """How often a look at a random place meets the object that is spoken of.

    The chance level beside which to read the share of a model's looks that fall into the right box.

    Args:
        scenes: At least one scene.

    Returns:
        Area of a box as a share of its picture, mean over all objects.

    Raises:
        ValueError: If there is no scene.

    Example:
        >>> 0.03 < box_share(training_and_held_out(1, 20)[1]) < 0.2
        True
    """
    if not len(scenes):
        raise ValueError("box_share: expected at least one scene, received none")
    shares = []
    for drawn in scenes:
        height, width, _ = drawn.image.shape
        for top, left, bottom, right in (thing.box for thing in drawn.objects):
            shares.append((bottom - top) * (right - left) / (height * width))
    return sum(shares) / len(shares)


def _look(random: np.random.Generator) -> tuple[str, ...]:
    """Draws size, colour and shape."""
    return tuple(list(names)[random.integers(len(names))] for names in (SIZES, COLOURS, SHAPES))


def _place(
    random: np.random.Generator, sides: list[int], image_size: int, held_out: bool
) -> list[tuple[int, int]]:
    """Draws the top left corners of boxes, of two the left or the upper one first."""
    side_by_side = random.random() < 0.5
    while True:
        across, along = (
            [int(random.integers(MARGIN, image_size - MARGIN - side + 1)) for side in sides] for _ in range(2)
        )
        if len(sides) == 2:
            # What is left of the axis is shared out before, between and behind the two boxes.
            free = image_size - 2 * MARGIN - GAP - sum(sides)
            before, until = sorted(random.integers(0, free + 1, 2).tolist())
            along = [MARGIN + before, MARGIN + until + sides[0] + GAP]
        # Between the centres, in half pixels; 0 for one object.
        distances = [abs(2 * (at[-1] - at[0]) + sides[-1] - sides[0]) for at in (along, across)]
        if distances[0] >= CLEAR * distances[1] and (sum(across) + sum(along)) % 2 == held_out:
            return list(zip(across, along, strict=True) if side_by_side else zip(along, across, strict=True))


def _phrase(look: Sequence) -> str:
    """The words that name one object."""
    size, colour, shape, *_ = look
    return f"a {size} {colour} {shape}"


def _indices(index: int) -> tuple[int | None, ...]:
    """What the words of `_phrase` speak of."""
    return (None, index, index, index)


def _relation(first: SceneObject, second: SceneObject) -> str:
    """Where the first object is, seen from the second."""
    centres = [(top + bottom, left + right) for top, left, bottom, right in (first.box, second.box)]
    down, right = (to - start for start, to in zip(*centres, strict=True))
    if abs(right) > abs(down):
        return "left of" if right > 0 else "right of"
    return "above" if down > 0 else "below"


def _render(random: np.random.Generator, objects: Sequence[SceneObject], image_size: int) -> np.ndarray:
    """Draws the picture. Whole random numbers and plain arithmetic only: the same on every platform."""
    grey = random.integers(GREYS[0], GREYS[1] + 1)
    slope_down, slope_right = random.integers(-SLOPE, SLOPE + 1, 2)
    ramp = np.linspace(-1, 1, image_size)
    background = grey + slope_down * ramp[:, None] + slope_right * ramp[None, :]
    picture = np.repeat(background[:, :, None], 3, axis=2)  # (image_size, image_size, 3)
    for thing in objects:
        top, left, bottom, right = thing.box
        colour = np.array(COLOURS[thing.colour]) + random.integers(-TINT, TINT + 1, 3)
        region = picture[top:bottom, left:right]
        region += _coverage(thing.shape, bottom - top) * (colour - region)
    picture += random.integers(-NOISE, NOISE + 1, picture.shape, dtype=np.int8)
    return np.rint(picture).clip(0, 255).astype(np.uint8)


@functools.cache
def _coverage(shape: str, side: int) -> np.ndarray:
    """Share of every pixel of its box that a shape fills, (side, side, 1)."""
    at = (np.arange(side * SAMPLES) + 0.5) * (2 / (side * SAMPLES)) - 1
    inside = SHAPES[shape](at[:, None], at[None, :])  # (side * SAMPLES, side * SAMPLES)
    return inside.reshape(side, SAMPLES, side, SAMPLES).mean(axis=(1, 3))[:, :, None]  # (side, side, 1)
