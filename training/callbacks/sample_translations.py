"""A few translations to read while a model trains."""

from collections.abc import Sequence
from typing import Any

import keras


class SampleTranslations(keras.callbacks.Callback):
    """Prints the greedy translations of a few sentences after every epoch.

    Args:
        sources: Sentences; the first `count` are translated.
        references: Their translations, printed beside; None prints none.
        count: How many to print.

    Raises:
        ValueError: If there are no sentences, references are missing, or `count` is not positive.

    Example:
        >>> samples = SampleTranslations(["one", "two"], ["eins", "zwei"], count=1)
        >>> model.fit(batches, epochs=3, callbacks=[samples])  # doctest: +SKIP
    """

    def __init__(
        self, sources: Sequence[str], references: Sequence[str] | None = None, count: int = 3
    ) -> None:
        super().__init__()
        if count < 1:
            raise ValueError(f"SampleTranslations: expected count of at least 1, received {count}.")
        if not sources:
            raise ValueError("SampleTranslations: expected at least one source, received none.")
        if references is not None and len(references) != len(sources):
            raise ValueError(
                f"SampleTranslations: expected one reference per source ({len(sources)}), "
                f"received {len(references)}."
            )
        self.sources = list(sources)
        self.references = None if references is None else list(references)
        self.count = count

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Prints the translations."""
        sources = self.sources[: self.count]
        lines = []
        for index, best in enumerate(self.model.translate(sources, beams=1)):
            lines.append(f"  source       {sources[index]}")
            lines.append(f"  translation  {best.text}")
            if self.references is not None:
                lines.append(f"  reference    {self.references[index]}")
            lines.append("")
        print(f"Translations after epoch {epoch + 1}:", *lines, sep="\n")
