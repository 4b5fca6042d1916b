"""Finds what is wrong with an exported version before a server loads it."""

import pathlib
import re
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from export.session import Answer, Request, run_requests
from export.warmup import read_warmup
from gaternet_tf.errors import UserError
from gaternet_tf.manifest import checksums, read_manifest

RANDOM = re.compile(
    r"Random|Multinomial|Rng|Dropout|TruncatedNormal|Shuffle|NonDeterministic|Distorted"
    r"|CandidateSampler|Stateful(Standard|Uniform|Truncated)"
)
"""Operations whose answers do not repeat."""
PREDICTION = {"probabilities": tf.float32, "class_ids": tf.int64, "labels": tf.string}
WITH_GATES = {**PREDICTION, "gates": tf.uint8}
CONTRACT = {
    "serving_default": ("predict", {"images": tf.uint8}, PREDICTION),
    "image_bytes": ("predict", {"image_bytes": tf.string}, PREDICTION),
    "classify": ("classify", {"inputs": tf.string}, {"classes": tf.string, "scores": tf.float32}),
    "gates": ("predict", {"images": tf.uint8}, WITH_GATES),
    "gates_bytes": ("predict", {"image_bytes": tf.string}, WITH_GATES),
}
"""Method, inputs and outputs of each signature."""
TOLERANCE = 1e-5


def problems_of(version_dir: pathlib.Path) -> list[str]:
    """Returns everything that is wrong with a version, a sentence each; empty for a good one.

    First the files must be those of the manifest, then the graph must have the signatures of the
    contract and no operation that servers cannot run or that is random. Then a new process loads
    the version as a server does and replays the warm-up file twice: the answers must repeat to
    the bit and agree with each other and with the manifest.
    """
    try:
        manifest = read_manifest(version_dir)
    except UserError as error:
        return [str(error)]
    if problems := list(_changed_files(checksums(version_dir), manifest["sha256"])):
        return problems
    graph = read_meta_graph(version_dir)
    if problems := [*_broken_contract(graph, manifest), *_unfit_operations(graph)]:
        return problems
    records = read_warmup(version_dir)
    if missing := CONTRACT.keys() - {record.signature for record in records}:
        return [f"the warm-up file has no record for {', '.join(sorted(missing))}"]
    try:
        answers = run_requests([*records, *records])
    except RuntimeError as error:
        return [f"a server cannot load it: {error}"]
    return list(_wrong_answers(records, answers, manifest))


def read_meta_graph(version_dir: pathlib.Path) -> meta_graph_pb2.MetaGraphDef:
    """Reads the graph of a version, with its signatures."""
    content = (version_dir / "saved_model.pb").read_bytes()
    return saved_model_pb2.SavedModel.FromString(content).meta_graphs[0]


def _changed_files(present, recorded) -> Iterator[str]:
    """Yields files whose checksums differ from the manifest's."""
    for name in sorted(present.keys() | recorded.keys()):
        if name not in present:
            yield f"{name} is missing"
        elif name not in recorded:
            yield f"{name} is not in the manifest"
        elif present[name] != recorded[name]:
            yield f"{name} was changed: its checksum is not the manifest's"


def _broken_contract(graph, manifest) -> Iterator[str]:
    """Yields differences from the signatures that every export has."""
    present = {name for name in graph.signature_def if not name.startswith("__saved_model")}
    if present != set(CONTRACT):
        yield f"the signatures must be {sorted(CONTRACT)}, and are {sorted(present)}"
        return
    image = [manifest["preprocessing"][side] for side in ("height", "width", "channels")]
    for name, (method, inputs, outputs) in CONTRACT.items():
        signature = graph.signature_def[name]
        if signature.method_name != f"tensorflow/serving/{method}":
            yield f"{name}: its method must be {method}, not {signature.method_name}"
        for required, infos in ((inputs, signature.inputs), (outputs, signature.outputs)):
            types = {key: tf.dtypes.as_dtype(info.dtype) for key, info in infos.items()}
            if types != required:
                yield f"{name}: it must have {required}, not {types}"
        for key, info in signature.inputs.items():
            shape = [dim.size for dim in info.tensor_shape.dim]
            if shape != ([-1, *image] if key == "images" else [-1]):
                yield f"{name}: '{key}' has shape {shape}"


def _unfit_operations(graph) -> Iterator[str]:
    """Yields operations that are random, that run Python, or that XLA would have to compile."""
    library = graph.graph_def.library.function
    nodes = [*graph.graph_def.node, *(node for function in library for node in function.node_def)]
    for name in sorted({node.op for node in nodes}):
        if RANDOM.search(name):
            yield f"operation {name} is random"
        if "PyFunc" in name:
            yield f"operation {name} runs Python"
    compiled = {node.name for node in nodes if node.attr["_XlaMustCompile"].b}
    compiled |= {each.signature.name for each in library if each.attr["_XlaMustCompile"].b}
    for name in sorted(compiled):
        yield f"{name} has jit_compile=True, and a model server has XLA switched off"


def _wrong_answers(records: list[Request], answers: list[Answer], manifest) -> Iterator[str]:
    """Yields requests that fail, do not repeat, or contradict each other or the manifest."""
    labels = np.array([label.encode() for label in manifest["labels"]], object)
    scores_of_size: dict[int, np.ndarray] = {}
    again = answers[len(records) :]
    for number, (record, first, second) in enumerate(zip(records, answers, again, strict=False)):
        name = f"warm-up record {number + 1} ({record.signature})"
        if error := first.error or second.error:
            yield f"{name} fails: {error}"
            continue
        outputs = first.outputs
        if not all(np.array_equal(outputs[key], second.outputs[key]) for key in outputs):
            yield f"{name} gets another answer the second time"
        scores = outputs["scores" if record.signature == "classify" else "probabilities"]
        rows = len(scores)
        if scores.shape != (rows, len(labels)):
            yield f"{name}: {scores.shape[1:]} scores for {len(labels)} labels"
            continue
        if not np.allclose(scores.sum(axis=1), 1.0, atol=1e-4):
            yield f"{name}: its probabilities do not sum up to 1"
        best = scores.argmax(axis=1)
        every_label = np.tile(labels, (rows, 1))
        for key, expected in {
            "class_ids": best,
            "labels": labels[best],
            "classes": every_label,
        }.items():
            if key in outputs and not np.array_equal(outputs[key], expected):
                yield f"{name}: its {key} are not those of its probabilities and the manifest"
        if "gates" in outputs:
            gates, shape = outputs["gates"], (rows, manifest["gates"]["count"])
            if gates.shape != shape or (gates > 1).any():
                yield f"{name}: its gates must be 0 or 1 and have the shape {shape}"
        # Records of the same size hold the same pictures.
        earlier = scores_of_size.setdefault(rows, scores)
        if not np.allclose(scores, earlier, atol=TOLERANCE):
            yield f"{name}: its probabilities differ from another signature's"
