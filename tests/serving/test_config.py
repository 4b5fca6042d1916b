"""The real server's configuration files and flags: what it refuses is refused, in its words."""

import pytest
from helpers import run_module
from tensorflow_serving.config import model_server_config_pb2

from serving import config
from serving.versions import find_versions, parse_version


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "text.config"
        path.write_text(text)
        return str(path)

    return write


def test_batching_parameters(write):
    found = config.read_batching(
        write(
            "max_batch_size { value: 8 } batch_timeout_micros { value: 2000 } "
            "max_enqueued_batches { value: 100 } num_batch_threads { value: 2 } "
            "allowed_batch_sizes: 4 allowed_batch_sizes: 8 pad_variable_length_inputs: true "
            'thread_pool_name { value: "pool" }'
        )
    )
    assert found == config.Batching(8, 0.002, 100, 2, (4, 8), True, False, 8)


def test_batching_defaults_are_the_servers(write):
    found = config.read_batching(write(""))
    assert found == config.Batching()
    assert (found.max_batch_size, found.timeout_seconds, found.max_enqueued_batches) == (
        1000,
        0,
        10,
    )


def test_large_batches_are_split(write):
    found = config.read_batching(
        write(
            "max_batch_size { value: 64 } enable_large_batch_splitting { value: true } "
            "max_execution_batch_size { value: 16 } allowed_batch_sizes: 16"
        )
    )
    assert (found.split, found.rows_at_once, found.max_batch_size) == (True, 16, 64)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_batch_size: 8", "must be a text proto BatchingParameters"),
        ("max_batch_sise { value: 8 }", "max_batch_sise"),
        (
            "max_batch_size { value: 8 } allowed_batch_sizes: 4",
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 4; "
            "expected 8",
        ),
        (
            "max_batch_size { value: 8 } allowed_batch_sizes: 8 allowed_batch_sizes: 4",
            "monotonically increasing",
        ),
        ("num_batch_threads { value: 0 }", "num_batch_threads must be at least 1"),
        ("batch_timeout_micros { value: -1 }", "batch_timeout_micros must be at least 0"),
    ],
)
def test_wrong_batching_parameters(write, text, words):
    with pytest.raises(config.ConfigError) as error:
        config.read_batching(write(text))
    assert words in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(config.ConfigError, match=r"must be a file, and .*No such file"):
        config.read_batching(str(tmp_path / "none"))


def test_monitoring(write):
    for text, wanted in [
        ("prometheus_config { enable: true }", config.PROMETHEUS_PATH),
        ('prometheus_config { enable: true path: "/m" }', "/m"),
        ('prometheus_config { path: "/m" }', None),
        ("", None),
    ]:
        assert config.read_monitoring(write(text)) == wanted


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", "server_key"),
        ('server_key: "-----BEGIN KEY"', "server_cert"),
        ('server_key: "key.pem" server_cert: "-----BEGIN C"', "server_key"),
        (
            'server_key: "-----BEGIN K" server_cert: "-----BEGIN C" client_verify: true',
            "custom_ca",
        ),
    ],
)
def test_ssl_needs_the_texts_themselves(write, text, name):
    with pytest.raises(config.ConfigError, match=f"must have PEM text as {name}"):
        config.read_ssl(write(text))


def model(name="m", path="/abs/m", more='model_platform: "tensorflow"'):
    return f'config {{ name: "{name}" base_path: "{path}" {more} }}'


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (
            [model(path="rel/x")],
            "Expected model m to have an absolute path or URI; got base_path()=rel/x",
        ),
        ([model(), model()], "Illegal to list model m multiple times in config list"),
        (
            [model(more="")],
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor",
        ),
        (
            [model(more='model_type: TENSORFLOW model_platform: "tensorflow"')],
            "Illegal setting both ModelServerConfig::model_type (deprecated) and",
        ),
        ([model(more='model_platform: "torch"')], "Unknown platform: torch"),
    ],
)
def test_wrong_lists_of_models(write, models, words):
    with pytest.raises(config.ConfigError) as error:
        config.read_models(write(f"model_config_list {{ {' '.join(models)} }}"))
    assert words in str(error.value)


def test_a_list_of_models(write):
    text = model(
        more='model_platform: "tensorflow" model_version_policy { latest { num_versions: 2 } } '
        'version_labels { key: "stable" value: 1 }'
    )
    found = config.read_models(write(f"model_config_list {{ {text} }}"))
    assert isinstance(found, model_server_config_pb2.ModelServerConfig)
    (one,) = found.model_config_list.config
    assert (one.name, dict(one.version_labels)) == ("m", {"stable": 1})
    assert one.model_version_policy.latest.num_versions == 2


def test_one_model_by_flags_is_a_list_of_one():
    (one,) = config.single_model("m", "rel/x").model_config_list.config
    # Only a list's paths must be absolute.
    assert (one.name, one.base_path, one.model_platform) == ("m", "rel/x", "tensorflow")


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("00000005", 5),
        ("+8", 8),
        ("-3", -3),
        ("9223372036854775807", 2**63 - 1),
        ("9223372036854775808", None),
        ("0" * 5000 + "7", 7),
        ("9" * 5000, None),
        ("0", 0),
        ("1.5", None),
        ("tmp-1", None),
        (".staging", None),
        ("abc", None),
        ("", None),
        ("1_000", None),
        ("\u0663", None),
    ],
)
def test_what_is_a_version(name, number):
    assert parse_version(name) == number


def test_files_and_links_count_as_versions(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "2").symlink_to("1")
    (tmp_path / "9").write_text("a file")
    (tmp_path / "tmp-3").mkdir()
    assert set(find_versions(tmp_path)) == {1, 2, 9}


def test_of_two_names_for_one_number_the_last_counts_with_a_warning(tmp_path, caplog):
    for name in ("07", "7"):
        (tmp_path / name).mkdir()
    assert find_versions(tmp_path) == {7: tmp_path / "7"}
    assert caplog.messages == [
        f"Duplicate version directories detected. Version 7 will be loaded from {tmp_path / '7'}, "
        f"{tmp_path / '07'} will be ignored."
    ]


def test_flags_that_contradict_each_other_are_refused(tmp_path, write):
    file = write("")
    base = f"--model_base_path={tmp_path}"
    for flags, words in [
        ([base, "--file_system_poll_wait_seconds=-1"], "--file_system_poll_wait_seconds"),
        ([base, "--port=8501", "--rest_api_port=8501"], "--rest_api_port cannot be same as --port"),
        ([base, f"--batching_parameters_file={file}"], "requires --enable_batching"),
        ([base, f"--ssl_config_file={file}"], "must have PEM text as server_key"),
        (["--model_config_file=none.config"], "--model_config_file must be a file"),
    ]:
        run_module("serving.server", *flags, cwd=tmp_path).assert_refused(words)
    enabled = write("prometheus_config { enable: true }")
    run_module(
        "serving.server", base, f"--monitoring_config_file={enabled}", cwd=tmp_path
    ).assert_refused("requires --rest_api_port")
