"""serving/docker: the files are valid and agree with each other."""

import http.server
import json
import re
import subprocess
import threading

import pytest
from google.protobuf import text_format
from helpers import ROOT
from tensorflow_serving.config import model_server_config_pb2

yaml = pytest.importorskip("yaml")

DOCKER = ROOT / "serving" / "docker"
CPU_FLAGS = {"--tensorflow_intra_op_parallelism", "--tensorflow_inter_op_parallelism"}


def load(name):
    return yaml.safe_load((DOCKER / name).read_text())


def compose(name="compose.yaml"):
    return load(name)["services"]["gaternet"]


def compose_configs():
    """Returns the names of the files that the server reads from /config."""
    paths = flags(compose()["command"]).values()
    return [path.removeprefix("/config/") for path in paths if path.startswith("/config/")]


def manifests():
    """Returns all Kubernetes objects by kind and name."""
    objects = [
        document
        for name in load("kustomization.yaml")["resources"]
        for document in yaml.safe_load_all((DOCKER / name).read_text())
    ]
    return {(entry["kind"], entry["metadata"]["name"]): entry for entry in objects}


def pod():
    return manifests()["Deployment", "gaternet"]["spec"]["template"]["spec"]


def flags(arguments):
    return dict(argument.split("=", 1) for argument in arguments)


@pytest.mark.parametrize(
    ("name", "labels"),
    [("models.config", {}), ("models.canary.config", {"stable": 1, "canary": 2})],
)
def test_model_lists_parse_and_label_only_versions_that_they_serve(name, labels):
    text = (DOCKER / name).read_text()
    parsed = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    (model,) = parsed.model_config_list.config
    assert (model.name, model.base_path) == ("gaternet", "/models/gaternet")
    assert model.base_path in [mount["target"] for mount in compose()["volumes"]]
    assert dict(model.version_labels) == labels
    assert set(labels.values()) <= set(model.model_version_policy.specific.versions)


def test_batches_hold_the_warm_up_records_and_threads_fill_them():
    """tensorflow-serving-api has no message for this file; each number is in a wrapper."""
    text = (DOCKER / "batching.config").read_text()
    (size,) = re.findall(r"^max_batch_size \{ value: (\d+) \}$", text, re.MULTILINE)
    assert int(size) >= 32
    # A batch has at most as many requests as there are threads.
    for flag in ("--grpc_max_threads", "--rest_api_num_threads"):
        assert int(flags(compose()["command"])[flag]) >= 2 * int(size)


def test_compose_publishes_on_loopback_and_mounts_read_only():
    service = compose()
    assert re.fullmatch(r"tensorflow/serving:\d+\.\d+\.\d+", service["image"])
    bind = "${GATERNET_BIND:-127.0.0.1}"
    assert service["ports"] == [f"{bind}:8500:8500", f"{bind}:8501:8501"]
    tls = compose("compose.tls.yaml")
    assert all(mount["read_only"] for mount in service["volumes"] + tls["volumes"])
    assert all((DOCKER / name).is_file() for name in compose_configs())
    assert tls["command"] == [*service["command"], "--ssl_config_file=/tls/ssl.config"]
    assert [mount["target"] for mount in tls["volumes"]] == ["/tls/ssl.config"]


def test_kubernetes_runs_what_compose_runs():
    (container,) = pod()["containers"]
    assert container["image"] == compose()["image"]
    here, there = flags(container["args"]), flags(compose()["command"])
    assert {here.pop(flag) for flag in CPU_FLAGS} == {container["resources"]["limits"]["cpu"]}
    assert {there.pop(flag) for flag in CPU_FLAGS} == {"${GATERNET_CPUS:-2}"}
    assert here == there
    assert container["readinessProbe"]["exec"]["command"] == compose()["healthcheck"]["test"][1:]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    (config,) = [v["configMap"]["name"] for v in pod()["volumes"] if v["name"] == mounts["/config"]]
    (generated,) = load("kustomization.yaml")["configMapGenerator"]
    assert generated == {"name": config, "files": compose_configs()}


def test_kubernetes_objects_are_valid_and_select_the_same_pods():
    validate = pytest.importorskip("kubernetes_validate").validate
    objects = manifests()
    for version in ("1.29", "1.33"):
        for entry in objects.values():
            validate(entry, version, strict=True)
    deployment = objects["Deployment", "gaternet"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    assert objects["Service", "gaternet"]["spec"]["selector"] == labels
    assert objects["Service", "gaternet-pods"]["spec"]["selector"] == labels
    policy = objects["NetworkPolicy", "gaternet"]["spec"]
    assert policy["podSelector"]["matchLabels"] == labels
    ports = {port["name"] for port in pod()["containers"][0]["ports"]}
    assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} == ports
    target = objects["HorizontalPodAutoscaler", "gaternet"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", "gaternet")


@pytest.mark.parametrize(("state", "status"), [("AVAILABLE", 0), ("END", 1)])
def test_healthy_means_that_a_version_is_available(state, status):
    class StatusPage(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.path == "/v1/models/gaternet"
            self.send_response(200)
            self.end_headers()
            document = {"model_version_status": [{"version": "1", "state": state}]}
            self.wfile.write(json.dumps(document, indent=1).encode())

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), StatusPage) as server:
        threading.Thread(target=server.handle_request).start()
        _, *command = compose()["healthcheck"]["test"]
        command[-1] = command[-1].replace("/8501", f"/{server.server_port}")
        assert subprocess.run(command, timeout=60).returncode == status
