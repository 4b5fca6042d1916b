"""Finds what is wrong with an exported version before a server loads it."""

import pathlib
import re
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

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
    "classify": (
        "classify",
        {"inputs": tf.string},
        {"classes": tf.string, "scores": tf.float32},
    ),
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
        problems = _changed_files(checksums(version_dir), manifest["sha256"])
        if problems:
            return problems
        graph = read_meta_graph(version_dir)
    except (UserError, ValueError) as error:
        return [str(error)]
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


def read_meta_graph(version_dir: pathlib.Path):
    """Reads the graph that a server loads: the one with exactly the tag {serve}.

    Raises:
      ValueError: when saved_model.pb has no such graph.
    """
    try:
        saved = saved_model_pb2.SavedModel.FromString((version_dir / "saved_model.pb").read_bytes())
    except (DecodeError, OSError) as error:
        raise ValueError(f"saved_model.pb cannot be read ({error})") from error
    tags = [set(graph.meta_info_def.tags) for graph in saved.meta_graphs]
    if {"serve"} not in tags:
        raise ValueError(f"saved_model.pb has no graph tagged exactly {{serve}}, but {tags}")
    return saved.meta_graphs[tags.index({"serve"})]


def _changed_files(present, recorded):
    problems = [f"{name} is missing" for name in sorted(recorded.keys() - present.keys())]
    problems += [
        f"{name} is not in the manifest" for name in sorted(present.keys() - recorded.keys())
    ]
    for name in sorted(present.keys() & recorded.keys()):
        if present[name] != recorded[name]:
            problems.append(f"{name} was changed: its checksum is not the manifest's")
    return problems


def _broken_contract(graph, manifest) -> Iterator[str]:
    """Yields differences from the signatures that every export has."""
    signatures = {
        name: signature
        for name, signature in graph.signature_def.items()
        if not name.startswith("__saved_model")
    }
    if set(signatures) != set(CONTRACT):
        yield f"the signatures must be {sorted(CONTRACT)}, and are {sorted(signatures)}"
        return
    preprocessing = manifest["preprocessing"]
    image = [preprocessing[side] for side in ("height", "width", "channels")]
    for name, (method, inputs, outputs) in CONTRACT.items():
        signature = signatures[name]
        if signature.method_name != f"tensorflow/serving/{method}":
            yield f"{name}: its method must be {method}, not {signature.method_name}"
        for required, present in ((inputs, signature.inputs), (outputs, signature.outputs)):
            types = {key: tf.dtypes.as_dtype(info.dtype) for key, info in present.items()}
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
    labels = len(manifest["labels"])
    scores_of_size: dict[int, np.ndarray] = {}
    for number, record in enumerate(records):
        name = f"warm-up record {number + 1} ({record.signature})"
        first, second = answers[number], answers[number + len(records)]
        if error := first.error or second.error:
            yield f"{name} fails: {error}"
            continue
        pairs = zip(first.outputs.values(), second.outputs.values(), strict=True)
        if not all(np.array_equal(*pair) for pair in pairs):
            yield f"{name} gets another answer the second time"
        scores = first.outputs["scores" if record.signature == "classify" else "probabilities"]
        if scores.shape[1:] != (labels,):
            yield f"{name}: {scores.shape[1:]} scores for {labels} labels"
            continue
        if not np.allclose(scores.sum(axis=1), 1.0, atol=1e-4):
            yield f"{name}: its probabilities do not sum up to 1"
        for text in _contradictions(first.outputs, scores, manifest):
            yield f"{name}: {text}"
        # Records of the same size hold the same pictures.
        expected = scores_of_size.setdefault(len(scores), scores)
        if not np.allclose(scores, expected, atol=TOLERANCE):
            yield f"{name}: its probabilities differ from another signature's"


def _contradictions(outputs, scores, manifest) -> Iterator[str]:
    """Yields what an answer says otherwise than its probabilities or the manifest."""
    labels = [label.encode() for label in manifest["labels"]]
    best = scores.argmax(axis=1)
    if "labels" in outputs and outputs["labels"].tolist() != [labels[index] for index in best]:
        yield "its labels are not those of the manifest"
    if "class_ids" in outputs and outputs["class_ids"].tolist() != best.tolist():
        yield "its class_ids are not the most probable classes"
    if "classes" in outputs and any(row != labels for row in outputs["classes"].tolist()):
        yield "its classes are not the labels of the manifest"
    if "gates" in outputs:
        gates, count = outputs["gates"], manifest["gates"]["count"]
        if gates.shape[1:] != (count,):
            yield f"it has gates of shape {gates.shape[1:]}, and the manifest {count}"
        elif gates.size and gates.max() > 1:
            yield "its gates are not 0 or 1"
