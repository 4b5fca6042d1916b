"""Versions come, fail and go while requests run, as on TensorFlow Serving."""

import contextlib
import errno
import re
import shutil
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from local_servers import entries, error_of, serving
from tensorflow_serving.apis import get_model_status_pb2, model_management_pb2
from tensorflow_serving.config import model_server_config_pb2
from toy_models import predict_request, warm_up_log, write_toy, write_warm_up

from serving.config import Batching
from serving.errors import ServingError
from serving.models import LoadingOptions
from serving.versions import ModelDirectoryError

X = np.zeros((1, 1), np.float32)
# Looked at without a poll in between: tests call `poll`.
BY_HAND = LoadingOptions(poll_seconds=0, max_num_load_retries=0, load_retry_interval_seconds=0)
SECONDS = 60


def platform(more):
    return "" if "model_type" in more or "platform" in more else 'model_platform: "tensorflow"'


def config(*models):
    """A ModelServerConfig of (name, base path, text of the other fields)."""
    text = "".join(
        f'config {{ name: "{name}" base_path: "{path}" {platform(more)} {more} }} '
        for name, path, more in models
    )
    return text_format.Parse(
        f"model_config_list {{ {text} }}", model_server_config_pb2.ModelServerConfig()
    )


def reload(calls, *models):
    request = model_management_pb2.ReloadConfigRequest(config=config(*models))
    return calls.model.HandleReloadConfigRequest(request, timeout=SECONDS)


def reload_error(calls, *models):
    request = model_management_pb2.ReloadConfigRequest(config=config(*models))
    return error_of(calls.model.HandleReloadConfigRequest, request)


def states(calls, model="toy"):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = model
    answer = calls.model.GetModelStatus(request, timeout=SECONDS)
    names = get_model_status_pb2.ModelVersionStatus.State.Name
    return {one.version: names(one.state) for one in answer.model_version_status}


def wait_for(calls, wanted, model="toy"):
    """Until the versions' states are these; woken by every change."""
    models = calls.server.models
    with models._changed:
        assert models._changed.wait_for(
            lambda: {number: state.name for number, state, _ in models.statuses(model)} == wanted,
            SECONDS,
        ), states(calls, model)


def ask(calls, **spec):
    """The version that answered, which its answer must be of too."""
    response = calls.prediction.Predict(predict_request({"x": X}, **spec), timeout=SECONDS)
    version = response.model_spec.version.value
    assert tf.make_ndarray(response.outputs["y"]).tolist() == [[version]]
    return version


def ask_rest(calls):
    """Likewise over REST, where only the answer itself tells the version."""
    status, answer = calls.post("toy:predict", {"inputs": [[0]]})
    assert status == 200, answer
    return int(answer["outputs"][0][0])


@contextlib.contextmanager
def callers(calls, asks=(ask, ask, ask, ask_rest)):
    """Requests without a pause, in a thread each; gives the versions that answered, by thread."""
    stop = threading.Event()
    answered = [[] for _ in asks]
    failures = []

    def loop(ask_once, mine):
        while not stop.is_set():
            try:
                mine.append(ask_once(calls))
            except (grpc.RpcError, OSError, AssertionError) as error:
                failures.append(error)

    threads = [
        threading.Thread(target=loop, args=pair) for pair in zip(asks, answered, strict=True)
    ]
    for thread in threads:
        thread.start()
    try:
        yield answered
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []


@pytest.mark.parametrize("batching", [None, Batching(max_batch_size=8, timeout_seconds=0.001)])
def test_a_swap_under_load_costs_no_request(tmp_path, batching):
    write_toy(tmp_path, 1)
    with serving(tmp_path, loading=BY_HAND, max_threads=8, batching=batching) as calls:
        with callers(calls) as answered:
            for version in (2, 3, 4):
                write_toy(tmp_path, version)
                calls.server.models.poll()
                wait_for(
                    calls,
                    {version: "AVAILABLE"} | dict.fromkeys(range(1, version), "END"),
                )
        for mine in answered:
            assert mine
            assert mine == sorted(mine)
        assert {version for mine in answered for version in mine} >= {1, 4}
        assert ask(calls) == 4


def test_new_versions_are_found_without_being_told(tmp_path):
    write_toy(tmp_path, 1)
    with serving(tmp_path, loading=LoadingOptions(poll_seconds=0.05)) as calls:
        write_toy(tmp_path, 2)
        wait_for(calls, {1: "END", 2: "AVAILABLE"})
        assert ask(calls) == 2


def test_a_version_in_use_is_kept_until_its_requests_end(tmp_path):
    write_toy(tmp_path / "toy", 1)
    go = tmp_path / "go"
    with serving(tmp_path / "toy", loading=BY_HAND) as calls:
        request = predict_request({"path": [str(go)]}, signature="wait", version=1)
        entered = entries(calls.server)
        running = calls.prediction.Predict.future(request, timeout=SECONDS)
        assert entered.acquire(timeout=SECONDS)
        write_toy(tmp_path / "toy", 2)
        calls.server.models.poll()
        wait_for(calls, {1: "UNLOADING", 2: "AVAILABLE"})
        assert ask(calls) == 2
        go.touch()
        assert running.result().model_spec.version.value == 1
        wait_for(calls, {1: "END", 2: "AVAILABLE"})


def test_a_failing_version_takes_nothing_down_and_its_number_is_burnt(tmp_path):
    write_toy(tmp_path / "toy", 2)
    write_toy(tmp_path / "other", 1)
    models = config(("toy", tmp_path / "toy", ""), ("other", tmp_path / "other", ""))
    with serving(config=models, loading=BY_HAND) as calls, callers(calls) as answered:
        write_toy(tmp_path / "toy", 3, broken=True)
        calls.server.models.poll()
        wait_for(calls, {2: "AVAILABLE", 3: "END"})
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = "toy"
        newest, _ = calls.model.GetModelStatus(request).model_version_status
        assert newest.status.error_code == grpc.StatusCode.DATA_LOSS.value[0]
        assert "Can't parse" in newest.status.error_message

        # Repairing it in place, taking it away and bringing it back: nothing helps ...
        shutil.rmtree(tmp_path / "toy" / "3")
        calls.server.models.poll()
        write_toy(tmp_path / "toy", 3)
        for _ in range(3):
            calls.server.models.poll()
        assert ask(calls) == 2
        assert ask(calls, model="other") == 1
        # ... but a higher number.
        write_toy(tmp_path / "toy", 4)
        calls.server.models.poll()
        wait_for(calls, {2: "END", 3: "END", 4: "AVAILABLE"})
        assert ask(calls) == 4
    assert {version for mine in answered for version in mine} <= {2, 4}


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (lambda path: path.mkdir(), "NOT_FOUND", "Could not find SavedModel .pb or .pbtxt"),
        (lambda path: path.write_text("9"), "FAILED_PRECONDITION", "Not a directory"),
        (
            lambda path: write_toy(path.parent, 9, warm_up=[warm_up_log({}, signature="nope")]),
            "FAILED_PRECONDITION",
            'Serving signature key "nope" not found.',
        ),
    ],
)
def test_what_cannot_be_served_ends_with_the_servers_code(tmp_path, make, code, words):
    write_toy(tmp_path, 1)
    with serving(tmp_path, loading=BY_HAND) as calls:
        make(tmp_path / "9")
        calls.server.models.poll()
        wait_for(calls, {1: "AVAILABLE", 9: "END"})
        (_, _, error), _ = calls.server.models.statuses("toy")
        assert error.code.name == code
        assert words in error.message
        assert ask(calls) == 1


class Odd(tf.Module):
    """What loads in TensorFlow Serving, whatever becomes of the requests."""

    def __init__(self):
        super().__init__()
        self.factor = tf.Variable(2.0)

    @tf.function(input_signature=[tf.TensorSpec([None, 1], tf.float32, name="x")])
    def scaled(self, x):
        return {"y": x * self.factor}

    @tf.function(input_signature=[tf.TensorSpec([None, 1], tf.float32, name="x")])
    def python(self, x):
        return {"y": tf.py_function(lambda value: value, [x], tf.float32)}


@pytest.fixture
def odd(tmp_path):
    """The base path of a version 1 whose Python function belongs to another process."""
    module = Odd()
    signatures = {"serving_default": module.scaled, "python": module.python}
    tf.saved_model.save(module, str(tmp_path / "1"), signatures=signatures)
    graph = tmp_path / "1" / "saved_model.pb"
    graph.write_bytes(re.sub(rb"pyfunc_\d", b"pyfunc_x", graph.read_bytes()))
    return tmp_path


def test_a_python_function_is_not_there(odd):
    with serving(odd, loading=BY_HAND) as calls:
        assert error_of(
            calls.prediction.Predict, predict_request({"x": X}, signature="python")
        ) == (
            "INVALID_ARGUMENT",
            "No OpKernel was registered to support Op 'EagerPyFunc'",
        )
        answer = calls.prediction.Predict(predict_request({"x": X + 1}), timeout=SECONDS)
        assert tf.make_ndarray(answer.outputs["y"]).tolist() == [[2]]


@pytest.mark.parametrize("empty", [False, True])
def test_without_variables_a_version_loads_and_its_requests_fail(odd, empty):
    shutil.rmtree(odd / "1" / "variables")
    if empty:
        (odd / "1" / "variables").mkdir()
    with serving(odd, loading=BY_HAND) as calls:
        code, text = error_of(calls.prediction.Predict, predict_request({"x": X}))
        assert code == "FAILED_PRECONDITION"
        assert text.startswith("Could not find variable ")
    write_warm_up(odd / "1", [warm_up_log({"x": X})])
    refused = pytest.raises(ServingError, match="FAILED_PRECONDITION: Could not find variable ")
    with refused, serving(odd, loading=BY_HAND):
        pass


def test_a_load_is_tried_again(tmp_path):
    write_toy(tmp_path, 1)
    loading = LoadingOptions(
        poll_seconds=0, max_num_load_retries=1000, load_retry_interval_seconds=0.05
    )
    with serving(tmp_path, loading=loading) as calls:
        (tmp_path / "2").mkdir()
        calls.server.models.poll()
        wait_for(calls, {1: "AVAILABLE", 2: "LOADING"})
        (tmp_path / "2").rmdir()
        write_toy(tmp_path, 2)
        wait_for(calls, {1: "END", 2: "AVAILABLE"})


def test_the_newest_that_disappears_goes_back_to_the_one_below(tmp_path):
    write_toy(tmp_path, 1)
    newest = write_toy(tmp_path, 2)
    with serving(tmp_path, loading=BY_HAND) as calls:
        assert ask(calls) == 2
        shutil.rmtree(newest)
        calls.server.models.poll()
        wait_for(calls, {1: "AVAILABLE", 2: "END"})
        assert ask(calls) == 1


def test_without_any_version_the_model_is_gone_and_without_a_base_path_it_stays(tmp_path):
    version = write_toy(tmp_path / "toy", 1)
    with serving(tmp_path / "toy", loading=BY_HAND) as calls:
        (tmp_path / "toy").rename(tmp_path / "elsewhere")
        calls.server.models.poll()
        assert ask(calls) == 1
        (tmp_path / "elsewhere").rename(tmp_path / "toy")
        shutil.rmtree(version)
        calls.server.models.poll()
        wait_for(calls, {1: "END"})
        code, text = error_of(calls.prediction.Predict, predict_request({"x": X}))
        assert (code, text) == ("NOT_FOUND", "Servable not found for request: Latest(toy)")


def test_policies(tmp_path):
    for version in (1, 2, 3):
        write_toy(tmp_path, version)
    policy = "model_version_policy { %s }"
    for text, wanted in [
        ("", [3]),
        (policy % "latest { num_versions: 2 }", [3, 2]),
        (policy % "all {}", [3, 2, 1]),
        (policy % "specific { versions: 1 versions: 3 }", [3, 1]),
    ]:
        with serving(config=config(("toy", tmp_path, text)), loading=BY_HAND) as calls:
            assert calls.server.models.available() == {"toy": wanted}
            assert list(states(calls)) == wanted
            assert [ask(calls, version=version) for version in wanted] == wanted
            assert ask(calls) == 3


BOTH = "model_version_policy { specific { versions: 1 versions: 2 } } "
LABEL = 'version_labels {{ key: "{}" value: {} }} '


def test_labels_roll_a_version_out_and_back(tmp_path):
    for version in (1, 2, 3):
        write_toy(tmp_path, version)
    with serving(config=config(("toy", tmp_path, BOTH)), loading=BY_HAND) as calls:
        labels = LABEL.format("stable", 1) + LABEL.format("canary", 2)
        reload(calls, ("toy", tmp_path, BOTH + labels))
        assert (ask(calls, label="stable"), ask(calls, label="canary")) == (1, 2)
        reload(calls, ("toy", tmp_path, BOTH + LABEL.format("stable", 2)))
        assert ask(calls, label="stable") == 2
        code, text = error_of(calls.prediction.Predict, predict_request({"x": X}, label="canary"))
        assert (code, text) == (
            "INVALID_ARGUMENT",
            "Unrecognized servable version label: canary",
        )
        # To a version that is there but not served; all stays as it was.
        assert reload_error(calls, ("toy", tmp_path, BOTH + LABEL.format("stable", 3))) == (
            "FAILED_PRECONDITION",
            "Request to assign label to version 3 of model toy, which is not currently available "
            "for inference",
        )
        assert ask(calls, label="stable") == 2
        assert calls.post("toy/labels/stable:predict", {"inputs": [[0]]}) == (
            200,
            {"outputs": [[2.0]]},
        )


def test_labels_in_the_first_configuration_need_the_flag(tmp_path):
    write_toy(tmp_path, 1)
    labelled = config(("toy", tmp_path, LABEL.format("stable", 1)))
    refused = pytest.raises(ServingError, match="which is not currently available")
    with refused, serving(config=labelled, loading=BY_HAND):
        pass
    allowed = LoadingOptions(poll_seconds=0, labels_for_unavailable=True)
    with serving(config=labelled, loading=allowed) as calls:
        assert ask(calls, label="stable") == 1
        moved = ("toy", tmp_path, LABEL.format("stable", 2))
        assert reload_error(calls, moved)[0] == "FAILED_PRECONDITION"
        assert ask(calls, label="stable") == 1


def test_reloading_replaces_the_list(tmp_path):
    for name in ("a", "b"):
        write_toy(tmp_path / name, 1)
    a, b = (("a", tmp_path / "a", ""), ("b", tmp_path / "b", ""))
    with serving(config=config(a), loading=BY_HAND) as calls:
        reload(calls, a, b)
        assert (ask(calls, model="a"), ask(calls, model="b")) == (1, 1)
        reload(calls, b)
        wait_for(calls, {1: "END"}, "a")
        assert error_of(calls.prediction.Predict, predict_request({"x": X}, model="a")) == (
            "NOT_FOUND",
            "Servable not found for request: Latest(a)",
        )
        assert ask(calls, model="b") == 1
        reload(calls, a)
        wait_for(calls, {1: "END"}, "b")
        assert ask(calls, model="a") == 1


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ([("toy", "rel/x", "")], "Expected model toy to have an absolute path or URI"),
        ([("toy", "/x", ""), ("toy", "/x", "")], "Illegal to list model toy multiple times"),
        (
            [("toy", "/x", 'model_platform: "onnx"')],
            "Illegal to change a model's platform. For model toy platform was tensorflow and new "
            "platform requested is onnx",
        ),
        ([("new", "/x", 'model_platform: "onnx"')], "Unknown platform: onnx"),
        (
            [("toy", "/x", "model_type: OTHER")],
            "platform was tensorflow and new platform requested is other",
        ),
    ],
)
def test_a_refused_list_changes_nothing(tmp_path, models, words):
    write_toy(tmp_path, 1)
    with serving(tmp_path, loading=BY_HAND) as calls:
        code, text = reload_error(calls, *models)
        assert code == "INVALID_ARGUMENT"
        assert words in text
        assert ask(calls) == 1


def test_a_new_model_that_fails_is_told_and_the_others_go_on(tmp_path):
    write_toy(tmp_path / "a", 1)
    write_toy(tmp_path / "b", 1, broken=True)
    a, b = (("a", tmp_path / "a", ""), ("b", tmp_path / "b", ""))
    with serving(config=config(a), loading=BY_HAND) as calls:
        code, text = reload_error(calls, a, b)
        assert code == "UNKNOWN"
        assert "1 servable(s) did not become available: {{{name: b version: 1} due to" in text
        assert ask(calls, model="a") == 1


def test_the_configuration_file_is_read_again(tmp_path):
    for name in ("a", "b"):
        write_toy(tmp_path / name, 1)
    first = config(("a", tmp_path / "a", ""))
    second = config(("a", tmp_path / "a", ""), ("b", tmp_path / "b", ""))
    file = tmp_path / "models.config"
    file.write_text(str(first))
    settings = {"config_file": str(file), "config_poll_seconds": 0.05, "loading": BY_HAND}
    with serving(config=first, **settings) as calls:
        file.write_text("nonsense {")
        write_beside = tmp_path / "next.config"
        write_beside.write_text(str(second))
        write_beside.rename(file)
        models = calls.server.models
        with models._changed:
            assert models._changed.wait_for(lambda: models.available().get("b") == [1], SECONDS)
        assert ask(calls, model="b") == 1


def wait_until(calls, model, versions):
    models = calls.server.models
    with models._changed:
        assert models._changed.wait_for(
            lambda: models.available().get(model, []) == versions, SECONDS
        ), models.available()


def test_a_list_is_not_held_up_by_a_model_of_the_one_before_it(tmp_path):
    for name in ("a", "b"):
        write_toy(tmp_path / name, 1)
    first = config(("a", tmp_path / "a", ""))
    file = tmp_path / "models.config"
    settings = {"config_file": str(file), "config_poll_seconds": 0.05, "loading": BY_HAND}
    file.write_text(str(first))
    with serving(config=first, **settings) as calls:
        models = calls.server.models
        # A typing error, a path that no system takes, and a list that is in order.
        for path in (tmp_path / "c", "/" + "a" * 300, tmp_path / "b"):
            text = str(config(("b", path, ""), ("a", tmp_path / "a", "")))
            (tmp_path / "next").write_text(text)
            (tmp_path / "next").rename(file)
            until = time.monotonic() + SECONDS
            while "b" not in models._configs or models._configs["b"].base_path != str(path):
                assert time.monotonic() < until, models._configs
                time.sleep(0.01)
            models.poll()
            assert ask(calls, model="a") == 1
        wait_until(calls, "b", [1])
        # What follows an odd path in the list is looked after too.
        write_toy(tmp_path / "a", 2)
        reload(calls, ("b", tmp_path / "b", ""), ("a", tmp_path / "a", ""))
        wait_until(calls, "a", [2])


def test_a_base_path_that_cannot_be_read_changes_nothing(tmp_path, monkeypatch):
    write_toy(tmp_path, 1)
    with serving(tmp_path, loading=BY_HAND) as calls:
        models = calls.server.models

        def fail(self):
            raise PermissionError(errno.EACCES, "Permission denied", str(self))

        for method in ("iterdir", "is_dir"):
            with monkeypatch.context() as patch:
                patch.setattr("pathlib.Path." + method, fail)
                models.poll()
                assert states(calls) == {1: "AVAILABLE"}
                assert ask(calls) == 1
        write_toy(tmp_path, 2)
        models.poll()
        wait_until(calls, "toy", [2])


def test_a_base_path_that_cannot_be_read_is_told_at_the_start(tmp_path):
    with (
        pytest.raises(ModelDirectoryError, match=r"can be read, and .* is not .File name"),
        serving("/" + "a" * 300),
    ):
        pass


def test_one_model_that_fails_at_the_start_ends_the_start(tmp_path):
    write_toy(tmp_path / "a", 1)
    write_toy(tmp_path / "b", 1, broken=True)
    both = config(("a", tmp_path / "a", ""), ("b", tmp_path / "b", ""))
    with pytest.raises(ServingError, match="name: b version: 1"), serving(config=both):
        pass


def test_nothing_to_serve_is_told_at_the_start(tmp_path):
    with pytest.raises(ModelDirectoryError, match="named by a number"), serving(tmp_path):
        pass
    write_toy(tmp_path, 1)
    absent = config(("toy", tmp_path, "model_version_policy { specific { versions: 7 } }"))
    refused = pytest.raises(ModelDirectoryError, match=r"the versions \[7\] of model toy")
    with refused, serving(config=absent):
        pass
