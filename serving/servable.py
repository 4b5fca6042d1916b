"""One version of a model, loaded and run as TensorFlow Serving does it: by a session."""

import math
import pathlib
from collections.abc import Callable

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from serving.batching import BatchScheduler
from serving.errors import ServingError, failed_precondition, invalid, not_found
from serving.versions import ModelDirectoryError

DEFAULT_SIGNATURE = "serving_default"
TAGS = ["serve"]
GRAPH = "saved_model.pb"
INDEX = "variables/variables.index"
CODES = {code.value[0]: code for code in grpc.StatusCode}


class LoadError(ModelDirectoryError):
    """A version that cannot be loaded; `status` has the server's code and words for it."""

    def __init__(self, directory: pathlib.Path, version: int, status: ServingError):
        super().__init__(
            f"version {version} must be a SavedModel tagged 'serve', and '{directory}' cannot be "
            f"loaded: {status.message.splitlines()[0]}"
        )
        self.status = status


def _read_meta_graph(directory: pathlib.Path) -> meta_graph_pb2.MetaGraphDef:
    path = directory / GRAPH
    if directory.exists() and not directory.is_dir():
        raise failed_precondition(f"{path}; Not a directory")
    if not path.exists():
        raise not_found(
            f"Could not find SavedModel .pb or .pbtxt at supplied export directory path: "
            f"{directory}. Check that the directory exists and that you have the right permissions "
            "for accessing it."
        )
    try:
        saved_model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    except DecodeError as error:
        raise ServingError(
            grpc.StatusCode.DATA_LOSS, f"Can't parse {path} as binary proto"
        ) from error
    for meta_graph in saved_model.meta_graphs:
        if list(meta_graph.meta_info_def.tags) == TAGS:
            return meta_graph
    raise not_found(
        "Could not find meta graph def matching supplied tags: { serve }. To inspect available "
        "tag-sets in the SavedModel, please use the SavedModel CLI: `saved_model_cli`"
    )


def _feeds(meta_graph) -> dict[str, tf.Tensor]:
    """A placeholder without a shape for every input tensor of a signature, by that one's name.

    A session compares what it is fed with the placeholder's shape; the real server leaves that to
    the kernels, whose messages a caller then sees.
    """
    return {
        info.name: tf.compat.v1.placeholder(info.dtype, name="fed_by_request")
        for signature in meta_graph.signature_def.values()
        for info in signature.inputs.values()
    }


def _status(error: Exception) -> ServingError:
    """What TensorFlow raised, as a status; Python's session adds lines to the kernel's words."""
    kernels = error.__context__
    original = kernels if isinstance(kernels, tf.errors.OpError) else error
    if isinstance(original, tf.errors.OpError):
        if "Could not find callback with key=pyfunc" in original.message:
            # Python's own kernel, which the real server does not have.
            return invalid("No OpKernel was registered to support Op 'EagerPyFunc'")
        return ServingError(CODES[original.error_code], original.message)
    return ServingError(grpc.StatusCode.UNKNOWN, f"{type(error).__name__}: {error}")


class Servable:
    """A loaded SavedModel.

    A session of TensorFlow 1 and not `tf.saved_model.load`, because it fails where the real
    server fails: on the signature's own tensors, with the kernels' own messages.

    Args:
      directory: the version's.
      version: its number.
      scheduler: puts requests together into batches; None runs each by itself.
      session_config: threads of the session.
      owns_scheduler: whether the scheduler ends with this version.

    Raises:
      LoadError: when the directory cannot be loaded.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        version: int,
        scheduler: BatchScheduler | None = None,
        session_config: tf.compat.v1.ConfigProto | None = None,
        owns_scheduler: bool = False,
    ):
        self.version = version
        self._scheduler = scheduler
        self._owns_scheduler = owns_scheduler
        self._session = tf.compat.v1.Session(graph=tf.Graph(), config=session_config)
        try:
            meta_graph = _read_meta_graph(directory)
            with self._session.graph.as_default():
                self._feeds = _feeds(meta_graph)
                if meta_graph.HasField("saver_def") and not (directory / INDEX).exists():
                    # As there: nothing is restored, and what reads a variable fails when asked.
                    tf.compat.v1.train.import_meta_graph(meta_graph, input_map=self._feeds)
                else:
                    tf.compat.v1.saved_model.load(
                        self._session, TAGS, str(directory), input_map=self._feeds
                    )
        except ServingError as error:
            self._session.close()
            raise LoadError(directory, version, error) from error
        except (OSError, RuntimeError, ValueError, TypeError, KeyError, tf.errors.OpError) as error:
            self._session.close()
            raise LoadError(directory, version, _status(error)) from error
        self.signatures = meta_graph.signature_def
        self._callables: dict[tuple, Callable] = {}

    def close(self) -> None:
        """Frees the session. No request may be running."""
        if self._scheduler and self._owns_scheduler:
            self._scheduler.close()
        elif self._scheduler:
            self._scheduler.forget(self)
        self._session.close()

    def batches(self, signature_name: str, output_names: list[str]) -> bool:
        """Whether requests for these outputs are put together: those for all of a signature's.

        TensorFlow Serving has a queue for each signature as it is declared, and runs all else by
        itself.
        """
        declared = self.signatures[signature_name].outputs
        return self._scheduler is not None and set(output_names) == set(declared)

    def predict(
        self, signature_name, inputs, output_filter=(), timeout: float | None = None
    ) -> dict[str, np.ndarray]:
        """Runs a signature on TensorProtos, checked in the order in which the server checks.

        Returns:
          The outputs by name, all or those of `output_filter`.

        Raises:
          ServingError: with the server's code and words.
        """
        names, arrays, outputs = self.check(signature_name, inputs, output_filter)
        return self.run(signature_name, names, arrays, outputs, timeout)

    def check(
        self, signature_name, inputs, output_filter=()
    ) -> tuple[list[str], list[np.ndarray], list[str]]:
        """Parses and checks what `predict` would run.

        Returns:
          (input names, arrays, output names).

        Raises:
          ServingError: with the server's code and words.
        """
        signature = self.signatures.get(signature_name)
        if signature is None:
            raise failed_precondition(f'Serving signature key "{signature_name}" not found.')
        names = self._check_input_names(signature, inputs)
        arrays = [
            self._parse(alias, inputs[alias], signature.inputs[alias].dtype, position)
            for position, alias in enumerate(names)
        ]
        return names, arrays, self._outputs(signature, output_filter)

    def run(
        self, signature_name, input_names, arrays, output_names, timeout: float | None = None
    ) -> dict[str, np.ndarray]:
        """Runs a signature on arrays, which are not checked against its declared shapes.

        Args:
          signature_name: of a signature that there is.
          input_names: all of its inputs.
          arrays: one for each of them.
          output_names: what to return.
          timeout: seconds after which the work is given up.

        Raises:
          ServingError: with the kernel's code and words, or DEADLINE_EXCEEDED.
        """
        signature = self.signatures[signature_name]
        feeds = tuple(signature.inputs[name].name for name in input_names)
        fetches = tuple(signature.outputs[name].name for name in output_names)
        scheduler = self._scheduler if self.batches(signature_name, output_names) else None
        if scheduler is None:
            values = self._run_session(feeds, fetches, arrays, timeout)
        else:
            values = scheduler.run(
                (self, feeds, fetches),
                feeds,
                lambda merged: self._run_session(feeds, fetches, merged),
                arrays,
                timeout,
            )
        return dict(zip(output_names, values, strict=True))

    def _run_session(self, feeds, fetches, arrays, timeout=None):
        key = (feeds, fetches)
        if key not in self._callables:
            self._callables[key] = self._session.make_callable(
                list(fetches), feed_list=[self._feeds[name] for name in feeds], accept_options=True
            )
        options = None
        if timeout is not None:
            options = tf.compat.v1.RunOptions(timeout_in_ms=max(1, int(timeout * 1000)))
        try:
            return self._callables[key](*arrays, options=options)
        except tf.errors.OpError as error:
            raise _status(error) from error

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
            if not _is_complete(proto):
                raise ValueError("Its shape is open, or too large for what it holds")
            array = _to_array(proto)
        except (TypeError, ValueError, KeyError, tf.errors.OpError) as error:
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


MAX_FILLED_BYTES = 2**28
"""Of a tensor whose last value stands for all further ones, which 50 bytes may ask for."""
STRING_BYTES = 64
"""What a string takes besides its characters, here and in TensorFlow together."""


def _is_complete(proto) -> bool:
    """Whether a TensorProto has a known shape, and not one that a few values blow up to fill."""
    sizes = [dim.size for dim in proto.tensor_shape.dim]
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in sizes):
        return False
    elements, dtype = math.prod(sizes), tf.as_dtype(proto.dtype)
    if dtype == tf.string:
        given = proto.string_val
        last = len(given[-1]) if given else 0
        return (elements - len(given)) * (STRING_BYTES + last) <= MAX_FILLED_BYTES
    return elements * max(dtype.size or 0, 1) <= max(MAX_FILLED_BYTES, 2 * proto.ByteSize())


def _to_array(proto):
    try:
        return tf.make_ndarray(proto)
    except OverflowError:
        # An integer that its type cannot hold: TensorFlow's C++ parser cuts it, NumPy refuses it.
        return tf.io.parse_tensor(proto.SerializeToString(), proto.dtype).numpy()


# TensorFlow's C++ names of the types that differ from the Python ones.
CPP_NAMES = {"float16": "half", "float32": "float", "float64": "double"}

_TYPED_FIELDS = {
    tf.float32: "float_val",
    tf.float64: "double_val",
    **dict.fromkeys((tf.int8, tf.int16, tf.int32, tf.uint8, tf.uint16), "int_val"),
    tf.uint32: "uint32_val",
    tf.int64: "int64_val",
    tf.uint64: "uint64_val",
    tf.bool: "bool_val",
    tf.string: "string_val",
    **dict.fromkeys((tf.float16, tf.bfloat16), "half_val"),
}


def typed_proto(array: np.ndarray):
    """A TensorProto with its elements in typed fields, where the server puts them."""
    dtype = tf.as_dtype(array.dtype if array.dtype != object else tf.string)
    if dtype not in _TYPED_FIELDS:
        return tf.make_tensor_proto(array)
    shape = tf.TensorShape(array.shape).as_proto()
    proto = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum, tensor_shape=shape)
    if _TYPED_FIELDS[dtype] == "half_val":
        # Their bits, as numbers.
        array = array.view(np.uint16)
    getattr(proto, _TYPED_FIELDS[dtype]).extend(array.ravel().tolist())
    return proto
