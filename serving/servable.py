"""One version of a model, loaded and run as TensorFlow Serving does it: by a session."""

import pathlib
from collections.abc import Callable

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import saved_model_pb2

from serving.errors import ServingError, invalid
from serving.versions import ModelDirectoryError

DEFAULT_SIGNATURE = "serving_default"
TAGS = ["serve"]
CODES = {code.value[0]: code for code in grpc.StatusCode}


def _feeds(directory: pathlib.Path) -> dict[str, tf.Tensor]:
    """A placeholder without a shape for every input tensor of a signature, by that one's name.

    A session compares what it is fed with the placeholder's shape; the real server leaves that to
    the kernels, whose messages a caller then sees.
    """
    content = (directory / "saved_model.pb").read_bytes()
    return {
        info.name: tf.compat.v1.placeholder(info.dtype, name="fed_by_request")
        for meta_graph in saved_model_pb2.SavedModel.FromString(content).meta_graphs
        if list(meta_graph.meta_info_def.tags) == TAGS
        for signature in meta_graph.signature_def.values()
        for info in signature.inputs.values()
    }


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
                self._feeds = _feeds(directory)
                meta_graph = tf.compat.v1.saved_model.load(
                    self._session, TAGS, str(directory), input_map=self._feeds
                )
        except (OSError, RuntimeError, ValueError, DecodeError, tf.errors.OpError) as error:
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
                feed_list=[self._feeds[signature.inputs[name].name] for name in input_names],
            )
        try:
            values = self._callables[key](*arrays)
        except tf.errors.OpError as error:
            # Python's session wraps the kernel's error in one that adds lines to its message.
            kernels = error.__context__
            original = kernels if isinstance(kernels, tf.errors.OpError) else error
            raise ServingError(CODES[original.error_code], original.message) from error
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
