"""BLEU on held-out sentences while a model trains."""

from collections.abc import Sequence
from typing import Any

import keras

from attention_zoo.training.evaluation import evaluate_translations


class TranslationScore(keras.callbacks.Callback):
    """Translates held-out sentences after an epoch and adds their BLEU to the logs as "val_bleu".

    Put it before the callbacks that read it, such as
    `keras.callbacks.EarlyStopping(monitor="val_bleu", mode="max")`: Keras calls them in the order of the
    list. Translating takes time: a few hundred sentences are enough to follow a training.

    Args:
        texts: A `ParallelText`, or the pair (sources, references).
        every: Epochs between scores; in the others "val_bleu" is not in the logs.
        beams: Hypotheses kept alive by the search; 1 is greedy.
        tokenized: Whether the text is already split into tokens; see `evaluate_translations`.

    Raises:
        ValueError: If `every` is not positive, or the texts are empty or of different length.

    Example:
        >>> score = TranslationScore((["one", "two"], ["eins", "zwei"]))
        >>> model.fit(batches, epochs=3, callbacks=[score])  # doctest: +SKIP
    """

    def __init__(self, texts: Any, every: int = 1, beams: int = 1, tokenized: bool = False) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"TranslationScore: expected every of at least 1, received {every}.")
        self.texts = texts
        self.every = every
        self.beams = beams
        self.tokenized = tokenized
        sources, references = texts if isinstance(texts, tuple) else (texts.sources, texts.targets)
        if not sources or len(sources) != len(references):
            raise ValueError(
                f"TranslationScore: expected as many references as sources, at least one; received "
                f"{len(sources)} sources and {len(references)} references."
            )
        self._sources: Sequence[str] = list(sources)
        self._references: Sequence[str] = list(references)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds "val_bleu" to the logs."""
        if (epoch + 1) % self.every:
            return
        hypotheses = [str(best) for best in self.model.translate(self._sources, beams=self.beams)]
        score = evaluate_translations(hypotheses, self._references, tokenized=self.tokenized)
        if logs is not None:
            logs["val_bleu"] = score.bleu
