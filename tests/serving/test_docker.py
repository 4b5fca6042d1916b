"""serving/docker: every file parses by the definitions of what reads it, and they agree."""

import re
import shutil
import subprocess

import grpc
import numpy as np
import pytest
from google.protobuf import text_format
from helpers import ROOT
from local_servers import error_of, serving
from tensorflow_serving.config import model_server_config_pb2
from toy_models import predict_request, write_toy

from export.warmup import BATCH_SIZES
from serving import config

yaml = pytest.importorskip("yaml")

DOCKER = ROOT / "serving" / "docker"
IMAGE = "tensorflow/serving:2.20.0"
CONFIGS = ("models.config", "batching.config", "monitoring.config")
X = {"x": np.zeros((1, 1), np.float32)}


def load(name):
    return yaml.safe_load((DOCKER / name).read_text())


def compose():
    return load("compose.yaml")["services"]["gaternet"]


def manifests():
    """All Kubernetes objects by kind and name."""
    found = {}
    for name in load("kubernetes/kustomization.yaml")["resources"]:
        for one in yaml.safe_load_all((DOCKER / "kubernetes" / name).read_text()):
            found[one["kind"], one["metadata"]["name"]] = one
    return found


def container():
    (found,) = manifests()["Deployment", "gaternet"]["spec"]["template"]["spec"]["containers"]
    return found


def flags(arguments):
    return dict(one.removeprefix("--").split("=", 1) for one in arguments)


@pytest.mark.parametrize("name", ["models.config", "models.canary.config"])
def test_lists_of_models_parse_as_the_servers_own_message(name):
    text = (DOCKER / name).read_text()
    found = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    (model,) = found.model_config_list.config
    assert (model.name, model.base_path) == ("gaternet", "/models/gaternet")
    assert config.read_models(str(DOCKER / name)) == found


def test_canary_labels_are_of_versions_that_are_served():
    (model,) = config.read_models(str(DOCKER / "models.canary.config")).model_config_list.config
    served = set(model.model_version_policy.specific.versions)
    assert dict(model.version_labels) == {"stable": 1, "canary": 2}
    assert set(model.version_labels.values()) == served


def test_batching_and_monitoring_parse():
    batching = config.read_batching(str(DOCKER / "batching.config"))
    assert (batching.max_batch_size, batching.threads) == (32, 2)
    # Warm-up records are batched like requests.
    assert batching.max_batch_size >= max(BATCH_SIZES)
    assert config.read_monitoring(str(DOCKER / "monitoring.config")) == config.PROMETHEUS_PATH


def test_compose_pins_the_image_and_mounts_read_only():
    service = compose()
    assert service["image"] == IMAGE
    assert [port.rsplit("}:", 1)[1] for port in service["ports"]] == ["8500:8500", "8501:8501"]
    assert all(port.startswith("${GATERNET_BIND:-127.0.0.1}") for port in service["ports"])
    assert [(one["target"], one["read_only"]) for one in service["volumes"]] == [
        ("/models/gaternet", True),
        ("/config", True),
    ]


def test_the_model_path_of_compose_is_what_the_list_of_models_says():
    (model,) = config.read_models(str(DOCKER / "models.config")).model_config_list.config
    targets = [one["target"] for one in compose()["volumes"]]
    assert model.base_path in targets
    for path in flags(compose()["command"]).values():
        if path.startswith("/config/"):
            assert (DOCKER / path.removeprefix("/config/")).is_file()


def test_compose_with_tls_has_the_same_flags_and_its_own():
    service = load("compose.tls.yaml")["services"]["gaternet"]
    assert service["command"] == [*compose()["command"], "--ssl_config_file=/tls/ssl.config"]
    assert [one["target"] for one in service["volumes"]] == ["/tls/ssl.config"]


def test_flags_are_those_that_the_local_server_has_too():
    """Its flags are named as the real server's, so this finds what is misspelt."""
    from absl import flags as absl_flags

    import serving.server  # noqa: F401 - defines the flags

    known = set(absl_flags.FLAGS)
    for arguments in (compose()["command"], container()["args"]):
        assert set(flags(arguments)) <= known
    kserve = load("kserve/inferenceservice.yaml")["spec"]["predictor"]["model"]["args"]
    assert set(flags(kserve)) <= known


def test_kubernetes_runs_the_same_server():
    assert container()["image"] == IMAGE
    cpus = {"tensorflow_intra_op_parallelism", "tensorflow_inter_op_parallelism"}
    wanted, found = flags(compose()["command"]), flags(container()["args"])
    assert {key: found[key] for key in wanted if key not in cpus} == {
        key: wanted[key] for key in wanted if key not in cpus
    }
    for key in cpus:
        assert found[key] == container()["resources"]["limits"]["cpu"]
        assert wanted[key] == "${GATERNET_CPUS:-2}"
    assert found.keys() == wanted.keys()


def test_the_config_map_holds_the_files():
    data = manifests()["ConfigMap", "gaternet-config"]["data"]
    assert data == {name: (DOCKER / name).read_text() for name in CONFIGS}


def test_kubernetes_objects_refer_to_each_other():
    found = manifests()
    deployment = found["Deployment", "gaternet"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    ports = {one["name"]: one["containerPort"] for one in container()["ports"]}
    assert ports == {"grpc": 8500, "rest": 8501}
    for name in ("gaternet", "gaternet-pods"):
        service = found["Service", name]["spec"]
        assert service["selector"] == labels
        assert {one["targetPort"] for one in service["ports"]} <= set(ports)
    assert found["PodDisruptionBudget", "gaternet"]["spec"]["selector"]["matchLabels"] == labels
    target = found["HorizontalPodAutoscaler", "gaternet"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", "gaternet")
    template = deployment["template"]
    mounts = {one["name"]: one["mountPath"] for one in container()["volumeMounts"]}
    assert {one["name"] for one in template["spec"]["volumes"]} == set(mounts)
    assert (mounts["models"], mounts["config"]) == ("/models", "/config")
    annotations = template["metadata"]["annotations"]
    assert annotations["prometheus.io/path"] == config.PROMETHEUS_PATH
    pause = int(container()["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pause < template["spec"]["terminationGracePeriodSeconds"]


def test_kubernetes_objects_keep_to_their_schemas():
    validate = pytest.importorskip("kubernetes_validate").validate
    for version in ("1.29", "1.33"):
        for one in manifests().values():
            validate(one, version, strict=True)


def test_kserve_serves_with_the_same_release():
    service = load("kserve/inferenceservice.yaml")
    assert (service["apiVersion"], service["kind"]) == (
        "serving.kserve.io/v1beta1",
        "InferenceService",
    )
    model = service["spec"]["predictor"]["model"]
    assert model["modelFormat"] == {"name": "tensorflow", "version": "2"}
    assert f"tensorflow/serving:{model['runtimeVersion']}" == IMAGE
    claim = container_claim()
    assert model["storageUri"] == f"pvc://{claim}/gaternet"


def container_claim():
    volumes = manifests()["Deployment", "gaternet"]["spec"]["template"]["spec"]["volumes"]
    (claim,) = [one["persistentVolumeClaim"] for one in volumes if one["name"] == "models"]
    assert claim["readOnly"]
    return claim["claimName"]


def health_checks():
    return {
        "compose": compose()["healthcheck"]["test"][1:],
        "kubernetes": container()["readinessProbe"]["exec"]["command"],
    }


@pytest.mark.parametrize("where", health_checks())
def test_healthy_is_a_version_that_is_available(tmp_path, where):
    """Runs the very command, on another port and another model."""
    write_toy(tmp_path)
    program, option, script = health_checks()[where]
    assert (program, option) == ("bash", "-c")

    def healthy(port):
        there = script.replace("/8501", f"/{port}").replace("/models/gaternet ", "/models/toy ")
        assert there != script
        return subprocess.run(
            [program, option, there], check=False, timeout=60, stderr=subprocess.DEVNULL
        )

    with serving(tmp_path) as calls:
        port = calls.server.rest_port
        assert healthy(port).returncode == 0
        shutil.rmtree(tmp_path / "1")
        models = calls.server.models
        models.poll()
        with models._changed:
            assert models._changed.wait_for(lambda: not models.available()["toy"], 60)
        assert healthy(port).returncode != 0
    assert healthy(port).returncode != 0


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    if not shutil.which("openssl"):
        pytest.skip("openssl makes the certificates, and there is none")
    directory = tmp_path_factory.mktemp("tls") / "made"
    script = str(DOCKER / "make_test_tls.sh")
    subprocess.run([script, str(directory), "localhost", "127.0.0.1", "::1"], check=True)
    return directory


def test_the_test_authority_leaves_no_key_behind(tls):
    assert {one.name for one in tls.iterdir()} == {
        *("ca.pem", "server.pem", "server.key", "client.pem", "client.key", "ssl.config")
    }
    assert tls.stat().st_mode & 0o077 == 0
    again = subprocess.run(
        [str(DOCKER / "make_test_tls.sh"), str(tls)], check=False, capture_output=True, text=True
    )
    assert again.returncode == 1
    assert "must not exist yet" in again.stderr


def channel_to(port, tls, host="localhost", authority="ca.pem", client="client"):
    def read(name):
        return (tls / name).read_bytes()

    key, chain = (read(f"{client}.key"), read(f"{client}.pem")) if client else (None, None)
    credentials = grpc.ssl_channel_credentials(read(authority), key, chain)
    return grpc.secure_channel(f"{host}:{port}", credentials, [("grpc.enable_http_proxy", 0)])


def test_tls_asks_for_a_client_certificate(tmp_path, tls):
    write_toy(tmp_path)
    ssl = config.read_ssl(str(tls / "ssl.config"))
    assert ssl.client_verify
    request = predict_request(X)
    with serving(tmp_path, ssl=ssl) as plain:
        port = plain.server.port
        stub = type(plain.prediction)
        for host in ("localhost", "127.0.0.1"):
            with channel_to(port, tls, host) as channel:
                answer = stub(channel).Predict(request, timeout=60)
                assert answer.model_spec.version.value == 1
        for wrong in (
            channel_to(port, tls, client=None),
            # Signed, but not by the authority that the client trusts.
            channel_to(port, tls, authority="client.pem"),
        ):
            with wrong as channel:
                assert error_of(stub(channel).Predict, request)[0] == "UNAVAILABLE"
        assert error_of(plain.prediction.Predict, request)[0] == "UNAVAILABLE"
        # As on the real server, REST stays plain.
        assert plain.post("toy:predict", {"inputs": [[0]]})[0] == 200


def test_docs_name_files_that_are_there():
    text = (ROOT / "docs" / "serving.md").read_text()
    for path in re.findall(r"serving/docker/[\w./]*\w", text):
        assert (ROOT / path).exists(), path
