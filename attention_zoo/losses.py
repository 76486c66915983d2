"""Cross-entropy over the real tokens of padded sentences, and the expected risk of whole sentences."""

from typing import Any

import keras
from keras import ops

from attention_zoo.ops.attention import attention_weights


@keras.saving.register_keras_serializable(package="attention_zoo")
class MaskedCrossentropy(keras.losses.Loss):
    """Label-smoothed cross-entropy, averaged over the real tokens of a batch.

    With p = softmax(logits), V the vocabulary and e the label smoothing, each token costs

        (1 - e) * -log p[label] + e * mean_V(-log p)

    and the loss is the sum over the tokens whose label is not 0 (padding), divided by their number. A
    sample weight makes it a weighted mean. A batch of nothing but padding costs 0. Targets are never
    turned into one-hot vectors, and everything is computed in float32.

    Args:
        label_smoothing: e, from 0 up to, but not including, 1.
        name: Name of the loss.

    Call arguments:
        y_true: int (B, T), labels, 0 where there is only padding.
        y_pred: float (B, T, V), logits.
        sample_weight: None, or float (B,), (B, 1) or (B, T).

    Returns:
        The loss, a float32 scalar.

    Raises:
        ValueError: If `label_smoothing` is out of range.

    Example:
        >>> loss = MaskedCrossentropy(label_smoothing=0.1)
        >>> labels = ops.array([[1, 0]])
        >>> logits = ops.array([[[0.0, 0.0], [5.0, -5.0]]])
        >>> float(loss(labels, logits))  # log 2: the second position is padding
        0.6931471824645996

    Reference:
        Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision", section 7;
        Vaswani et al. 2017, "Attention Is All You Need", section 5.4.
    """

    def __init__(self, label_smoothing: float = 0.0, name: str = "masked_crossentropy") -> None:
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(
                f"MaskedCrossentropy: expected 0 <= label_smoothing < 1, received {label_smoothing}"
            )
        super().__init__(name=name)
        self.label_smoothing = label_smoothing

    # Not `call` with Keras's reduction: that would average over the padding as well.
    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """The mean over real tokens."""
        weights = token_weights(y_true, sample_weight)  # (B, T)
        total = ops.sum(weights * self.call(y_true, y_pred))
        count = ops.sum(weights)
        return total / ops.where(count > 0, count, 1.0)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The loss of every position, padding included: float32 (B, T)."""
        return token_crossentropy(y_true, y_pred, self.label_smoothing)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"label_smoothing": self.label_smoothing, "name": self.name}


def token_crossentropy(labels: Any, logits: Any, label_smoothing: float = 0.0) -> Any:
    """Cross-entropy of every position, padding included (formula: `MaskedCrossentropy`).

    Args:
        labels: int (B, T).
        logits: float (B, T, V).
        label_smoothing: e.

    Returns:
        float32 (B, T).
    """
    logits = ops.cast(logits, "float32")
    label_logits = label_logits_of(ops.cast(labels, "int32"), logits)  # (B, T)
    # -log p = log(sum(exp(logits))) - logits, which needs no (B, T, V) array of log-probabilities.
    losses = ops.logsumexp(logits, axis=-1) - (1.0 - label_smoothing) * label_logits  # (B, T)
    if label_smoothing:
        losses = losses - label_smoothing * ops.mean(logits, axis=-1)
    return losses


def label_logits_of(labels: Any, logits: Any) -> Any:
    """The logit of each label: int (B, T), float (B, T, V) -> (B, T)."""
    index = ops.expand_dims(labels, -1)  # (B, T, 1)

    @ops.custom_gradient
    def look_up(logits: Any) -> tuple[Any, Any]:
        # The gradient of a look-up would be added into an array of zeros, (B, T, V), token by token. This one
        # is computed along with the rest of the gradient for the logits, and needs no array.
        def gradient(*args: Any, upstream: Any = None) -> Any:
            # TensorFlow and JAX pass the gradient by position, PyTorch by name.
            upstream = args[0] if upstream is None else upstream  # (B, T)
            is_label = ops.arange(ops.shape(logits)[-1], dtype="int32") == index  # (B, T, V)
            return ops.where(is_label, ops.expand_dims(upstream, -1), 0.0)

        return ops.squeeze(ops.take_along_axis(logits, index, axis=-1), -1), gradient

    return look_up(logits)


def token_weights(labels: Any, sample_weight: Any = None) -> Any:
    """How much each position counts: 0 for padding (label 0), else 1 or its sample weight.

    Args:
        labels: int (B, T).
        sample_weight: None, or float (B,), (B, 1) or (B, T).

    Returns:
        float32 (B, T).
    """
    weights = ops.cast(ops.not_equal(labels, 0), "float32")  # (B, T)
    if sample_weight is None:
        return weights
    sample_weight = ops.cast(sample_weight, "float32")
    if len(sample_weight.shape) == 1:
        sample_weight = ops.expand_dims(sample_weight, 1)  # (B, 1)
    return weights * sample_weight


def expected_risk(labels: Any, logits: Any, costs: Any) -> Any:
    """What the outputs that a model chooses among are expected to cost: minimum risk training.

        risk = sum_k Q(k) cost_k    with    Q(k) = P(y_k | x) / sum_j P(y_j | x)

    over K candidates y_k of each source, such as the K best of a search. Where cross-entropy knows one good
    output, this compares outputs of the model's own with each other, by whatever cost: its gradient makes
    candidates more probable that cost less than is expected, and the others less.

    Args:
        labels: int (B, K, T), the candidates, padded with 0. One of nothing but padding is none.
        logits: Float (B, K, T, V), from teacher forcing.
        costs: Float (B, K).

    Returns:
        float32 (B,); 0 for a source without candidates.

    Example:
        >>> labels = ops.array([[[1], [2]]])
        >>> logits = ops.log(ops.array([[[[0.2, 0.6, 0.2]], [[0.2, 0.6, 0.2]]]]))
        >>> risk = expected_risk(labels, logits, ops.array([[0.0, 1.0]]))  # Q is 3/4 and 1/4
        >>> round(float(risk[0]), 6)
        0.25

    Reference:
        Shen et al. 2016, "Minimum Risk Training for Neural Machine Translation", section 3; Edunov et al.
        2018, "Classical Structured Prediction Losses for Sequence to Sequence Learning", section 3.2.
    """
    real = ops.not_equal(labels, 0)  # (B, K, T)
    losses = ops.where(real, token_crossentropy(labels, logits), 0.0)
    chosen = attention_weights(-ops.sum(losses, axis=-1), ops.any(real, axis=-1))  # Q: (B, K)
    return ops.sum(chosen * ops.cast(costs, "float32"), axis=-1)
