"""What a captioner returns for one image."""

import dataclasses
import os
import unicodedata
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_END = "</s>"
_SPACE = "▁"  # SentencePiece's mark of a space, with which the first piece of a word begins


# Not compared by value: `==` of two arrays is an array.
@dataclasses.dataclass(frozen=True, eq=False)
class Caption:
    """The caption of one image, with what the model looked at.

    Args:
        text: The caption.
        score: Log-probability of the tokens, with the penalties the search was asked for.
        tokens: The T tokens, the end token "</s>" included.
        attention: float (T, H, W): grid t is where in the image the model looked while it wrote token t. None
            if it was not asked for, or if the model has no attention.
        alternatives: The next best captions, best first.
        heads: The attention of every layer and head, float, as far as the model has it: "cross"
            (N, heads, T, S), from tokens to the S = H * W places of the image, row by row; "self"
            (N, heads, T, T), of the decoder, where row t, which wrote token t, looks at the start token and
            the tokens before t; "encoder" (N, heads, S, S). Empty if it was not asked for.
        image: uint8 or float from 0 to 255, (h, w, 3): what the caption says. None if the model was given
            features of the image instead.
        log_probabilities: float (T,), of each token, from `Captioner.score`; None from `caption`.

    Example:
        >>> attention = np.full((3, 2, 2), 0.25)
        >>> caption = Caption("skateboard", -0.1, ["▁skate", "board", "</s>"], attention)
        >>> [word for word, grid in caption.words()]
        ['skateboard']
        >>> figure = caption.plot(image=np.zeros((32, 48, 3), "uint8"))
    """

    text: str
    score: float
    tokens: list[str]
    attention: np.ndarray | None = None
    alternatives: list["Caption"] = dataclasses.field(default_factory=list)
    heads: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    image: np.ndarray | None = None
    log_probabilities: np.ndarray | None = None

    def __str__(self) -> str:
        return self.text

    def words(self) -> list[tuple[str, np.ndarray]]:
        """Puts pieces of words together, with the mean of their attention.

        A piece that begins with SentencePiece's mark of a space, "▁", begins a word, and the pieces after it
        belong to it. Punctuation that ends a word stands for itself ("dog" and "."), within a word it does
        not ("ice-cream"). Where no piece has the mark, every token is a word. The end token is left out, and
        so are spaces without a word.

        In languages that are written without spaces a word of SentencePiece can be a whole sentence; draw
        the tokens there, with `attention_zoo.models.image_plotting.plot_attention_on_image`.

        Returns:
            Each word, and where the model looked while it wrote it, float (H, W).

        Raises:
            ValueError: If there is no attention.
        """
        if self.attention is None:
            raise ValueError(
                "Caption: expected attention weights, received None; ask for them with "
                "caption(..., return_attention=True), and use a model that has attention."
            )
        marked = any(token.startswith(_SPACE) for token in self.tokens)
        groups: list[list[int]] = []  # for each word the places of its pieces in `tokens`
        for place, token in enumerate(self.tokens):
            if token == _END:
                continue
            if groups and marked and not token.startswith(_SPACE):
                groups[-1].append(place)
            else:
                groups.append([place])
        words = []
        for part in (part for group in groups for part in self._without_punctuation(group)):
            word = "".join(self.tokens[place] for place in part).replace(_SPACE, " ").strip()
            if word:
                words.append((word, self.attention[part].mean(axis=0)))
        return words

    def plot(
        self,
        path: str | os.PathLike[str] | None = None,
        title: str | None = None,
        image: np.ndarray | None = None,
    ) -> "Figure":
        """Draws where the model looked; see `attention_zoo.models.image_plotting.plot_attention_on_image`.

        Args:
            path: File to write (.png, .pdf or .svg); None writes nothing.
            title: Line above the picture.
            image: What to draw on, uint8 or float from 0 to 255, (h, w, 3), instead of the caption's own
                image; needed where the model was given features.

        Returns:
            The matplotlib figure.

        Raises:
            ValueError: If there is no attention, no image or no word to draw.
        """
        from attention_zoo.models.image_plotting import plot_attention_on_image

        words = self.words()
        image = self.image if image is None else image
        if image is None:
            raise ValueError(
                "Caption.plot: expected an image, received None; this caption was made from features; hand "
                "in the image that they are of: plot(image=...)."
            )
        if not words:
            raise ValueError(f"Caption.plot: expected a caption with words, received {self.text!r}.")
        names, grids = zip(*words, strict=True)
        return plot_attention_on_image(image, np.stack(grids), names, path=path, title=title)

    def _without_punctuation(self, group: list[int]) -> tuple[list[int], list[int]]:
        """Parts a word from the punctuation that ends it; there may be none."""
        others = [index for index, place in enumerate(group) if not _is_punctuation(self.tokens[place])]
        end = others[-1] + 1 if others else len(group)
        return group[:end], group[end:]


def _is_punctuation(token: str) -> bool:
    return all(unicodedata.category(character).startswith("P") for character in token.replace(_SPACE, ""))
