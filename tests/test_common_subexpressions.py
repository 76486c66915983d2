"""SavedModels with fewer nodes: they compute what they did."""

import collections
import shutil
import sys

import numpy as np
import pytest
import tensorflow as tf

from attention_zoo.models import common_subexpressions


class Module(tf.Module):
    """Functions that ask for the same sizes again and again."""

    def __init__(self):
        super().__init__()
        self.count = tf.Variable(0)

    @tf.function(input_signature=[tf.TensorSpec([None, None])])
    def rows(self, x):
        rows, again = tf.shape(x)[0], tf.shape(x)[0]
        return {"sizes": tf.stack([rows, again]), "again": again, "wide": tf.reshape(x, [again, -1])}

    @tf.function(input_signature=[tf.TensorSpec([])])
    def loop(self, x):
        return tf.while_loop(lambda x: tf.less(x, 9.0), lambda x: (x + 2.0 + 2.0,), (x,))[0]

    @tf.function(input_signature=[tf.TensorSpec([])])
    def swish(self, x):
        # With a gradient of its own, which reads beta; and the same constant twice.
        return tf.while_loop(lambda x: x < 1.0, lambda x: (tf.nn.silu(x) + tf.nn.silu(x) + 0.5,), (x,))[0]

    @tf.function(input_signature=[])
    def counted(self):
        with tf.control_dependencies([self.count.assign_add(1), self.count.assign_add(1)]):
            first, second = tf.constant(5), tf.constant(5)
        return first + second + self.count


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The SavedModel as it was written, and with merged nodes."""
    folder = tmp_path_factory.mktemp("merged")
    tf.saved_model.save(Module(), folder / "before")
    shutil.copytree(folder / "before", folder / "after")
    common_subexpressions.merge(folder / "after")
    return folder / "before", folder / "after"


def nodes(folder):
    """The operations of each function."""
    saved = common_subexpressions.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    functions = saved.meta_graphs[0].graph_def.library.function
    return {
        function.signature.name: collections.Counter(node.op for node in function.node_def)
        for function in functions
    }


def test_results_stay_as_they_are(folders):
    x = tf.constant([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    for folder in folders:
        model = tf.saved_model.load(folder)
        found = model.rows(x)
        np.testing.assert_array_equal(found["sizes"], [3, 3])
        np.testing.assert_array_equal(found["again"], 3)
        np.testing.assert_array_equal(found["wide"], x)
        assert model.loop(tf.constant(0.0)).numpy() == 12.0
        np.testing.assert_allclose(model.swish(tf.constant(0.0)), 1.122459, atol=1e-6)
        assert [model.counted().numpy() for _ in range(2)] == [12, 14]


def test_equal_nodes_are_merged(folders):
    before, after = map(nodes, folders)
    (rows,) = (name for name in after if "_rows_" in name and "signature" not in name)
    (twice,) = (name for name in before if "_rows_" in name and "signature" not in name)
    assert before[twice]["Shape"] == before[twice]["StridedSlice"] == 2
    assert after[rows]["Shape"] == after[rows]["StridedSlice"] == 1
    assert after[rows]["Const"] < before[twice]["Const"]


def test_nodes_with_effects_stay(folders):
    before, after = map(nodes, folders)
    for operation in ("AssignAddVariableOp", "ReadVariableOp"):
        total = [sum(count[operation] for count in found.values()) for found in (before, after)]
        assert total[0] == total[1] > 0


def test_places_that_others_ask_for_stay():
    function = common_subexpressions.FunctionDef()
    for name in ("one", "two", "three"):
        function.node_def.add(name=name, op="Shape", input=["x"])
    function.node_def.add(name="near", op="Neg", input=["two:output:0", "^three", "^one"])
    function.node_def[-1].attr["_class"].list.s.append(b"loc:@two")
    function.ret["y"] = "three:output:0"
    function.control_ret["done"] = "three"
    common_subexpressions._merge_nodes(function)
    assert [node.name for node in function.node_def] == ["one", "two", "near"]
    assert list(function.node_def[-1].input) == ["two:output:0", "^one"]  # waited for once
    assert function.ret["y"] == "one:output:0"
    assert function.control_ret["done"] == "one"


def test_fingerprint_is_that_of_what_was_written(folders):
    before, after = (tf.saved_model.experimental.read_fingerprint(str(folder)) for folder in folders)
    assert before.saved_model_checksum != after.saved_model_checksum
    assert before.checkpoint_hash == after.checkpoint_hash


def test_fingerprint_is_left_out_where_nothing_writes_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow.python.saved_model.fingerprinting_utils", None)
    (tmp_path / "fingerprint.pb").write_bytes(b"of what was there")
    common_subexpressions._renew_fingerprint(tmp_path)
    assert not (tmp_path / "fingerprint.pb").exists()
