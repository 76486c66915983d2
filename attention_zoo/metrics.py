"""Metrics over the real tokens of padded sentences."""

from typing import Any

import keras
from keras import ops

from attention_zoo.losses import label_logits_of, token_crossentropy, token_weights


class TokenMetric(keras.metrics.Metric):
    """Mean of a quantity over all real tokens seen; the base of the metrics in this file.

    An update has two halves, so that the costly one can run inside a compiled training step and the
    one that changes variables outside it:

        metric.update_from_statistics(metric.statistics(labels, logits))

    A subclass defines `values`.

    Args:
        name: Name of the metric.
        dtype: dtype of the result.
    """

    def __init__(self, name: str | None = None, dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)
        self.total = self.add_weight(shape=(), initializer="zeros", dtype="float32", name="total")
        self.count = self.add_weight(shape=(), initializer="zeros", dtype="float32", name="count")

    def values(self, labels: Any, logits: Any) -> Any:
        """The quantity at every position, padding included.

        Args:
            labels: int (B, T).
            logits: float (B, T, V).

        Returns:
            float32 (B, T).
        """
        raise NotImplementedError

    def statistics(self, labels: Any, logits: Any, sample_weight: Any = None) -> dict[str, Any]:
        """What one batch contributes; changes nothing, so it may be compiled.

        Args:
            labels: int (B, T), 0 where there is only padding.
            logits: float (B, T, V).
            sample_weight: None, or float (B,), (B, 1) or (B, T).

        Returns:
            Float32 scalars, which may be added up over batches or replicas.
        """
        weights = token_weights(labels, sample_weight)  # (B, T)
        return {"total": ops.sum(weights * self.values(labels, logits)), "count": ops.sum(weights)}

    def update_from_statistics(self, statistics: dict[str, Any]) -> None:
        """Adds what `statistics` returned."""
        self.total.assign_add(statistics["total"])
        self.count.assign_add(statistics["count"])

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds one batch; the arguments are those of `statistics`."""
        self.update_from_statistics(self.statistics(y_true, y_pred, sample_weight))

    def result(self) -> Any:
        """The mean over all tokens since the last reset, 0 if there were none."""
        return ops.divide_no_nan(self.total, self.count)


@keras.saving.register_keras_serializable(package="attention_zoo")
class TokenAccuracy(TokenMetric):
    """Share of the real tokens that no other token is more probable than.

    Args:
        name: Name of the metric.
        dtype: dtype of the result.

    Example:
        >>> accuracy = TokenAccuracy()
        >>> accuracy.update_state(ops.array([[1, 1, 0]]), ops.array([[[0.0, 9.0], [9.0, 0.0], [9.0, 0.0]]]))
        >>> float(accuracy.result())  # one of two: the third position is padding
        0.5
    """

    def __init__(self, name: str = "token_accuracy", dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)

    def values(self, labels: Any, logits: Any) -> Any:
        """1 where the prediction is right, else 0."""
        label_logits = label_logits_of(ops.cast(labels, "int32"), logits)  # (B, T)
        # Not by argmax, which takes three times as long under XLA on a CPU.
        return ops.cast(label_logits >= ops.max(logits, axis=-1), "float32")


@keras.saving.register_keras_serializable(package="attention_zoo")
class Perplexity(TokenMetric):
    """The exponential of the mean negative log-likelihood of the real tokens, without label smoothing.

    Args:
        name: Name of the metric.
        dtype: dtype of the result.

    Example:
        >>> perplexity = Perplexity()
        >>> perplexity.update_state(ops.array([[1, 0]]), ops.zeros((1, 2, 4)))
        >>> round(float(perplexity.result()), 3)  # as good as a guess among four
        4.0
    """

    def __init__(self, name: str = "perplexity", dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)

    def values(self, labels: Any, logits: Any) -> Any:
        """Negative log-likelihood of the labels."""
        return token_crossentropy(labels, logits)

    def result(self) -> Any:
        """The exponential of the mean, 1 if there were no tokens."""
        return ops.exp(super().result())
