"""The Transformer once more, in plain NumPy: one sentence, one head and one query at a time, no padding.

Like `references`, it reads the weights of the layers that it checks, by name, and shares no other code
with them. Below it, PyTorch's Transformer with the same weights.
"""

import math

import keras
import numpy as np
from contracts import random
from references import array, dense, sigmoid, softmax

ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2,
    "silu": lambda x: x * sigmoid(x),  # the name that Keras gives to swish
}

# A value for every argument, none of them the default.
BLOCK_ARGUMENTS = {
    "num_heads": 4,
    "feed_forward_units": 5,
    "activation": keras.activations.silu,
    "normalize_first": True,
    "dropout": 0.1,
    "attention_dropout": 0.2,
    "activation_dropout": 0.3,
    "num_key_value_heads": 2,
    "rotary": True,
    "epsilon": 1e-3,
}
STACK_ARGUMENTS = {
    "vocabulary_size": 12,
    "layers": 3,
    "units": 8,
    "feed_forward_units": 5,
    "num_heads": 4,
    "positions": "learned",
    "max_positions": 7,
    "activation": keras.activations.silu,
    "normalize_first": True,
    "dropout": 0.25,
    "attention_dropout": 0.15,
    "activation_dropout": 0.05,
    "num_key_value_heads": 2,
    "scale_embeddings": False,
}


def config_round_trip(layer, arguments):
    """A copy made from the configuration of a layer that was made with these arguments."""
    copy = type(layer).from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
    assert {name: getattr(copy, name) for name in arguments} == arguments
    return copy


def normalize(layer, x):
    """A layer normalization of every row of (L, D)."""
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + layer.epsilon) * array(layer.gamma) + array(layer.beta)


def sinusoid(position, width, max_wavelength=10000, order="interleaved"):
    waves = [
        (math.cos if i % 2 else math.sin)(position / max_wavelength ** (2 * (i // 2) / width))
        for i in range(width)
    ]
    return waves if order == "interleaved" else waves[0::2] + waves[1::2]


def rotate(x, position):
    """Turns the pairs of (d,) as complex numbers."""
    pairs = x[0::2] + 1j * x[1::2]
    pairs = pairs * np.exp(1j * position / 10000 ** (np.arange(0, len(x), 2) / len(x)))
    return np.stack([pairs.real, pairs.imag], -1).ravel()


def attend(attention, queries, values, causal=False):
    """Output (T, D) and weights (H, T, S) of a `MultiHeadAttention`."""

    def projected(x, name):
        return x @ array(getattr(attention, f"{name}_kernel")) + array(getattr(attention, f"{name}_bias"))

    d, heads = attention.key_dim, attention.num_heads
    q, k, v = projected(queries, "query"), projected(values, "key"), projected(values, "value")
    outputs, weights = np.zeros((len(q), heads * d)), np.zeros((heads, len(q), len(k)))
    for h in range(heads):
        own = slice(h * d, (h + 1) * d)
        group = h * attention.num_key_value_heads // heads
        shared = slice(group * d, (group + 1) * d)
        for t in range(len(q)):
            seen = t + 1 if causal else len(k)
            query, keys = q[t, own], k[:seen, shared]
            if attention.rotary:
                query, keys = rotate(query, t), np.array([rotate(key, s) for s, key in enumerate(keys)])
            weights[h, t, :seen] = softmax(keys @ query / math.sqrt(d))
            outputs[t, own] = weights[h, t, :seen] @ v[:seen, shared]
    return projected(outputs, "output"), weights


def transform(layer, x):
    """A `FeedForward`."""
    return dense(layer.output_layer, ACTIVATIONS[layer.activation.__name__](dense(layer.hidden, x)))


def residual(block, x, sublayer, norm):
    if block.normalize_first:
        added, weights = sublayer(normalize(norm, x))
        return x + added, weights
    added, weights = sublayer(x)
    return normalize(norm, x + added), weights


def encoder_block(block, x):
    """Output (S, D) and weights (H, S, S)."""
    x, weights = residual(block, x, lambda x: attend(block.self_attention, x, x), block.self_attention_norm)
    x, _ = residual(block, x, lambda x: (transform(block.feed_forward, x), None), block.feed_forward_norm)
    return x, weights


def decoder_block(block, x, memory):
    """Output (T, D), weights (H, T, T) and (H, T, S)."""
    x, own = residual(
        block, x, lambda x: attend(block.self_attention, x, x, causal=True), block.self_attention_norm
    )
    x, cross = residual(
        block, x, lambda x: attend(block.cross_attention, x, memory), block.cross_attention_norm
    )
    x, _ = residual(block, x, lambda x: (transform(block.feed_forward, x), None), block.feed_forward_norm)
    return x, own, cross


def embed(stack, ids):
    x = array(stack.embedding.embeddings)[ids] * (stack.units**0.5 if stack.scale_embeddings else 1)
    if stack.positions == "sinusoidal":
        kind = stack.units, stack.max_wavelength, stack.position_order
        return x + np.array([sinusoid(position, *kind) for position in range(len(ids))])
    return x + array(stack.position.embeddings)[: len(ids)] if stack.positions == "learned" else x


def encode(encoder, ids):
    """Values (S, D), summary (D,) and attention (N, H, S, S) of a `TransformerEncoder` for one sentence."""
    x, attention = embed(encoder, ids), []
    for block in encoder.blocks:
        x, weights = encoder_block(block, x)
        attention.append(weights)
    if encoder.normalize_first:
        x = normalize(encoder.output_norm, x)
    return x, x.mean(axis=0), np.array(attention)


def decode(decoder, target, values):
    """Logits (T, V), attention to the memory (T, N, H, S) and to itself (T, N, H, T), for one sentence."""
    x, own, cross = embed(decoder, target), [], []
    for block in decoder.blocks:
        x, own_weights, cross_weights = decoder_block(block, x, values)
        own.append(own_weights)
        cross.append(cross_weights)
    if decoder.normalize_first:
        x = normalize(decoder.output_norm, x)
    kernel = decoder.embedding.embeddings if decoder.tie_embeddings else decoder.output_kernel
    logits = x @ array(kernel).T
    if decoder.output_bias:
        logits = logits + array(decoder.output_bias_vector)
    return logits, np.array(cross).transpose(2, 0, 1, 3), np.array(own).transpose(2, 0, 1, 3)


def draw_weights(stack):
    """Random weights, of a size that lets every input show in the output, in half precision too."""
    for index, weight in enumerate(stack.weights):
        value = random(*weight.shape, seed=index) / 2
        weight.assign(1 + value / 2 if weight.path.endswith("gamma") else value)
    return stack


# === PyTorch ===


def pytorch_block(torch, block, width):
    """A block of PyTorch's with the weights of ours, and pairs of weights, see `copy_weights`."""
    encoder = not hasattr(block, "cross_attention")
    layer = torch.nn.TransformerEncoderLayer if encoder else torch.nn.TransformerDecoderLayer
    other = layer(
        width,
        block.num_heads,
        block.feed_forward_units,
        dropout=0.0,
        activation=block.activation.__name__,
        norm_first=block.normalize_first,
        batch_first=True,
    )
    pairs = _block_pairs(block, other)
    assert len(pairs) == len(list(other.parameters()))
    return other, copy_weights(torch, pairs)


def pytorch_stack(torch, stack):
    """PyTorch's stack with the weights of ours, a function that embeds ids for it, and pairs of weights."""
    block, _ = pytorch_block(torch, stack.blocks[0], stack.units)
    encoder = isinstance(block, torch.nn.TransformerEncoderLayer)
    make = torch.nn.TransformerEncoder if encoder else torch.nn.TransformerDecoder
    norm = torch.nn.LayerNorm(stack.units) if stack.normalize_first else None
    arguments = {"enable_nested_tensor": False} if encoder else {}
    other = make(block, stack.layers, norm=norm, **arguments)
    embeddings = torch.zeros(stack.vocabulary_size, stack.units, requires_grad=True)
    pairs = [([stack.embedding.embeddings], embeddings)]
    for ours, theirs in zip(stack.blocks, other.layers, strict=True):
        pairs += _block_pairs(ours, theirs)
    if norm is not None:
        pairs += [([stack.output_norm.gamma], other.norm.weight), ([stack.output_norm.beta], other.norm.bias)]

    def embed(ids):
        positions = torch.tensor([sinusoid(position, stack.units) for position in range(ids.shape[1])])
        return embeddings[torch.from_numpy(ids).long()] * math.sqrt(stack.units) + positions

    return other, embed, copy_weights(torch, pairs)


def _block_pairs(ours, theirs):
    attentions = [(ours.self_attention, theirs.self_attn)]
    norms = [ours.self_attention_norm, ours.feed_forward_norm]
    if hasattr(ours, "cross_attention"):
        attentions.append((ours.cross_attention, theirs.multihead_attn))
        norms.insert(1, ours.cross_attention_norm)
    pairs = []
    for attention, other in attentions:
        inputs = ("query", "key", "value")
        pairs += [
            ([getattr(attention, f"{name}_kernel") for name in inputs], other.in_proj_weight),
            ([getattr(attention, f"{name}_bias") for name in inputs], other.in_proj_bias),
            ([attention.output_kernel], other.out_proj.weight),
            ([attention.output_bias], other.out_proj.bias),
        ]
    for layer, other in (
        (ours.feed_forward.hidden, theirs.linear1),
        (ours.feed_forward.output_layer, theirs.linear2),
    ):
        pairs += [([layer.kernel], other.weight), ([layer.bias], other.bias)]
    for number, norm in enumerate(norms, start=1):
        other = getattr(theirs, f"norm{number}")
        pairs += [([norm.gamma], other.weight), ([norm.beta], other.bias)]
    return pairs


def copy_weights(torch, pairs):
    """Copies the first of each pair, a list of weights of ours, to the second, PyTorch's that holds them."""
    with torch.no_grad():
        for ours, theirs in pairs:
            theirs.copy_(torch.from_numpy(_joined(ours, [weight.numpy() for weight in ours])))
    return pairs


def assert_same_gradients(weights, gradients, pairs):
    """Compares the gradients of all weights with those that PyTorch has computed."""
    found = {weight.path: np.asarray(gradient) for weight, gradient in zip(weights, gradients, strict=True)}
    assert sorted(found) == sorted(weight.path for ours, _ in pairs for weight in ours)
    for ours, theirs in pairs:
        gradient = _joined(ours, [found[weight.path] for weight in ours])
        np.testing.assert_allclose(gradient, theirs.grad.numpy(), atol=1e-4, rtol=1e-4, err_msg=ours[0].path)


def _joined(weights, arrays):
    """As PyTorch keeps them: a kernel is (outputs, inputs), those of query, key and value are one."""
    if weights[0].path.endswith("kernel"):
        arrays = [array.T for array in arrays]
    return np.concatenate(arrays)
