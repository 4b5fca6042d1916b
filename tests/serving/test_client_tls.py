"""TLS and mutual TLS, good and bad; never plaintext instead."""

import contextlib
import shutil
import subprocess

import grpc
import pytest
from fake_servers import FakeModel, grpc_server, picture

from serving.client import GaterNetClient, Tls, UnavailableError
from serving.client.__main__ import main

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="makes certificates by openssl")


@pytest.fixture(scope="module")
def pems(tmp_path_factory):
    """ca and other_ca; server (for localhost and 127.0.0.1), named (for models.example), client."""
    directory = tmp_path_factory.mktemp("pems")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    def new(name):
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        return ["req", *key, "-subj", f"/CN={name}", "-keyout", f"{name}.key"]

    for name in ("ca", "other_ca"):
        openssl(*new(name), "-x509", "-days", "30", "-out", f"{name}.pem")
    for name, alternatives in (
        ("server", "DNS:localhost,IP:127.0.0.1"),
        ("named", "DNS:models.example"),
        ("client", "DNS:client"),
    ):
        (directory / "extensions").write_text(f"subjectAltName={alternatives}\n")
        openssl(*new(name), "-out", f"{name}.csr")
        authority = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"]
        files = ["-in", f"{name}.csr", "-extfile", "extensions", "-out", f"{name}.pem"]
        openssl("x509", "-req", "-days", "30", *authority, *files)
    return directory


@contextlib.contextmanager
def tls_server(pems, model, name="server", mutual=False):
    """Serves a model over TLS with one of the certificates; yields host:port."""
    pair = ((pems / f"{name}.key").read_bytes(), (pems / f"{name}.pem").read_bytes())
    authority = (pems / "ca.pem").read_bytes() if mutual else None
    with grpc_server(model, 0, grpc.ssl_server_credentials([pair], authority, mutual)) as target:
        yield target


def classify(target, tls):
    with GaterNetClient(target, "fake", tls=tls, timeout=60) as client:
        return client.classify([picture(1)])[0].label


def test_a_server_whose_authority_is_known(pems):
    with tls_server(pems, FakeModel()) as target:
        for name in (target, target.replace("127.0.0.1", "localhost")):
            assert classify(name, Tls(ca=pems / "ca.pem")) == "dog"


def test_an_authority_that_is_not_known_is_refused(pems):
    model = FakeModel()
    with tls_server(pems, model) as target:
        # The second asks those that gRPC brings.
        for tls in (Tls(ca=pems / "other_ca.pem"), Tls()):
            with pytest.raises(UnavailableError):
                classify(target, tls)
    assert model.rows == []


def test_mutual_tls(pems):
    model = FakeModel()
    with tls_server(pems, model, mutual=True) as target:
        with pytest.raises(UnavailableError):
            classify(target, Tls(ca=pems / "ca.pem"))
        assert model.rows == []
        own = {"cert": pems / "client.pem", "key": pems / "client.key"}
        assert classify(target, Tls(ca=pems / "ca.pem", **own)) == "dog"


def test_plaintext_to_a_server_that_speaks_tls(pems):
    with (
        tls_server(pems, FakeModel()) as target,
        pytest.raises(UnavailableError, match="--tls if it speaks TLS"),
    ):
        classify(target, None)


def test_the_commands_flags(pems, tmp_path, capsys):
    (tmp_path / "dog.png").write_bytes(picture(1))
    with tls_server(pems, FakeModel(), "named", mutual=True) as target:
        flags = [f"--target={target}", "--model=fake", str(tmp_path / "dog.png")]
        flags.append("--tls_server_name=models.example")
        assert main(flags) == 4
        flags += [f"--tls_cert={pems / 'client.pem'}", f"--tls_key={pems / 'client.key'}"]
        assert main([*flags, f"--tls_ca={pems / 'ca.pem'}"]) == 0
    assert "dog" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"ca": "missing.pem"}, "missing.pem.*No such file"),
        ({"ca": "ca.key"}, "ca.key"),
        ({"cert": "client.pem"}, "together"),
        ({"cert": "client.pem", "key": "server.key"}, "server.key.*(?i:mismatch)"),
    ],
)
def test_files_that_are_not_what_they_must_be_are_wrong_usage(files, words, pems, capsys):
    files = {name: str(pems / file) for name, file in files.items()}
    with pytest.raises(ValueError, match=words):
        GaterNetClient("localhost:1", "fake", tls=Tls(**files))
    assert main([*(f"--tls_{name}={file}" for name, file in files.items()), "picture.png"]) == 2
    assert "serving.client: error: " in capsys.readouterr().err
