"""The recurrent models once more, in plain NumPy: one sentence and one position at a time, no padding.

They read the weights of the layers that they check, by name, and share no other code with them.
"""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    x = np.exp(x - x.max())
    return x / x.sum()


def array(x):
    return x.numpy().astype("float64")


def dense(layer, x):
    """The product and bias of a `keras.layers.Dense`, without its activation."""
    return x @ array(layer.kernel) + (array(layer.bias) if layer.use_bias else 0)


def gru_step(cell, x, state):
    (h,) = state
    x_z, x_r, x_n = np.split(x, 3)
    U_z, U_r, U_n = np.split(array(cell.recurrent_kernel), 3, axis=1)
    z = sigmoid(x_z + h @ U_z)
    r = sigmoid(x_r + h @ U_r)
    n = np.tanh(x_n + r * (h @ U_n + array(cell.candidate_bias)))
    return (z * h + (1 - z) * n,)


def lstm_step(cell, x, state):
    h, c = state
    x_i, x_f, x_o, x_g = np.split(x, 4)
    U_i, U_f, U_o, U_g = np.split(array(cell.recurrent_kernel), 4, axis=1)
    c = sigmoid(x_f + h @ U_f + 1) * c + sigmoid(x_i + h @ U_i) * np.tanh(x_g + h @ U_g)
    return sigmoid(x_o + h @ U_o) * np.tanh(c), c


def cell_step(cell, x, state):
    return {1: gru_step, 2: lstm_step}[cell.state_parts](cell, x, state)


def read(recurrent, xs):
    """Outputs (L, D) and last states (D,) of a `Recurrent` for one sequence (L, Dx)."""
    outputs, last = [], []
    for direction, (projection, cell) in enumerate(zip(recurrent.projections, recurrent.cells, strict=True)):
        state = (np.zeros(cell.units),) * cell.state_parts
        hidden = []
        for x in xs[::-1] if direction else xs:
            state = cell_step(cell, dense(projection, x), state)
            hidden.append(state[0])
        outputs.append(hidden[::-1] if direction else hidden)
        last.append(state[0])
    return np.concatenate(outputs, axis=-1), np.concatenate(last)


def encode(encoder, ids):
    """Annotations (L, D) and summary (D,) of an `RNNEncoder` for the ids (L,) of one sentence."""
    values = array(encoder.embedding.embeddings)[ids] * encoder.embedding_dim**0.5
    for recurrent in encoder.recurrent:
        values, summary = read(recurrent, values)
    return values, summary


def attend(attention, query, values):
    """Context and weights of additive attention or of Luong's general one, for one query."""
    W = array(attention.W)
    if hasattr(attention, "U"):
        hidden = np.tanh(query @ W + values @ array(attention.U))
        weights = softmax(hidden @ array(attention.v))
    else:
        weights = softmax(np.array([query @ W @ value for value in values]))
    return weights @ values, weights


def decode(decoder, target, values, summary):
    """Logits (T, V) and attention (T, S), or None, of an `RNNDecoder` for one sentence."""
    embeddings = array(decoder.embedding.embeddings)
    output_kernel = embeddings if decoder.tie_embeddings else array(decoder.output_kernel)
    after = decoder.attention is not None and decoder.query_state == "current"
    before = decoder.attention is not None and not after

    starts = [np.tanh(dense(bridge, summary)) for bridge in decoder.bridges]
    parts = len(starts) // decoder.layers
    states = [tuple(starts[i * parts : (i + 1) * parts]) for i in range(decoder.layers)]
    context, readout = summary, np.zeros(decoder.readout_units)
    logits, attention = [], []
    for token in target:
        y = embeddings[token] * decoder.embedding_dim**0.5
        if before:
            context, weights = attend(decoder.attention, states[-1][0], values)
        x = dense(decoder.token_projection, y)
        x = x + dense(decoder.context_projection, readout if after else context)
        for i, cell in enumerate(decoder.cells):
            if i > 0:
                x = dense(decoder.layer_projections[i - 1], states[i - 1][0])
            states[i] = cell_step(cell, x, states[i])
        s = states[-1][0]
        if after:
            context, weights = attend(decoder.attention, s, values)
        readout = dense(decoder.readout, np.concatenate([s, context] if after else [s, context, y]))
        if decoder.readout_activation == "maxout":
            readout = np.maximum(*np.split(readout, 2))
        else:
            readout = np.tanh(readout)
        logits.append(output_kernel @ readout + array(decoder.output_bias))
        if before or after:
            attention.append(weights)
    return np.array(logits), np.array(attention) if attention else None
