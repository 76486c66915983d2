import keras
import numpy as np
import pytest
import tensorflow as tf
from small_models import V, make_batch

from attention_zoo.models import EncoderDecoder, TransformerDecoder, TransformerEncoder, parallel_rows

SIZES = {"layers": 1, "units": 8, "num_heads": 2, "feed_forward_units": 8}
SETTINGS = {
    "greedy": {"forced_prefix": [[5], [6], [0], [4]], "limits": [4, 3, 2, 0]},
    "beams": {"beams": 2, "n_best": 2, "length_penalty": 1.0, "return_attention": True},
    "samples": {"sample": True, "n_best": 2, "seed": [1, 2]},
}


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(1)
    model = EncoderDecoder(TransformerEncoder(V, **SIZES), TransformerDecoder(V, **SIZES))
    model.build()
    return model


@pytest.fixture
def set_cores(monkeypatch):
    monkeypatch.setattr(parallel_rows, "SMALLEST_PART", 1)
    return lambda count: monkeypatch.setattr(parallel_rows, "parts_at_once", lambda: count)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_parts_make_the_batch(model, set_cores, settings):
    source, results = make_batch(rows=4, empty=1)[1], []
    for cores in (1, 2):
        set_cores(cores)
        results.append(model.generate(source, max_length=4, **settings))
    assert {key[0] for key in model._searches.by_settings} == {1, 2}  # parts
    keras.tree.assert_same_structure(*results)
    for whole, parts in zip(*map(keras.tree.flatten, results), strict=True):
        assert (whole is None) == (parts is None)
        if whole is not None:
            np.testing.assert_allclose(whole, parts, atol=1e-5)


def test_no_part_waits_for_another(model):
    source = tf.constant(make_batch(rows=4, empty=0)[1])

    @tf.function(jit_compile=True, autograph=False)
    def decode(source):
        return model.decode({"max_length": 2, "beams": 2, "return_attention": False}, source)

    compute = parallel_rows.in_parts(decode, 2)
    graph = compute.get_concrete_function(source=source).graph
    calls = [op for op in graph.get_operations() if op.type.endswith("PartitionedCall")]
    assert len(calls) == 2
    for call in calls:
        assert not call.control_inputs
        assert {x.op.type for x in call.inputs} <= {"Placeholder", "Split"}  # weights, and rows of the source


@pytest.mark.parametrize(
    ("cores", "rows", "hypotheses", "parts"),
    [
        (2, 32, 1, 2),
        (2, 8, 1, 2),
        (2, 7, 1, 1),  # too few for two
        (2, 1, 8, 1),
        (2, 2, 4, 2),
        (4, 32, 1, 4),
        (4, 50, 1, 2),  # not 12 and 13
        (4, 51, 2, 3),
        (64, 32, 1, 8),
        (64, 32, 4, 32),
        (1, 32, 1, 1),
    ],
)
def test_count(model, monkeypatch, cores, rows, hypotheses, parts):
    monkeypatch.setattr(parallel_rows, "parts_at_once", lambda: cores)
    assert parallel_rows.count_parts(model.decoder, rows, hypotheses) == parts


def test_large_products_are_shared_out_already(monkeypatch):
    monkeypatch.setattr(parallel_rows, "parts_at_once", lambda: 2)
    counts = []
    for units in (2**15, 2**15 + 1):  # times 8
        sizes = {**SIZES, "feed_forward_units": units}
        model = EncoderDecoder(TransformerEncoder(V, **SIZES), TransformerDecoder(V, **sizes))
        model.build()
        counts.append(parallel_rows.count_parts(model.decoder, 32))
    assert counts == [2, 1]


@pytest.mark.parametrize("name", ["TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"])
def test_one_thread_computes_one_part(model, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert parallel_rows.count_parts(model.decoder, 32) == 1


def test_a_gpu_computes_one_part(model, monkeypatch):
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: ["GPU:0"] if kind == "GPU" else [])
    assert parallel_rows.count_parts(model.decoder, 32) == 1
