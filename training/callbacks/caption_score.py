"""Scores of captions of held-out images while a model trains."""

from typing import Any

import keras

from attention_zoo.training.caption_metrics import evaluate_captions
from attention_zoo.training.image_data import CaptionedImages


class CaptionScore(keras.callbacks.Callback):
    """Captions held-out images after an epoch and adds "val_cider_d" and "val_bleu_4" to the logs.

    Put it before the callbacks that read them, such as
    `keras.callbacks.EarlyStopping(monitor="val_cider_d", mode="max")`: Keras calls them in the order of the
    list. Each caption is scored against all references of its image. The CIDEr-D of few images says little.

    Args:
        data: Images, or their features, with their references.
        every: Epochs between scores; in the others they are not in the logs.
        beams: Hypotheses kept alive by the search; 1 is greedy.

    Raises:
        ValueError: If `every` is not positive.

    Example:
        >>> import numpy as np
        >>> data = CaptionedImages(np.zeros((2, 8, 8, 3), "uint8"), [["a cat", "it sits"], ["a dog"]])
        >>> score = CaptionScore(data)
        >>> model.fit(batches, epochs=3, callbacks=[score])  # doctest: +SKIP
    """

    def __init__(self, data: CaptionedImages, every: int = 1, beams: int = 1) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"CaptionScore: expected every of at least 1, received {every}.")
        self.data = data
        self.every = every
        self.beams = beams

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds the scores to the logs."""
        if (epoch + 1) % self.every:
            return
        captions = [str(best) for best in self.model.caption(self.data.images, beams=self.beams)]
        scores = evaluate_captions(captions, self.data.captions)
        if logs is not None:
            logs["val_cider_d"] = scores.cider_d
            logs["val_bleu_4"] = scores.bleu_4
