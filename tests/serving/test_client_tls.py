"""TLS and mutual TLS, good and bad, over gRPC and HTTPS; never plaintext instead."""

import shutil
import socket
import ssl
import subprocess
import threading

import grpc
import pytest
from fake_servers import FakeModel, grpc_server, picture, rest_server

from serving.client import GaterNetClient, SettingsError, Tls, UnavailableError
from serving.client_command import main

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="makes certificates by openssl")


def openssl(*arguments, cwd):
    subprocess.run(["openssl", *arguments], cwd=cwd, check=True, capture_output=True)


@pytest.fixture(scope="module")
def pems(tmp_path_factory):
    """ca, other_ca; server (of localhost and 127.0.0.1), named (models.example), client."""
    directory = tmp_path_factory.mktemp("pems")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    for name in ("ca", "other_ca"):
        openssl(
            *("req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.pem"),
            *("-days", "30", "-subj", f"/CN={name}"),
            cwd=directory,
        )
    names = {
        "server": "DNS:localhost,IP:127.0.0.1",
        "named": "DNS:models.example",
        "client": "DNS:client",
    }
    for name, alternatives in names.items():
        (directory / "names").write_text(f"subjectAltName={alternatives}\n")
        openssl(
            *("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"),
            cwd=directory,
        )
        openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key"),
            *("-CAcreateserial", "-days", "30", "-extfile", "names", "-out", f"{name}.pem"),
            cwd=directory,
        )
    return directory


def server_credentials(pems, name="server", mutual=False):
    pair = [((pems / f"{name}.key").read_bytes(), (pems / f"{name}.pem").read_bytes())]
    ca = (pems / "ca.pem").read_bytes() if mutual else None
    return grpc.ssl_server_credentials(pair, ca, mutual)


def server_context(pems, name="server", mutual=False):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pems / f"{name}.pem", pems / f"{name}.key")
    if mutual:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(pems / "ca.pem")
    return context


@pytest.fixture(params=["grpc", "rest"])
def secure(request, pems):
    """Starts a TLS server over either transport."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(model, **how):
            if request.param == "grpc":
                server = grpc_server(model, credentials=server_credentials(pems, **how))
            else:
                server = rest_server(model, context=server_context(pems, **how))
            return stack.enter_context(server)

        yield start


def label(target, **settings):
    with GaterNetClient(target, "fake", attempts=1, timeout=10, **settings) as client:
        (answer,) = client.classify([picture(1)])
        return answer.label


def test_a_server_whose_authority_is_known(secure, pems):
    target = secure(FakeModel())
    assert label(target, tls=Tls(ca=pems / "ca.pem")) == "dog"
    assert label(target.replace("127.0.0.1", "localhost"), tls=Tls(ca=pems / "ca.pem")) == "dog"


def test_an_authority_that_is_not_known_is_refused(secure, pems):
    model = FakeModel()
    target = secure(model)
    for tls in (True, Tls(ca=pems / "other_ca.pem")):
        with pytest.raises(UnavailableError, match=r"(?i)certificate.verify.failed|handshake"):
            label(target, tls=tls)
    assert not model.calls


def test_a_name_that_is_not_in_the_certificate_is_refused_unless_given(secure, pems):
    target = secure(FakeModel(), name="named")
    with pytest.raises(UnavailableError):
        label(target, tls=Tls(ca=pems / "ca.pem"))
    assert label(target, tls=Tls(ca=pems / "ca.pem", server_name="models.example")) == "dog"


def test_mutual_tls(secure, pems):
    model = FakeModel()
    target = secure(model, mutual=True)
    own = {"cert": pems / "client.pem", "key": pems / "client.key"}
    assert label(target, tls=Tls(ca=pems / "ca.pem", **own)) == "dog"
    calls = model.calls.copy()
    with pytest.raises(UnavailableError):
        label(target, tls=Tls(ca=pems / "ca.pem"))
    assert model.calls == calls


def test_plaintext_to_a_server_that_speaks_tls(secure, pems):
    target = secure(FakeModel()).replace("https:", "http:")
    with pytest.raises(UnavailableError, match="--tls if it speaks TLS"):
        label(target)


@pytest.mark.parametrize("scheme", ["", "https://"])
def test_tls_to_a_server_that_speaks_plaintext_sends_it_nothing_readable(scheme, pems):
    received = []
    with socket.create_server(("127.0.0.1", 0)) as plain:
        plain.settimeout(60)

        def listen():
            connection, _ = plain.accept()
            with connection:
                received.append(connection.recv(10_000))

        thread = threading.Thread(target=listen)
        thread.start()
        target = f"{scheme}127.0.0.1:{plain.getsockname()[1]}"
        with pytest.raises(UnavailableError):
            label(target, tls=Tls(ca=pems / "ca.pem"), version=1)
        thread.join()
    assert received[0][:2] == b"\x16\x03"  # a TLS handshake
    assert b"fake" not in received[0]


def test_flags_that_name_a_file_mean_tls(secure, pems, tmp_path, capsys):
    (tmp_path / "dog.png").write_bytes(picture(1))
    target = secure(FakeModel(), mutual=True)
    arguments = [f"--target={target}", "--model=fake", str(tmp_path / "dog.png")]
    own = [f"--tls_cert={pems / 'client.pem'}", f"--tls_key={pems / 'client.key'}"]
    assert main([*arguments, f"--tls_ca={pems / 'ca.pem'}", *own]) == 0
    assert "dog" in capsys.readouterr().out
    # The well-known authorities did not sign it.
    assert main([*arguments, "--tls", "--timeout=2"]) == 4
    assert main([*arguments, "--tls_server_name=localhost", "--timeout=2"]) == 4


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"ca": "missing.pem"}, "authorities.*missing.pem.*No such file"),
        ({"ca": "ca.key"}, "authorities"),
        ({"cert": "client.pem"}, "together.*a certificate only"),
        ({"key": "client.key"}, "together.*a key only"),
        ({"cert": "client.pem", "key": "server.key"}, "a certificate and its key.*(?i:mismatch)"),
        ({"cert": "client.key", "key": "client.pem"}, "a certificate and its key"),
    ],
)
def test_files_that_are_not_what_they_must_be_are_wrong_usage(files, words, pems, capsys):
    files = {name: pems / file for name, file in files.items()}
    with pytest.raises(SettingsError, match=words):
        Tls(**files)
    flags = [f"--tls_{name}={file}" for name, file in files.items()]
    assert main([*flags, "--target=localhost:1", "picture.png"]) == 2
    assert "serving.client: error: " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ca", "cert", "key", "server_name"])
@pytest.mark.parametrize("target", ["localhost:1", "https://localhost:1"])
def test_empty_settings_do_not_stand_for_the_default(name, target, capsys):
    with pytest.raises(SettingsError, match=f"--tls_{name}.*an empty one"):
        Tls(**{name: ""})
    assert main([f"--tls_{name}=", f"--target={target}", "picture.png"]) == 2
    assert "empty" in capsys.readouterr().err


def test_tls_over_plain_http_is_refused(pems):
    with pytest.raises(SettingsError, match="needs a target https://"):
        GaterNetClient("HTTP://localhost:1", "fake", tls=Tls(ca=pems / "ca.pem"))
