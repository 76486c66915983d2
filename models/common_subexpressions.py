"""SavedModels with fewer nodes, which load faster."""

import collections
import pathlib
import re
from collections.abc import Collection, Hashable

from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

# What sizes are computed with: nearly all that a function has more than once, most of all the constants that
# say which part of a shape is meant.
_MERGED = frozenset({"Const", "Shape", "StridedSlice", "Pack", "Prod", "GatherV2", "ConcatV2"})


def merge(folder: pathlib.Path) -> None:
    """Leaves one of the nodes that compute the same in each function of a SavedModel.

    For every node of every function that it loads, TensorFlow makes an object in Python, and there are five
    nodes for each size that is only known when the function is called: of the 16,000 nodes of a small
    Transformer half are equal to others. TensorFlow merges them as well, but after they are loaded.

    Args:
        folder: Of the SavedModel. Only its program is written anew; what it computes stays the same.
    """
    path = folder / "saved_model.pb"
    saved = SavedModel.FromString(path.read_bytes())
    for graph in saved.meta_graphs:
        # What a function's own gradient reads from another function is looked up there by name.
        read = collections.defaultdict(set)
        for thing in graph.object_graph_def.nodes:
            tensor = thing.captured_tensor  # empty, if it is something else
            read[tensor.concrete_function].add(tensor.name.partition(":")[0])
        for function in graph.graph_def.library.function:
            _merge_nodes(function, read[function.signature.name])
    path.write_bytes(saved.SerializeToString(deterministic=True))
    _renew_fingerprint(folder)


def _merge_nodes(function: FunctionDef, read: Collection[str] = ()) -> None:
    """Merges the nodes of one function, but for those that others read by name."""
    # And for those whose place on a device another node asks for.
    named = set(read) | {
        name.removeprefix(b"loc:@").decode()
        for node in function.node_def
        if "_class" in node.attr  # asked first: to look up what is missing would write it
        for name in node.attr["_class"].list.s
    }
    first: dict[Hashable, str] = {}
    merged: dict[str, str] = {}
    for node in function.node_def:
        _rename_inputs(node, merged)
        if node.op in _MERGED and node.name not in named:
            kept = first.setdefault(_computation(node), node.name)
            if kept != node.name:
                merged[node.name] = kept
    for node in function.node_def:  # again, as a node may stand before those that it reads from
        _rename_inputs(node, merged)
    for results in (function.ret, function.control_ret):
        for name, result in list(results.items()):
            results[name] = _renamed(result, merged)
    for index in reversed(range(len(function.node_def))):
        if function.node_def[index].name in merged:
            del function.node_def[index]


def _rename_inputs(node: NodeDef, merged: dict[str, str]) -> None:
    inputs = [_renamed(text, merged) for text in node.input]
    if inputs != list(node.input):
        node.input[:] = [text for text in inputs if text[0] != "^"]
        node.input.extend(dict.fromkeys(text for text in inputs if text[0] == "^"))  # once each


def _computation(node: NodeDef) -> Hashable:
    """What a node computes: equal for nodes that can take each other's place."""
    attributes = {name: value.SerializeToString(deterministic=True) for name, value in node.attr.items()}
    return node.op, node.device, tuple(node.input), frozenset(attributes.items())


def _renamed(text: str, merged: dict[str, str]) -> str:
    """What a node reads ("node:output:index") or waits for ("^node"), of the node that is left."""
    mark, node, output = re.fullmatch(r"(\^?)([^:]+)(.*)", text).groups()
    return f"{mark}{merged.get(node, node)}{output}"


def _renew_fingerprint(folder: pathlib.Path) -> None:
    """Writes the fingerprint of what is there now, or leaves none: a wrong one would be worse."""
    (folder / "fingerprint.pb").unlink(missing_ok=True)
    try:  # no public function writes it
        from tensorflow.python.saved_model.fingerprinting_utils import write_fingerprint
    except ImportError:
        return
    write_fingerprint(str(folder))
