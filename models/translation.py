"""What a translator returns for one sentence."""

import dataclasses
import os
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# Not compared by value: `==` of two arrays is an array.
@dataclasses.dataclass(frozen=True, eq=False)
class Translation:
    """One translated sentence, with what the model looked at.

    Args:
        text: The translation.
        score: Log-probability of the tokens, with the penalties the search was asked for.
        tokens: The T target tokens, the end token "</s>" included.
        source_tokens: The S source tokens.
        attention: float (T, S): row t is where the model looked while it wrote token t. None if it was
            not asked for, or if the model has no attention.
        alternatives: The next best translations, best first.
        heads: The attention of every layer and head, float, as far as the model has it: "cross"
            (N, H, T, S), from target to source; "self" (N, H, T, T), of the decoder, where row t, which wrote
            token t, looks at the start token and the tokens before t; "encoder" (N, H, S, S). Empty if it was
            not asked for.
        log_probabilities: float (T,), of each token, from `Translator.score`; None from `translate`.

    Example:
        >>> attention = np.array([[0.9, 0.1], [0.2, 0.8]])
        >>> translation = Translation("Hallo", -0.1, ["Hallo", "</s>"], ["hello", "</s>"], attention)
        >>> figure = translation.plot()
    """

    text: str
    score: float
    tokens: list[str]
    source_tokens: list[str]
    attention: np.ndarray | None = None
    alternatives: list["Translation"] = dataclasses.field(default_factory=list)
    heads: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    log_probabilities: np.ndarray | None = None

    def __str__(self) -> str:
        return self.text

    def plot(self, path: str | os.PathLike[str] | None = None, title: str | None = None) -> "Figure":
        """Draws the attention as a heat map; see `attention_zoo.models.plotting.plot_attention`.

        Args:
            path: File to write (.png, .pdf or .svg); None writes nothing.
            title: Line above the picture.

        Returns:
            The matplotlib figure.

        Raises:
            ValueError: If there is no attention to draw.
        """
        from attention_zoo.models.plotting import plot_attention

        if self.attention is None:
            raise ValueError(
                "Translation.plot: expected attention weights, received None; ask for them with "
                "translate(..., return_attention=True), and use a model that has attention."
            )
        return plot_attention(self.attention, self.source_tokens, self.tokens, path=path, title=title)

    def plot_heads(
        self,
        path: str | os.PathLike[str] | None = None,
        part: str = "cross",
        layer: int = 0,
        title: str | None = None,
    ) -> "Figure":
        """Draws the heads of one layer side by side; see `attention_zoo.models.plotting.plot_heads`.

        Args:
            path: File to write (.png, .pdf or .svg); None writes nothing.
            part: "cross", "self" or "encoder", see `heads`.
            layer: Number of the layer, from 0; negative ones count from the last.
            title: Line above the picture; says part and layer if None.

        Returns:
            The matplotlib figure.

        Raises:
            ValueError: If there is no such part or layer to draw.
        """
        from attention_zoo.models.plotting import plot_heads

        if part not in self.heads:
            raise ValueError(
                f"Translation.plot_heads: expected a part among {list(self.heads)}, received {part!r}; heads "
                "come with translate(..., return_attention=True) from a model that has them."
            )
        layers = len(self.heads[part])
        if not -layers <= layer < layers:
            raise ValueError(
                f"Translation.plot_heads: expected a layer from 0 to {layers - 1}, received {layer}."
            )
        number = layer % layers
        columns = {
            "cross": self.source_tokens,
            "self": ["<s>", *self.tokens[:-1]],
            "encoder": self.source_tokens,
        }[part]
        rows = self.source_tokens if part == "encoder" else self.tokens
        title = f"{part}, layer {number + 1} of {layers}" if title is None else title
        return plot_heads(self.heads[part][number], columns, rows, path=path, title=title)
