"""python -m serving.demo: the last step of make demo."""

import re
import shutil

import pytest

from serving.client import ClientError
from serving.demo import local_server


def test_prints_a_table_and_stops_the_server(run_module, exported, trained):
    done = run_module("serving.demo", f"--model_base_path={exported}", trained.pictures)
    assert done.status == 0, done.err
    first, head, *rows, last = done.out.splitlines()
    assert first.startswith("serving gaternet version 1 on 127.0.0.1:")
    columns = ["picture", "true class", "predicted class", "probability", "gates on"]
    assert re.split(r"\s\s+", head) == columns
    assert len(rows) == 10
    right = 0
    for row in rows:
        picture, true, predicted, probability, gates = re.split(r"\s\s+", row)
        assert picture.endswith(".png")
        assert f"/{true}/" in picture
        assert 0.1 <= float(probability) <= 1
        assert re.fullmatch(r"\d+ of 112", gates)
        right += true == predicted
    assert right >= 5
    assert last == "server stopped"


def test_a_picture_that_is_not_one_is_told_in_its_row(run_module, exported, trained, tmp_path):
    shutil.copytree(trained.pictures, tmp_path / "pictures")
    (tmp_path / "pictures" / "0" / "broken.png").write_bytes(b"broken")
    done = run_module("serving.demo", f"--model_base_path={exported}", "pictures")
    assert done.status == 1
    assert "pictures/0/broken.png  0           error: a picture must be a whole" in done.out
    assert len(done.out.splitlines()) == 14


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model_base_path=nowhere", "pictures"], ["nowhere", "did not start"]),
        (["--model_base_path=nowhere", "empty"], ["CLASS/NAME.png", "'empty'", "none"]),
        (["pictures"], ["--model_base_path"]),
    ],
)
def test_bad_input_is_refused(run_module, trained, tmp_path, flags, words):
    shutil.copytree(trained.pictures, tmp_path / "pictures")
    (tmp_path / "empty").mkdir()
    run_module("serving.demo", *flags).assert_refused(*words)


def test_the_server_ends_with_the_block_even_on_an_error(exported):
    with pytest.raises(KeyError), local_server(str(exported)) as target:
        raise KeyError
    from serving.client import GaterNetClient

    with GaterNetClient(target, "gaternet") as client, pytest.raises(ClientError, match="none"):
        client.status()
