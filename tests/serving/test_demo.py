"""python -m serving.demo: the last step of make demo."""

import re
import shutil
import sys

import pytest

from serving.demo import classify_labelled, main


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
        assert f"/{true}/" in picture
        assert 0.1 <= float(probability) <= 1
        assert re.fullmatch(r"\d+ of 112", gates)
        right += true == predicted
    assert right >= 5
    assert last == "server stopped"


def test_a_broken_picture_has_an_error_in_its_row(server, trained, tmp_path, capsys):
    shutil.copytree(trained.pictures, tmp_path / "pictures")
    (tmp_path / "pictures" / "0" / "broken.png").write_bytes(b"broken")
    assert not classify_labelled(server, sorted(tmp_path.glob("pictures/*/*.png")))
    out = capsys.readouterr().out
    assert re.search(r"broken\.png  0 +error: the server refused it", out)
    assert len(out.splitlines()) == 12


def test_what_cannot_be_shown_is_an_error(trained, tmp_path, monkeypatch, capsys):
    flags = ["--model_base_path=nowhere"]
    with pytest.raises(SystemExit, match="2"):
        main([*flags, str(tmp_path)])
    assert f"CLASS/NAME.png in '{tmp_path}'" in capsys.readouterr().err
    # As when the server says on the standard error what is wrong, and ends.
    monkeypatch.setattr(sys, "executable", "false")
    assert main([*flags, str(trained.pictures)]) == 1
    assert "the local server did not start" in capsys.readouterr().err
