"""What can be wrong with an exported version, found out before a server does."""

import pathlib
import re

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.framework import op_def_pb2
from tensorflow_serving.apis import prediction_log_pb2

from export.manifest import checksums, strange_entries
from export.served import Answer, Request, Served
from export.warmup import FILE_NAME
from gaternet_tf.errors import UserError
from gaternet_tf.manifest import read_manifest

MAX_RECORDS = 1000
"""TensorFlow Serving refuses a version with more warm-up records."""
RANDOM = re.compile(
    r"Random|Multinomial|Rng|Dropout|TruncatedNormal|Shuffle|NonDeterministic|Distorted"
    r"|CandidateSampler|Stateful(Standard|Uniform|Truncated)"
)
PYTHON = re.compile(r"PyFunc")
ANSWER = {"probabilities": tf.float32, "class_ids": tf.int64, "labels": tf.string}
CONTRACT = {
    "serving_default": ("predict", {"images": tf.uint8}, ANSWER),
    "image_bytes": ("predict", {"image_bytes": tf.string}, ANSWER),
    "classify": (
        "classify",
        {"inputs": tf.string},
        {"classes": tf.string, "scores": tf.float32},
    ),
    "gates": ("predict", {"images": tf.uint8}, {**ANSWER, "gates": tf.uint8}),
}
"""Method, inputs and outputs of each signature."""
TOLERANCE = 1e-5


def problems_of(version_dir: pathlib.Path) -> list[str]:
    """Everything that is wrong with a version, a sentence each; empty if it is good.

    Checked are the manifest, the checksums of all files, and that there is nothing but files; the
    graph: signatures, operations that are not TensorFlow's own, random, Python's, or compiled by
    XLA; and, in a process that loads it by TensorFlow's C++ as a server does: loading, the replay
    of the warm-up file, and the answers of all signatures, which must repeat and agree with each
    other.
    """
    if strange := strange_entries(version_dir):
        # Nothing is opened then, neither here nor by TensorFlow: a pipe would keep it waiting.
        return strange
    try:
        manifest = read_manifest(version_dir)
        problems = _changed_files(version_dir, manifest["sha256"])
    except (UserError, OSError) as error:
        return [str(error)]
    try:
        served = Served(version_dir)
        records = read_warm_up(version_dir / "assets.extra" / FILE_NAME)
    except tf.errors.OpError as error:
        return [*problems, f"the warm-up file: {error.message.rpartition('}} ')[2]}"]
    except (ValueError, OSError) as error:
        return [*problems, str(error)]
    contract = _broken_contract(served.signatures(), manifest)
    if not contract:
        contract = _refused_records(records)
    problems += contract
    if not records:
        problems.append("the warm-up file has no record")
    if len(records) > MAX_RECORDS:
        problems.append(f"the warm-up file has {len(records)} records, more than {MAX_RECORDS}")
    if missing := sorted(set(CONTRACT) - {record.signature for record in records}):
        problems.append(f"the warm-up file has no record for {', '.join(missing)}")
    if contract:
        return problems
    try:
        answers = served.run([*records, *records])
    except (RuntimeError, KeyError) as error:
        return [*problems, f"the process that loads it failed: {error}"]
    problems += [f"a server cannot load it: {text}" for text in served.load_errors.values()]
    problems += _foreign_operations(served.meta_graphs[""], served.known_operations)
    if not served.load_errors:
        problems += _wrong_answers(records, answers, manifest)
    return problems


def _changed_files(directory, wanted):
    found = checksums(directory)
    problems = [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
    problems += [f"{name} is not in the manifest" for name in sorted(found.keys() - wanted.keys())]
    for name in sorted(found.keys() & wanted.keys()):
        if found[name] != wanted[name]:
            problems.append(f"{name} was changed: its checksum is not the manifest's")
    return problems


def _broken_contract(signatures, manifest):
    """Differences from the signatures that every export has."""
    problems = []
    if set(signatures) != set(CONTRACT):
        problems.append(f"the signatures must be {sorted(CONTRACT)}, and are {sorted(signatures)}")
    preprocessing = manifest["preprocessing"]
    image = [preprocessing[side] for side in ("height", "width", "channels")]
    for name in sorted(set(signatures) & set(CONTRACT)):
        method, *ends = CONTRACT[name]
        signature = signatures[name]
        if signature.method_name != f"tensorflow/serving/{method}":
            problems.append(f"{name}: its method must be {method}, not {signature.method_name}")
        for kind, wanted, found in zip(
            ("inputs", "outputs"), ends, (signature.inputs, signature.outputs), strict=True
        ):
            types = {key: tf.dtypes.as_dtype(info.dtype) for key, info in found.items()}
            if types != wanted:
                problems.append(f"{name}: its {kind} must be {wanted}, and are {types}")
        for key, info in signature.inputs.items():
            shape = [dim.size for dim in info.tensor_shape.dim]
            if shape != ([-1, *image] if key == "images" else [-1]):
                problems.append(f"{name}: '{key}' has shape {shape}")
    return problems


def read_warm_up(path: pathlib.Path) -> list[Request]:
    """The requests of a warm-up file.

    Raises:
      ValueError: for a record that TensorFlow Serving refuses.
      tf.errors.OpError: for a file that is none.
    """
    requests = []
    for number, record in enumerate(tf.data.TFRecordDataset(str(path)).as_numpy_iterator(), 1):
        try:
            log = prediction_log_pb2.PredictionLog.FromString(record)
        except DecodeError as error:
            raise ValueError(f"warm-up record {number} cannot be parsed ({error})") from error
        kind = log.WhichOneof("log_type")
        if kind == "predict_log":
            request = log.predict_log.request
            try:
                inputs = {key: tf.make_ndarray(value) for key, value in request.inputs.items()}
            except (TypeError, ValueError) as error:
                raise ValueError(f"warm-up record {number} holds no tensor ({error})") from error
        elif kind == "classify_log":
            request = log.classify_log.request
            examples = request.input.example_list.examples
            texts = [example.SerializeToString() for example in examples]
            inputs = {"inputs": np.array(texts, object)}
        else:
            raise ValueError(f"warm-up record {number} holds {kind}, which is not one of ours")
        requests.append(Request(request.model_spec.signature_name or "serving_default", inputs))
    return requests


def _refused_records(records):
    """Records that do not fit their signature; a server then refuses the whole version."""
    problems = []
    for number, record in enumerate(records, 1):
        name = f"warm-up record {number} ({record.signature})"
        if record.signature not in CONTRACT:
            problems.append(f"{name}: there is no such signature")
            continue
        wanted = CONTRACT[record.signature][1]
        types = {key: tf.dtypes.as_dtype(value.dtype) for key, value in record.inputs.items()}
        if types != wanted:
            problems.append(f"{name}: its inputs must be {wanted}, and are {types}")
        elif not len(next(iter(record.inputs.values()))):
            problems.append(f"{name}: it holds nothing")
    return problems


def _foreign_operations(meta_graph, known):
    """Operations that a model server has not, or that do not repeat."""
    own = {operation.name for operation in op_def_pb2.OpList.FromString(known).op}
    library = meta_graph.graph_def.library.function
    functions = {function.signature.name for function in library}
    nodes = list(meta_graph.graph_def.node)
    compiled = set()
    for function in library:
        nodes += function.node_def
        if function.attr["_XlaMustCompile"].b:
            compiled.add(function.signature.name)
    compiled |= {node.name for node in nodes if node.attr["_XlaMustCompile"].b}
    used = {node.op for node in nodes} - functions
    problems = [f"operation {name} is not TensorFlow's own" for name in sorted(used - own)]
    problems += [f"operation {name} is random" for name in sorted(used) if RANDOM.search(name)]
    problems += [f"operation {name} runs Python" for name in sorted(used) if PYTHON.search(name)]
    problems += [
        f"{name} has jit_compile=True, and a model server has XLA switched off"
        for name in sorted(compiled)
    ]
    return problems


def _wrong_answers(records, answers, manifest):
    """Requests that fail, do not repeat, contradict each other or are no probabilities."""
    problems = []
    labels = manifest["labels"]
    probabilities: dict[int, np.ndarray] = {}
    for number, (record, first, again) in enumerate(
        zip(records, answers[: len(records)], answers[len(records) :], strict=True), 1
    ):
        name = f"warm-up record {number} ({record.signature})"
        if first.error or again.error:
            problems.append(f"{name} fails: {first.error or again.error}")
            continue
        if not _same(first, again):
            problems.append(f"{name} gets another answer the second time")
        scores = first.outputs.get("probabilities", first.outputs.get("scores"))
        if scores.shape[1:] != (len(labels),):
            problems.append(f"{name}: {scores.shape[1:]} scores for {len(labels)} labels")
            continue
        if not np.allclose(scores.sum(axis=1), 1.0, atol=1e-4):
            problems.append(f"{name}: its probabilities do not sum up to 1")
        problems += [f"{name}: {text}" for text in _contradictions(first.outputs, scores, manifest)]
        # Records of as many pictures hold the same ones.
        same = probabilities.setdefault(len(scores), scores)
        if not np.allclose(scores, same, atol=TOLERANCE):
            problems.append(f"{name}: its probabilities differ from another signature's")
    return problems


def _contradictions(outputs, scores, manifest):
    """What an answer's parts say that its probabilities or the manifest do not."""
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


def _same(first: Answer, again: Answer) -> bool:
    return all(np.array_equal(value, again.outputs[key]) for key, value in first.outputs.items())
