"""What the server's methods do, whatever the transport: request message in, response out."""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator

import numpy as np
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    predict_pb2,
)

from serving import classifying
from serving.errors import deadline_exceeded, exhausted, invalid
from serving.metrics import Metrics
from serving.models import Models
from serving.picture_limit import check_pixels
from serving.servable import DEFAULT_SIGNATURE, Servable, typed_proto

METADATA_FIELD = "signature_def"
GATES = "gates"
EMPTY_BATCH = (
    "A batch must have one row at least, and the request has none; with batching, TensorFlow "
    "Serving would keep such a request until its deadline"
)


@dataclasses.dataclass
class Call:
    """Where a request came from and how long its caller waits.

    Attributes:
      entrypoint: GRPC or REST.
      timeout: seconds that are left, or None.
      ended: set when the caller has gone.
      counted: whether the metrics know of the request already.
    """

    entrypoint: str = "GRPC"
    timeout: float | None = None
    ended: threading.Event = dataclasses.field(default_factory=threading.Event)
    counted: bool = False


def given_spec(request):
    """The request's model_spec.

    Raises:
      ServingError: INVALID_ARGUMENT where there is none.
    """
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    return request.model_spec


def checked_spec(request):
    """The request's model_spec, if it names a model.

    Raises:
      ServingError: INVALID_ARGUMENT.
    """
    spec = given_spec(request)
    if not spec.name:
        raise invalid("ModelSpec has no name specified.")
    return spec


class Inference:
    """The methods of PredictionService, and the status of ModelService.

    All raise `ServingError` with TensorFlow Serving's code and words.

    Args:
      models: what there is to ask.
      metrics: is told of every request.
      max_picture_pixels: of an encoded picture in a request; 0 is no limit.
      max_concurrent: requests that run at once; further ones are refused.
    """

    def __init__(
        self, models: Models, metrics: Metrics, max_picture_pixels: int, max_concurrent: int
    ):
        self.models = models
        self.metrics = metrics
        self._max_pixels = max_picture_pixels
        self._free = threading.Semaphore(max_concurrent)
        self._may_hang = threading.Semaphore(max(1, max_concurrent // 2))

    def predict(self, request, call: Call):
        """Runs a signature on tensors."""
        response = predict_pb2.PredictResponse()
        with self._running(request, call, "Predict") as (spec, servable):
            name = spec.signature_name or DEFAULT_SIGNATURE
            names, arrays, outputs = servable.check(name, request.inputs, request.output_filter)
            if servable.batches(name, outputs):
                self._keep_if_empty(arrays, call)
            if self._max_pixels:
                arrays = self._with_pictures_checked(servable.signatures[name], arrays)
            with self.metrics.runtime(spec.name, "Predict"):
                values = servable.run(name, names, arrays, outputs, call.timeout)
            for output, array in values.items():
                response.outputs[output].CopyFrom(typed_proto(array))
            _fill(response.model_spec, spec.name, servable, name)
            self._observe(spec.name, servable, arrays, values)
        return response

    def classify(self, request, call: Call):
        """Runs a classify signature on tf.Examples."""
        response = classification_pb2.ClassificationResponse()
        with self._running(request, call, "Classify") as (spec, servable):
            name = spec.signature_name or DEFAULT_SIGNATURE
            classifying.check_classify(classifying.find_signature(servable, name))
            (values,) = self._run_examples(spec, servable, [name], request.input, call, "Classify")
            classifying.fill(response.result, values)
            _fill(response.model_spec, spec.name, servable, name)
        return response

    def regress(self, request, call: Call):
        """Refuses: no signature of ours is one of regression; the server says it in these words."""
        with self._running(request, call, "Regress") as (spec, servable):
            name = spec.signature_name or DEFAULT_SIGNATURE
            raise classifying.not_regression(classifying.find_signature(servable, name))

    def multi_inference(self, request, call: Call):
        """Runs several classify signatures of one model on the same tf.Examples."""
        response = inference_pb2.MultiInferenceResponse()
        if not request.tasks:
            raise invalid("Inference request must have at least one task")
        with self._running(request.tasks[0], call, "MultiInference") as (spec, servable):
            names = classifying.task_signatures(servable, request.tasks)
            answers = self._run_examples(
                spec, servable, names, request.input, call, "MultiInference"
            )
            for name, values in zip(names, answers, strict=True):
                result = response.results.add()
                classifying.fill(result.classification_result, values)
                _fill(result.model_spec, spec.name, servable, name)
        return response

    def metadata(self, request):
        """Tells the signatures of a model."""
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        spec = checked_spec(request)
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != METADATA_FIELD:
                raise invalid(f"Metadata field {field} is not supported")
        with self.models.servable(spec) as servable:
            _fill(response.model_spec, spec.name, servable)
            signatures = get_model_metadata_pb2.SignatureDefMap()
            for name, signature in servable.signatures.items():
                signatures.signature_def[name].CopyFrom(signature)
            response.metadata[METADATA_FIELD].Pack(signatures)
        return response

    def status(self, request):
        """Tells the states of a model's versions.

        As there, a version label is ignored, and an empty name is that of an unknown model.
        """
        spec = given_spec(request)
        number = spec.version.value if spec.HasField("version") else None
        response = get_model_status_pb2.GetModelStatusResponse()
        for version, state, error in self.models.statuses(spec.name, number):
            added = response.model_version_status.add(version=version, state=int(state))
            added.status.SetInParent()
            if error is not None:
                added.status.error_code = error.code.value[0]
                added.status.error_message = error.message
        return response

    def counting(self, model: str, api: str, entrypoint: str):
        """Tells the metrics of the request in the block.

        Names that nobody configured are counted as one: there is no end of them.
        """
        known = model if self.models.known(model) else ""
        return self.metrics.request(known, api, entrypoint)

    @contextlib.contextmanager
    def _running(self, request, call, api) -> Iterator:
        """Counts a request, takes one of the server's threads for it and borrows its servable."""
        with contextlib.ExitStack() as stack:
            if not call.counted:
                stack.enter_context(self.counting(request.model_spec.name, api, call.entrypoint))
            spec = checked_spec(request)
            if not self._free.acquire(blocking=False):
                raise exhausted("Server Threadpool Exhausted")
            try:
                with self.models.servable(spec) as servable:
                    yield spec, servable
            finally:
                self._free.release()

    def _run_examples(self, spec, servable, names, request_input, call, api):
        found = classifying.examples(request_input)
        if not found:
            raise invalid("Input is empty.")
        check_pixels(classifying.encoded_features(found), self._max_pixels)
        with self.metrics.runtime(spec.name, api):
            answers = [classifying.run(servable, name, found, call.timeout) for name in names]
        self.metrics.observe_rows(spec.name, len(found))
        return answers

    def _with_pictures_checked(self, signature, arrays):
        """The arrays, in which no picture is enormous.

        tf.Examples are written anew: TensorFlow's own parser finds pictures in bytes that Protocol
        Buffers refuse, or take for something else.
        """
        checked = []
        for array in arrays:
            if array.dtype == object:
                pictures = array.ravel().tolist()
                if signature.method_name == classifying.CLASSIFY_METHOD:
                    found = classifying.parse_examples(pictures)
                    pictures = classifying.encoded_features(found)
                    strings = [example.SerializeToString() for example in found]
                    array = np.array(strings, object).reshape(array.shape)
                check_pixels(pictures, self._max_pixels)
            checked.append(array)
        return checked

    def _keep_if_empty(self, arrays, call):
        """With batching, the real server keeps a request without rows until its deadline.

        So does this one, as long as there is a deadline and threads are left for others.
        """
        if all(array.shape[:1] != (0,) for array in arrays):
            return
        if call.timeout is None or not self._may_hang.acquire(blocking=False):
            raise invalid(EMPTY_BATCH)
        try:
            call.ended.wait(call.timeout)
        finally:
            self._may_hang.release()
        raise deadline_exceeded("Deadline Exceeded")

    def _observe(self, model, servable, arrays, values):
        if arrays and arrays[0].ndim:
            self.metrics.observe_rows(model, len(arrays[0]))
        gates = values.get(GATES)
        if gates is not None and gates.dtype == np.uint8:
            self.metrics.observe_gates(model, servable.version, gates)


def warm_up_answers(servable: Servable):
    """What `serving.warmup.replay` calls with each recorded request, before a version is served."""

    def answer(kind, request):
        if kind == "predict_log":
            name = request.model_spec.signature_name or DEFAULT_SIGNATURE
            servable.predict(name, request.inputs, request.output_filter)
            return
        if kind == "multi_inference_log":
            names = classifying.task_signatures(servable, request.tasks)
        else:
            names = [request.model_spec.signature_name or DEFAULT_SIGNATURE]
        for name in names:
            signature = classifying.find_signature(servable, name)
            if kind == "regress_log":
                raise classifying.not_regression(signature)
            classifying.check_classify(signature)
            found = classifying.examples(request.input)
            if not found:
                raise invalid("Input is empty.")
            classifying.run(servable, name, found, None)

    return answer


def _fill(spec, name, servable, signature_name=""):
    spec.name = name
    spec.version.value = servable.version
    spec.signature_name = signature_name
