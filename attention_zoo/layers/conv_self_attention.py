"""Self-attention over the positions of a feature map."""

import functools
from typing import Any

import keras
from keras import ops

from attention_zoo.layers.dropout import Dropout
from attention_zoo.ops import attention as attention_ops
from attention_zoo.ops import masks, scores
from attention_zoo.ops.linear import linear


@keras.saving.register_keras_serializable(package="attention_zoo")
class ConvSelfAttention(keras.layers.Layer):
    """Lets every position of a feature map see all others: the self-attention of SAGAN.

    With x_i the C channels of position i, one of H x W,

        e_ij = (W_q x_i)' (W_k x_j)
        a_ij = softmax over all j of e_ij
        y_i  = x_i + gamma W_o (sum over j of a_ij W_v x_j)

    gamma is a learned number, 0 at first: a new layer passes its input on, and can be put between the
    convolutions of a trained network without harm. Each W is a convolution of 1 x 1. The spectral
    normalization of the paper's GAN is not a part of this layer.

    There are (H W)^2 weights, kept for the backward pass; `downsample` divides them by its square.

    Args:
        key_dim: Width in which positions are compared; C // 8 if None, as in the paper.
        value_dim: Width of what is averaged; C // 2 if None, as in the authors' code (in the paper, C // 8).
            Both are at least 1.
        scale: Whether to divide e_ij by the root of `key_dim`. The paper does not.
        downsample: Keys and values are those of windows of this many positions in height and width: of
            each channel the largest value. The authors' code has 2, the formula above 1. Windows that
            reach over the right or lower edge hold what is there.
        use_bias: Whether the four projections have biases. The paper's have none.
        dropout: Part of the attention weights to drop in training.
        seed: Seed of the dropout; None draws one from Keras' global generator.
        **kwargs: `name`, `dtype` and so on, see `keras.layers.Layer`.

    Call arguments:
        x: Float (B, H, W, C); H and W may be unknown when traced.
        mask: Boolean (B, H, W), False at positions that no position may attend to, such as the padding of
            smaller images in a batch. Keras fills it in from the input's own mask. Where nothing is left,
            the average is zero.
        return_attention_scores: Whether to return the weights besides the output.
        training: Whether to drop weights.

    Returns:
        Float (B, H, W, C) in the compute dtype; with `return_attention_scores`, a pair of it and the
        weights, float32 (B, H * W, H * W), as they are before dropout: one row for each position that
        looks, positions counted row by row. With `downsample` d the last axis counts windows,
        ceil(H / d) * ceil(W / d).

    Raises:
        ValueError: If a size is not positive, the input is no feature map of known width, or the mask is
            not boolean or does not fit it.

    Example:
        >>> layer = ConvSelfAttention(downsample=2)
        >>> y, weights = layer(ops.ones((1, 4, 6, 16)), return_attention_scores=True)
        >>> y.shape, weights.shape
        (TensorShape([1, 4, 6, 16]), TensorShape([1, 24, 6]))

    Reference:
        Zhang et al. 2019, "Self-Attention Generative Adversarial Networks", section 3.
    """

    def __init__(
        self,
        key_dim: int | None = None,
        value_dim: int | None = None,
        scale: bool = False,
        downsample: int = 1,
        use_bias: bool = False,
        dropout: float = 0.0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, size in (("key_dim", key_dim), ("value_dim", value_dim), ("downsample", downsample)):
            if not (isinstance(size, int) and size >= 1) and (size is not None or name == "downsample"):
                raise ValueError(
                    f"ConvSelfAttention: expected {name} of at least 1, an integer, received {size}."
                )
        self.key_dim = key_dim
        self.value_dim = value_dim
        self.scale = scale
        self.downsample = downsample
        self.use_bias = use_bias
        self.dropout = dropout
        self.seed = seed
        self.weight_dropout = Dropout(dropout, seed=seed, dtype="float32", name="dropout")
        self.supports_masking = True

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Makes the weights for inputs of this width."""
        if len(input_shape) != 4 or input_shape[-1] is None:
            raise ValueError(
                "ConvSelfAttention: expected a feature map of shape (batch, height, width, channels) with "
                f"known channels, received {tuple(input_shape)}. Reshape it."
            )
        channels = input_shape[-1]
        self.input_spec = keras.layers.InputSpec(ndim=4, axes={-1: channels})
        key_dim = max(1, channels // 8) if self.key_dim is None else self.key_dim
        value_dim = max(1, channels // 2) if self.value_dim is None else self.value_dim
        shapes = {
            "query": (channels, key_dim),
            "key": (channels, key_dim),
            "value": (channels, value_dim),
            "output": (value_dim, channels),
        }
        for name, shape in shapes.items():
            kernel = self.add_weight(shape, "glorot_uniform", name=f"{name}_kernel")
            setattr(self, f"{name}_kernel", kernel)
            if self.use_bias:
                setattr(self, f"{name}_bias", self.add_weight(shape[1:], "zeros", name=f"{name}_bias"))
        self.gamma = self.add_weight((), "zeros", name="gamma")

    def call(
        self,
        x: Any,
        mask: Any = None,
        return_attention_scores: bool = False,
        training: bool | None = None,
    ) -> Any:
        """Attends; see the class."""
        self._check_mask(x, mask)
        batch, height, width, channels = ops.shape(x)
        flat = ops.reshape(x, (batch, height * width, channels))  # (B, H * W, C)
        query = self._projected(flat, "query")  # (B, H * W, key_dim)
        memory = self._projected(flat, "key", "value")  # (B, H * W, key_dim + value_dim)
        if self.downsample > 1:
            memory = ops.reshape(memory, (batch, height, width, memory.shape[-1]))  # (B, H, W, ...)
            memory, mask = _largest(memory, mask, self.downsample)
            rows, columns, both = ops.shape(memory)[1:]
            memory = ops.reshape(memory, (batch, rows * columns, both))  # (B, S, key_dim + value_dim)
        key, value = ops.split(memory, [query.shape[-1]], axis=-1)
        if mask is not None:
            mask = masks.combine_masks(ops.reshape(mask, ops.shape(memory)[:2]))  # (B, 1, S)

        score = scores.scaled_dot_scores if self.scale else scores.dot_scores
        dropout = functools.partial(self.weight_dropout, training=training)
        average, weights = attention_ops.attend(score(query, key), value, mask, dropout)
        attended = ops.reshape(self._projected(average, "output"), (batch, height, width, channels))
        y = x + ops.cast(self.gamma, x.dtype) * attended  # (B, H, W, C)
        return (y, weights) if return_attention_scores else y

    def _projected(self, x: Any, *names: str) -> Any:
        """The projections of these names, side by side: (B, S, D) -> (B, S, sum of the widths)."""

        def joined(kind: str) -> Any:
            weights = [ops.cast(getattr(self, f"{name}_{kind}"), x.dtype) for name in names]
            return ops.concatenate(weights, axis=-1)

        return linear(x, joined("kernel"), joined("bias") if self.use_bias else None)

    def _check_mask(self, x: Any, mask: Any) -> None:
        if mask is None:
            return
        dtype, shape = keras.backend.standardize_dtype(mask.dtype), tuple(mask.shape)
        sizes = zip(shape, x.shape, strict=False)
        if dtype != "bool" or len(shape) != 3 or any(None not in (a, b) and a != b for a, b in sizes):
            raise ValueError(
                "ConvSelfAttention: expected a boolean mask (B, H, W), True where attention is allowed, for "
                f"an input of shape {tuple(x.shape)}; received dtype {dtype} and shape {shape}. If 1 means "
                "attend, pass `mask != 0`."
            )

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "key_dim": self.key_dim,
            "value_dim": self.value_dim,
            "scale": self.scale,
            "downsample": self.downsample,
            "use_bias": self.use_bias,
            "dropout": self.dropout,
            "seed": self.seed,
        }


def _largest(x: Any, mask: Any, size: int) -> tuple[Any, Any]:
    """The largest allowed values of each window: (B, H, W, D) -> (B, H / size, W / size, D), rounded up.

    Also returns which windows hold anything allowed; the others are 0. Not `keras.ops.max_pool`, which
    knows no mask, and with padding "same" moves the windows when the sizes change.
    """
    batch, height, width, depth = ops.shape(x)
    if mask is None:
        mask = ops.ones((batch, height, width), "bool")
    edges = [[0, 0], [0, -height % size], [0, -width % size]]
    x, mask = ops.pad(x, [*edges, [0, 0]]), ops.pad(mask, edges)
    rows, columns = (ops.shape(x)[axis] // size for axis in (1, 2))
    x = ops.reshape(x, (batch, rows, size, columns, size, depth))  # (B, rows, size, columns, size, D)
    mask = ops.reshape(mask, (batch, rows, size, columns, size, 1))  # (B, rows, size, columns, size, 1)
    largest = ops.max(ops.where(mask, x, float("-inf")), axis=(2, 4))  # (B, rows, columns, D)
    some = ops.any(mask, axis=(2, 4))  # (B, rows, columns, 1)
    return ops.where(some, largest, 0.0), ops.squeeze(some, -1)
