"""TLS and mutual TLS with the test certificates, good and bad; never plaintext instead."""

import contextlib
import json
import re
import shutil
import subprocess

import grpc
import pytest
from fake_servers import FakeModel, grpc_server, picture
from helpers import ROOT

from serving.client import GaterNetClient, Tls, UnavailableError
from serving.client.__main__ import main

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="makes certificates by openssl")


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """Certificates for localhost and 127.0.0.1, and others for models.example."""
    made = [tmp_path_factory.mktemp(name) / "tls" for name in ("local", "named")]
    for directory, names in zip(made, ([], ["models.example"]), strict=True):
        script = ROOT / "serving" / "docker" / "make_test_tls.sh"
        subprocess.run([script, directory, *names], check=True)
    return made


@pytest.fixture
def local(directories):
    return directories[0]


@pytest.fixture
def named(directories):
    return directories[1]


@contextlib.contextmanager
def tls_server(directory, model, mutual=False):
    """Serves a model over TLS with what ssl.config holds; yields host:port."""
    text = (directory / "ssl.config").read_text()
    settings = {name: json.loads(value) for name, value in re.findall(r"(\w+): (.*)\n", text)}
    assert settings.pop("client_verify") is True
    key, chain, authority = (value.encode() for value in settings.values())
    credentials = grpc.ssl_server_credentials([(key, chain)], authority, mutual)
    with grpc_server(model, credentials=credentials) as target:
        yield target


def classify(target, tls):
    with GaterNetClient(target, "fake", tls=tls, timeout=60) as client:
        return client.classify([picture(1)])[0].label


def test_a_server_whose_authority_is_known(local):
    with tls_server(local, FakeModel()) as target:
        for name in (target, target.replace("127.0.0.1", "localhost")):
            assert classify(name, Tls(ca=local / "ca.pem")) == "dog"


def test_an_authority_that_is_not_known_is_refused(local, named):
    model = FakeModel()
    with tls_server(local, model) as target:
        # The second asks those that gRPC brings.
        for tls in (Tls(ca=named / "ca.pem"), Tls()):
            with pytest.raises(UnavailableError):
                classify(target, tls)
    assert model.rows == []


def test_mutual_tls(local):
    model = FakeModel()
    with tls_server(local, model, mutual=True) as target:
        with pytest.raises(UnavailableError, match="--tls_cert and --tls_key"):
            classify(target, Tls(ca=local / "ca.pem"))
        assert model.rows == []
        own = {"cert": local / "client.pem", "key": local / "client.key"}
        assert classify(target, Tls(ca=local / "ca.pem", **own)) == "dog"
    assert local.stat().st_mode & 0o077 == 0


def test_plaintext_to_a_server_that_speaks_tls(local):
    with (
        tls_server(local, FakeModel()) as target,
        pytest.raises(UnavailableError, match="--tls if it speaks TLS"),
    ):
        classify(target, None)


def test_the_commands_flags(named, tmp_path, capsys):
    (tmp_path / "dog.png").write_bytes(picture(1))
    with tls_server(named, FakeModel(), mutual=True) as target:
        flags = [f"--target={target}", "--model=fake", str(tmp_path / "dog.png")]
        flags.append("--tls_server_name=models.example")
        assert main(flags) == 4
        flags += [f"--tls_cert={named / 'client.pem'}", f"--tls_key={named / 'client.key'}"]
        assert main([*flags, f"--tls_ca={named / 'ca.pem'}"]) == 0
    assert "dog" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"ca": "missing.pem"}, "missing.pem.*No such file"),
        ({"cert": "client.pem"}, "together"),
        ({"cert": "client.pem", "key": "server.key"}, "server.key.*(?i:mismatch)"),
    ],
)
def test_files_that_are_not_what_they_must_be_are_wrong_usage(files, words, local, capsys):
    flags = [f"--tls_{name}={local / file}" for name, file in files.items()]
    assert main([*flags, "picture.png"]) == 2
    assert re.search(f"serving.client: error: .*{words}", capsys.readouterr().err)
