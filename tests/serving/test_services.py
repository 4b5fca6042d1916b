"""The local server's answers over a real socket: TensorFlow Serving's codes and words."""

import grpc
import numpy as np
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

DIM = 8
DIGITS = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server, [("grpc.enable_http_proxy", 0)]) as channel:
        yield channel


@pytest.fixture(scope="module")
def prediction(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture(scope="module")
def status(channel):
    return model_service_pb2_grpc.ModelServiceStub(channel)


@pytest.fixture(scope="module")
def images(digits):
    return np.stack([image.numpy() for image, _ in digits.examples("test").take(3)])


@pytest.fixture(scope="module")
def pictures(images):
    return [tf.io.encode_png(image).numpy() for image in images]


def fill(request, name="gaternet", version=None, label=None, signature=""):
    request.model_spec.name = name
    request.model_spec.signature_name = signature
    if version is not None:
        request.model_spec.version.value = version
    if label is not None:
        request.model_spec.version_label = label
    return request


def predict_request(inputs, output_filter=(), **spec):
    request = fill(predict_pb2.PredictRequest(output_filter=output_filter), **spec)
    for name, value in inputs.items():
        proto = value if hasattr(value, "dtype") and hasattr(value, "tensor_shape") else None
        request.inputs[name].CopyFrom(proto or tf.make_tensor_proto(value))
    return request


def classify_request(pictures, **spec):
    request = fill(classification_pb2.ClassificationRequest(), **spec)
    for picture in pictures:
        example = request.input.example_list.examples.add()
        example.features.feature["image/encoded"].bytes_list.value.append(picture)
    return request


def assert_refused(call, request, code, text):
    with pytest.raises(grpc.RpcError) as error:
        call(request, timeout=30)
    assert (error.value.code().name, error.value.details()) == (code, text)


def test_predict_answers_what_the_keras_model_says(prediction, images, pictures, trained):
    outputs = trained.load_model()(trained.preprocessing.normalize(images), training=False)
    wanted = tf.nn.softmax(outputs["logits"]).numpy()
    for signature, inputs in [
        ("", {"images": images}),
        ("gates", {"images": images}),
        ("image_bytes", {"image_bytes": pictures}),
    ]:
        response = prediction.Predict(predict_request(inputs, signature=signature), timeout=30)
        spec = response.model_spec
        assert (spec.name, spec.version.value) == ("gaternet", 1)
        assert spec.signature_name == (signature or "serving_default")
        answer = {name: tf.make_ndarray(value) for name, value in response.outputs.items()}
        np.testing.assert_allclose(answer["probabilities"], wanted, atol=1e-5)
        assert answer["class_ids"].tolist() == wanted.argmax(-1).tolist()
        assert [label.decode() for label in answer["labels"]] == [
            DIGITS[class_id] for class_id in answer["class_ids"]
        ]
        assert ("gates" in answer) == (signature == "gates")
        if "gates" in answer:
            assert answer["gates"].dtype == np.uint8
            np.testing.assert_array_equal(answer["gates"], outputs["gates"])


def test_outputs_come_in_typed_fields(prediction, images):
    response = prediction.Predict(predict_request({"images": images}, signature="gates"))
    for name, field in [
        ("probabilities", "float_val"),
        ("class_ids", "int64_val"),
        ("labels", "string_val"),
        ("gates", "int_val"),
    ]:
        assert len(getattr(response.outputs[name], field)) > 0
        assert not response.outputs[name].tensor_content


def test_the_version_may_be_named(prediction, images):
    response = prediction.Predict(predict_request({"images": images}, version=1))
    assert response.model_spec.version.value == 1


def test_an_output_filter_gives_those_outputs_only(prediction, images):
    request = predict_request({"images": images}, output_filter=["labels", "class_ids"])
    assert set(prediction.Predict(request).outputs) == {"labels", "class_ids"}


def test_no_rows_in_none_out(prediction, images):
    response = prediction.Predict(predict_request({"images": images[:0]}))
    assert tf.make_ndarray(response.outputs["probabilities"]).shape == (0, 10)


def test_two_requests_get_the_same_bytes(prediction, images):
    request = predict_request({"images": images}, signature="gates")
    answers = {prediction.Predict(request).SerializeToString(deterministic=True) for _ in range(5)}
    assert len(answers) == 1


def test_a_message_above_grpcs_default_limit_goes_through(prediction, images):
    many = np.resize(images, (66_000, *images.shape[1:]))
    assert many.nbytes > 4 * 2**20
    request = predict_request({"images": many}, output_filter=["class_ids"])
    response = prediction.Predict(request, timeout=120)
    assert len(response.outputs["class_ids"].int64_val) == 66_000


WRONG_PREDICTS = {
    "no_name": (
        lambda images: predict_request({"images": images}, name=""),
        "INVALID_ARGUMENT",
        "ModelSpec has no name specified.",
    ),
    "unknown_model": (
        lambda images: predict_request({"images": images}, name="nope"),
        "NOT_FOUND",
        "Servable not found for request: Latest(nope)",
    ),
    "unknown_version": (
        lambda images: predict_request({"images": images}, version=99),
        "NOT_FOUND",
        "Servable not found for request: Specific(gaternet, 99)",
    ),
    "unknown_model_and_version": (
        lambda images: predict_request({"images": images}, name="nope", version=1),
        "NOT_FOUND",
        "Servable not found for request: Specific(nope, 1)",
    ),
    "unknown_label": (
        lambda images: predict_request({"images": images}, label="stable"),
        "INVALID_ARGUMENT",
        "Unrecognized servable version label: stable",
    ),
    "unknown_model_and_label": (
        lambda images: predict_request({"images": images}, name="nope", label="stable"),
        "INVALID_ARGUMENT",
        "Unrecognized servable version label: stable",
    ),
    "unknown_signature": (
        lambda images: predict_request({"images": images}, signature="zzz"),
        "FAILED_PRECONDITION",
        'Serving signature key "zzz" not found.',
    ),
    "missing_input": (
        lambda images: predict_request({}),
        "INVALID_ARGUMENT",
        "input size does not match signature: 0!=1 len({}) != len({images}). Sent extra: {}. "
        "Missing but required: {images}.",
    ),
    "extra_input": (
        lambda images: predict_request({"images": images, "q": [1]}),
        "INVALID_ARGUMENT",
        "input size does not match signature: 2!=1 len({images,q}) != len({images}). "
        "Sent extra: {q}. Missing but required: {}.",
    ),
    "wrong_name": (
        lambda images: predict_request({"q": images}),
        "INVALID_ARGUMENT",
        "Signature input alias: images(feed name: serving_default_images:0) not found in request "
        "and no default value provided. Inputs expected to be in the request {q}, or default input "
        "alias set: ",
    ),
    "wrong_dtype": (
        lambda images: predict_request({"images": images.astype(np.float64)}),
        "INVALID_ARGUMENT",
        "Expects arg[0] to be uint8 but double is provided",
    ),
    "text_for_pixels": (
        lambda images: predict_request({"images": [b"x"]}),
        "INVALID_ARGUMENT",
        "Expects arg[0] to be uint8 but string is provided",
    ),
    "empty_tensor": (
        lambda images: predict_request({"images": tf.make_tensor_proto(0).__class__()}),
        "INVALID_ARGUMENT",
        "tensor parsing error: images",
    ),
    "unknown_output": (
        lambda images: predict_request({"images": images}, output_filter=["nope"]),
        "INVALID_ARGUMENT",
        "output tensor alias not found in signature: nope Outputs expected to be in the set "
        "{class_ids,labels,probabilities}.",
    ),
    "output_twice": (
        lambda images: predict_request({"images": images}, output_filter=["labels", "labels"]),
        "INVALID_ARGUMENT",
        "duplicate output tensor alias: labels",
    ),
}


@pytest.mark.parametrize("name", WRONG_PREDICTS)
def test_a_wrong_predict_gets_the_servers_code_and_words(prediction, images, name):
    make, code, text = WRONG_PREDICTS[name]
    assert_refused(prediction.Predict, make(images), code, text)


def test_no_model_spec_is_told(prediction, status):
    for call, request in [
        (prediction.Predict, predict_pb2.PredictRequest()),
        (prediction.Classify, classification_pb2.ClassificationRequest()),
        (prediction.GetModelMetadata, get_model_metadata_pb2.GetModelMetadataRequest()),
        (status.GetModelStatus, get_model_status_pb2.GetModelStatusRequest()),
    ]:
        assert_refused(call, request, "INVALID_ARGUMENT", "Missing ModelSpec")


def test_a_shortened_tensor_is_refused(prediction, images):
    proto = tf.make_tensor_proto(images)
    proto.tensor_content = proto.tensor_content[:-1]
    request = predict_request({"images": proto})
    assert_refused(prediction.Predict, request, "INVALID_ARGUMENT", "tensor parsing error: images")


@pytest.mark.parametrize("shape", [(2, 5, 8, 1), (2, 8, 8, 3), (64,)])
def test_pixels_of_another_shape_are_refused_by_the_graph(prediction, shape):
    with pytest.raises(grpc.RpcError) as error:
        prediction.Predict(predict_request({"images": np.zeros(shape, np.uint8)}))
    assert error.value.code().name == "INVALID_ARGUMENT"
    assert "is not compatible with expected shape [?,8,8,1]" in error.value.details()
    assert len(error.value.details()) <= 1024 + len("...TRUNCATED")


def test_a_broken_picture_gets_the_kernels_words_and_the_server_goes_on(prediction, pictures):
    request = predict_request({"image_bytes": [b"no picture"]}, signature="image_bytes")
    with pytest.raises(grpc.RpcError) as error:
        prediction.Predict(request)
    assert error.value.code().name == "INVALID_ARGUMENT"
    assert "Unknown image file format" in error.value.details()
    prediction.Predict(predict_request({"image_bytes": pictures}, signature="image_bytes"))


def test_classify_ranks_nothing_and_names_every_class(prediction, images, pictures):
    probabilities = prediction.Predict(predict_request({"images": images})).outputs["probabilities"]
    response = prediction.Classify(classify_request(pictures, signature="classify"))
    assert response.model_spec.signature_name == "classify"
    assert response.model_spec.version.value == 1
    rows = response.result.classifications
    assert [[one.label for one in row.classes] for row in rows] == [DIGITS] * 3
    np.testing.assert_allclose(
        [[one.score for one in row.classes] for row in rows],
        tf.make_ndarray(probabilities),
        atol=1e-6,
    )


def test_classify_takes_a_shared_context(prediction, pictures):
    plain = prediction.Classify(classify_request(pictures[:1], signature="classify"))
    request = fill(classification_pb2.ClassificationRequest(), signature="classify")
    shared = request.input.example_list_with_context
    shared.context.features.feature["image/encoded"].bytes_list.value.append(pictures[0])
    shared.examples.add()
    assert prediction.Classify(request).result == plain.result


@pytest.mark.parametrize(
    ("rows", "spec", "code", "text"),
    [
        (1, {}, "INVALID_ARGUMENT", "Expected one input Tensor."),
        (
            1,
            {"signature": "nope"},
            "INVALID_ARGUMENT",
            "No signature was found with the name: nope",
        ),
        (0, {"signature": "classify"}, "INVALID_ARGUMENT", "Input is empty."),
        (1, {"name": "nope"}, "NOT_FOUND", "Servable not found for request: Latest(nope)"),
    ],
)
def test_a_wrong_classify_gets_the_servers_code_and_words(
    prediction, pictures, rows, spec, code, text
):
    assert_refused(prediction.Classify, classify_request(pictures[:rows], **spec), code, text)


def test_metadata_tells_the_signatures(prediction):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    response = prediction.GetModelMetadata(fill(request))
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("gaternet", 1, "")
    found = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(found)
    names = {name for name in found.signature_def if not name.startswith("__saved_model")}
    assert names == {"serving_default", "image_bytes", "classify", "gates"}
    shape = found.signature_def["gates"].inputs["images"].tensor_shape
    assert [dim.size for dim in shape.dim] == [-1, DIM, DIM, 1]
    assert found.signature_def["classify"].method_name == "tensorflow/serving/classify"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ([], "GetModelMetadataRequest must specify at least one metadata_field"),
        (["zz"], "Metadata field zz is not supported"),
    ],
)
def test_wrong_metadata_fields_are_told(prediction, fields, text):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
    assert_refused(prediction.GetModelMetadata, fill(request), "INVALID_ARGUMENT", text)


@pytest.mark.parametrize("spec", [{}, {"version": 1}, {"label": "whatever"}])
def test_status_is_available_and_ignores_a_label(status, spec):
    answer = status.GetModelStatus(fill(get_model_status_pb2.GetModelStatusRequest(), **spec))
    (found,) = answer.model_version_status
    assert (found.version, found.state, found.status.error_code) == (1, 30, 0)
    assert found.HasField("status")


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"name": "nope"}, "Could not find any versions of model nope"),
        ({"name": ""}, "Could not find any versions of model "),
        ({"version": 99}, "Could not find version 99 of model gaternet"),
        ({"name": "nope", "version": 3}, "Could not find version 3 of model nope"),
    ],
)
def test_status_of_the_unknown_is_not_found(status, spec, text):
    request = fill(get_model_status_pb2.GetModelStatusRequest(), **spec)
    assert_refused(status.GetModelStatus, request, "NOT_FOUND", text)


def test_health_is_not_served_unless_asked_for(channel):
    with pytest.raises(grpc.RpcError) as error:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert error.value.code().name == "UNIMPLEMENTED"


@pytest.mark.parametrize(
    ("signature", "text"),
    [("", "Expected one output Tensor."), ("nope", "No signature was found with the name: nope")],
)
def test_regression_is_refused(prediction, signature, text):
    request = fill(regression_pb2.RegressionRequest(), signature=signature)
    request.input.example_list.examples.add()
    assert_refused(prediction.Regress, request, "INVALID_ARGUMENT", text)


def test_multi_inference_classifies(prediction, pictures):
    alone = prediction.Classify(classify_request(pictures, signature="classify"))
    request = inference_pb2.MultiInferenceRequest(input=classify_request(pictures).input)
    task = request.tasks.add(method_name="tensorflow/serving/classify")
    task.model_spec.name = "gaternet"
    task.model_spec.signature_name = "classify"
    (result,) = prediction.MultiInference(request).results
    assert result.classification_result == alone.result
    assert result.model_spec == alone.model_spec


def test_a_deadline_that_passes_is_told(prediction, images):
    with pytest.raises(grpc.RpcError) as error:
        prediction.Predict(predict_request({"images": images}), timeout=1e-6)
    assert (error.value.code().name, error.value.details()) == (
        "DEADLINE_EXCEEDED",
        "Deadline Exceeded",
    )
