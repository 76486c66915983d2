"""Whether a captioner looks at what it speaks of, measured on generated scenes."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from attention_zoo.models.caption import Caption
from attention_zoo.training.generated_scenes import SHAPES, Scene


@dataclasses.dataclass(frozen=True)
class Pointing:
    """How often the attention's peak lies inside the box of the object that is spoken of.

    Args:
        words: How many words were looked at.
        share: Share of them whose peak lies in the box, 0 to 1; None if there are none.
        chance: Share that looks at random places would have: the mean area of these boxes as a share of the
            picture; None if there are none.
    """

    words: int
    share: float | None
    chance: float | None

    def __str__(self) -> str:
        if not self.words:
            return "Pointing: no shape's word was said where it belongs"
        return (
            f"Pointing: {100 * self.share:.2f}% of {self.words} shapes' words look at their object "
            f"(by chance {100 * self.chance:.2f}%)"
        )


def pointing(captions: Sequence[Caption], scenes: Sequence[Scene]) -> Pointing:
    """Measures whether the peak of the attention lies inside the right object when its shape is named.

    Of a caption count the words of shapes ("circle", "square", ...) that stand where the scene's own caption
    has the same word. The peak is the centre, in pixels, of the cell of the grid with the largest weight.

    Args:
        captions: One for each scene, with attention.
        scenes: The scenes, in the same order.

    Returns:
        The share of hits, and beside it that of looks at random.

    Raises:
        ValueError: If there are not as many captions as scenes, or a caption has no attention.

    Example:
        >>> from attention_zoo.training.generated_scenes import training_and_held_out
        >>> scenes, _ = training_and_held_out(20, 1)
        >>> words = [scene.caption.split() for scene in scenes]
        >>> everywhere = [np.full((len(row), 1, 1), 1.0) for row in words]
        >>> captions = [Caption(" ".join(w), 0.0, w, a) for w, a in zip(words, everywhere)]
        >>> pointing(captions, scenes).words >= 20
        True
    """
    if len(captions) != len(scenes):
        raise ValueError(
            f"pointing: expected one caption per scene, received {len(captions)} captions and "
            f"{len(scenes)} scenes"
        )
    hits, areas = [], []
    for caption, scene in zip(captions, scenes, strict=True):
        height, width, _ = scene.image.shape
        true_words = zip(scene.caption.split(), scene.words, strict=True)
        # One of the two captions may end sooner.
        for (said, attention), (word, number) in zip(caption.words(), true_words, strict=False):
            if said == word and word in SHAPES:
                top, left, bottom, right = scene.objects[number].box
                y, x = _peak(attention, height, width)
                hits.append(top <= y < bottom and left <= x < right)
                areas.append((bottom - top) * (right - left) / (height * width))
    if not hits:
        return Pointing(0, None, None)
    return Pointing(len(hits), sum(hits) / len(hits), sum(areas) / len(areas))


def _peak(attention: np.ndarray, height: int, width: int) -> tuple[float, float]:
    """Centre, in pixels from the top and the left, of the cell with the largest weight; (H, W) -> y, x."""
    rows, columns = attention.shape
    row, column = np.unravel_index(np.argmax(attention), attention.shape)
    return (row + 0.5) * height / rows, (column + 0.5) * width / columns
