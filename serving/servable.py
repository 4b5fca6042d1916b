"""One version of a model, loaded and run as TensorFlow Serving does it: by a session."""

import pathlib
import re
from collections.abc import Callable

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from serving.errors import ServingError, invalid

DEFAULT_SIGNATURE = "serving_default"
NUMBER = re.compile(r"\s*[+-]?[0-9]+\s*")
CODES = {code.value[0]: code for code in grpc.StatusCode}


class ModelDirectoryError(Exception):
    """A base path that holds nothing to serve. The text says what is required and what came."""


def find_versions(base_path: pathlib.Path) -> dict[int, pathlib.Path]:
    """The version directories below a base path, by number as absl::SimpleAtoi reads it."""
    if not base_path.is_dir():
        raise ModelDirectoryError(
            f"--model_base_path must be a directory with a version such as {base_path}/1 in it, "
            f"and there is no directory '{base_path}'"
        )
    versions = {
        int(child.name): child for child in base_path.iterdir() if NUMBER.fullmatch(child.name)
    }
    if not versions:
        hint = ""
        if (base_path / "saved_model.pb").exists():
            hint = f"; it is a version itself, so give the directory above it: {base_path.parent}"
        raise ModelDirectoryError(
            f"--model_base_path must have a directory below it that is named by a number, and "
            f"'{base_path}' has none{hint}"
        )
    return versions


class Servable:
    """A loaded SavedModel.

    A session of TensorFlow 1 and not `tf.saved_model.load`, because it fails where the real
    server fails: on the signature's own tensors, with the kernels' own messages.

    Raises:
      ModelDirectoryError: when the directory cannot be loaded.
    """

    def __init__(self, directory: pathlib.Path, version: int):
        self.version = version
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        try:
            with self._session.graph.as_default():
                meta_graph = tf.compat.v1.saved_model.load(self._session, ["serve"], str(directory))
        except (OSError, RuntimeError, tf.errors.OpError) as error:
            self._session.close()
            raise ModelDirectoryError(
                f"version {version} must be a SavedModel tagged 'serve', and '{directory}' cannot "
                f"be loaded: {str(error).splitlines()[0]}"
            ) from error
        self.signatures = meta_graph.signature_def
        self._callables: dict[tuple, Callable] = {}

    def close(self) -> None:
        """Frees the session."""
        self._session.close()

    def predict(self, signature_name, inputs, output_filter=()) -> dict[str, np.ndarray]:
        """Runs a signature on TensorProtos, checked in the order in which the server checks.

        Returns:
          The outputs by name, all or those of `output_filter`.

        Raises:
          ServingError: with the server's code and words.
        """
        signature = self.signatures.get(signature_name)
        if signature is None:
            raise ServingError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f'Serving signature key "{signature_name}" not found.',
            )
        names = self._check_input_names(signature, inputs)
        arrays = [
            self._parse(alias, inputs[alias], signature.inputs[alias].dtype, position)
            for position, alias in enumerate(names)
        ]
        return self.run(signature_name, names, arrays, self._outputs(signature, output_filter))

    def run(self, signature_name, input_names, arrays, output_names) -> dict[str, np.ndarray]:
        """Runs a signature on arrays, which are not checked against its declared shapes."""
        key = (signature_name, tuple(input_names), tuple(output_names))
        if key not in self._callables:
            signature = self.signatures[signature_name]
            self._callables[key] = self._session.make_callable(
                [signature.outputs[name].name for name in output_names],
                feed_list=[signature.inputs[name].name for name in input_names],
            )
        try:
            values = self._callables[key](*arrays)
        except tf.errors.OpError as error:
            raise ServingError(CODES[error.error_code], error.message) from error
        return dict(zip(output_names, values, strict=True))

    @staticmethod
    def _check_input_names(signature, inputs):
        wanted, given = sorted(signature.inputs), sorted(inputs)
        if len(wanted) != len(given):
            extra = ",".join(sorted(set(given) - set(wanted)))
            missing = ",".join(sorted(set(wanted) - set(given)))
            raise invalid(
                f"input size does not match signature: {len(given)}!={len(wanted)} "
                f"len({{{','.join(given)}}}) != len({{{','.join(wanted)}}}). "
                f"Sent extra: {{{extra}}}. Missing but required: {{{missing}}}."
            )
        for alias in wanted:
            if alias not in inputs:
                raise invalid(
                    f"Signature input alias: {alias}(feed name: {signature.inputs[alias].name}) "
                    "not found in request and no default value provided. Inputs expected to be in "
                    f"the request {{{','.join(given)}}}, or default input alias set: "
                )
        return wanted

    @staticmethod
    def _parse(alias, proto, dtype, position):
        try:
            array = tf.make_ndarray(proto)
        except (TypeError, ValueError) as error:
            raise invalid(f"tensor parsing error: {alias}") from error
        if proto.dtype != dtype:
            wanted, given = (tf.as_dtype(number).name for number in (dtype, proto.dtype))
            raise invalid(
                f"Expects arg[{position}] to be {CPP_NAMES.get(wanted, wanted)} but "
                f"{CPP_NAMES.get(given, given)} is provided"
            )
        return array

    @staticmethod
    def _outputs(signature, output_filter):
        chosen: list[str] = []
        for alias in output_filter:
            if alias not in signature.outputs:
                raise invalid(
                    f"output tensor alias not found in signature: {alias} Outputs expected to be "
                    f"in the set {{{','.join(sorted(signature.outputs))}}}."
                )
            if alias in chosen:
                raise invalid(f"duplicate output tensor alias: {alias}")
            chosen.append(alias)
        return chosen or sorted(signature.outputs)


# TensorFlow's C++ names of the types that differ from the Python ones.
CPP_NAMES = {"float32": "float", "float64": "double"}

_TYPED_FIELDS = {
    tf.float32: "float_val",
    tf.float64: "double_val",
    tf.int32: "int_val",
    tf.uint8: "int_val",
    tf.int64: "int64_val",
    tf.bool: "bool_val",
    tf.string: "string_val",
}


def typed_proto(array: np.ndarray):
    """A TensorProto with its elements in typed fields, where the server puts them."""
    dtype = tf.as_dtype(array.dtype if array.dtype != object else tf.string)
    if dtype not in _TYPED_FIELDS:
        return tf.make_tensor_proto(array)
    shape = tf.TensorShape(array.shape).as_proto()
    proto = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum, tensor_shape=shape)
    getattr(proto, _TYPED_FIELDS[dtype]).extend(array.ravel().tolist())
    return proto
