"""python -m serving.demo: the last step of make demo."""

import contextlib
import re
import shutil
import sys

from serving.demo import main


def test_prints_a_table_with_the_errors_of_broken_pictures(
    server, trained, tmp_path, monkeypatch, capsys
):
    shutil.copytree(trained.pictures, tmp_path / "pictures")
    (tmp_path / "pictures" / "0" / "broken.png").write_bytes(b"broken")
    # It would start another server; this one was started by the same function.
    monkeypatch.setattr("serving.demo.local_server", lambda _: contextlib.nullcontext(server))
    assert main(["--model_base_path=exported", str(tmp_path / "pictures")]) == 1
    head, *rows = capsys.readouterr().out.splitlines()
    columns = ["picture", "true class", "predicted class", "probability", "gates on"]
    assert re.split(r"\s\s+", head) == columns
    (broken,) = [row for row in rows if "broken.png" in row]
    assert "error: the server refused it" in broken
    rows.remove(broken)
    assert len(rows) == 10
    right = 0
    for row in rows:
        picture, true, predicted, probability, gates = re.split(r"\s\s+", row)
        assert f"/{true}/" in picture
        assert 0.1 <= float(probability) <= 1
        assert re.fullmatch(r"\d+ of 112", gates)
        right += true == predicted
    assert right >= 5


def test_a_server_that_does_not_start_is_an_error(trained, monkeypatch, capsys):
    # As when the server says on the standard error what is wrong, and ends.
    monkeypatch.setattr(sys, "executable", "false")
    assert main(["--model_base_path=nowhere", str(trained.pictures)]) == 1
    assert "the local server did not start" in capsys.readouterr().err
