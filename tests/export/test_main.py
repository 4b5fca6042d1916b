"""python -m export.main as a user types it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT, run_module, spoil_json

from export.publish import existing_versions
from export.verification import problems_of
from gaternet_tf.manifest import read_manifest


def test_exports_the_next_version_and_leaves_the_old_one(tmp_path, exported, trained):
    shutil.copytree(exported, tmp_path / "models" / "gaternet")
    flags = [f"--workdir={trained.path}", "--output_dir=models/gaternet"]
    done = run_module("export.main", *flags, cwd=tmp_path)
    assert done.status == 0, done.err
    assert done.out == f"exported {trained.path} to models/gaternet/2\n"
    assert (tmp_path / "models/gaternet/2/saved_model.pb").exists()
    assert {path.name for path in (tmp_path / "models/gaternet").iterdir()} == {"1", "2"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--version=1"], ["has 1 already", "leave --version out to get 2"]),
        (["--version=0"], ["--version=0"]),
        (["--keep=0"], ["--keep=0"]),
        (["--optimize=specialize", "--calibration_split=mine"], ["one of test, train", "'mine'"]),
        (["--optimize=specialize", "--calibration_split=test"], ["must not be 'test'"]),
        (["--warmup_images=nowhere"], ["--warmup_images", "'nowhere' has none"]),
        (["--warmup_images=broken.png"], ["--warmup_images", "broken.png' cannot be decoded"]),
        (["--output_dir=models/gaternet/1"], ["model's directory", "a version's number"]),
        (["--workdir=nowhere"], ["finished run", "nowhere", "train.main"]),
        (["--workdir=unfinished"], ["without a result.json", "resumes"]),
        (["--workdir=cut"], ["cut/model.keras", "cannot be read"]),
        (["--workdir=without"], ["without/model.keras", "is not there"]),
        (["--workdir=models"], ["config.json", "models"]),
        (["--output_dir=note.txt"], ["must be a directory", "note.txt"]),
        (["--output_dir=models/gaternet/1/sub"], ["--output_dir", "an exported version"]),
        (["--output_dir=unfinished"], ["model's directory", "unfinished' is a run's"]),
        (["--output_dir=models/\udcff"], ["must end in the model's name", r"'\udcff'"]),
        (["--output_dir=models/a:predict"], ["must end in the model's name", "'a:predict'"]),
        (["--workdir=bare"], ["bare/pictures", "--warmup_images"]),
        (["--workdir=torn"], ["torn/result.json", "bring it back from a copy"]),
        (["--workdir=headless"], ["headless/config.json", "has no 'preprocessing'"]),
        (["extra"], ["takes flags only", "extra"]),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(tmp_path, exported, trained, flags, words):
    shutil.copytree(exported, tmp_path / "models" / "gaternet")
    shutil.copytree(trained.path, tmp_path / "unfinished")
    (tmp_path / "unfinished" / "result.json").unlink()
    for name in ("cut", "without"):
        shutil.copytree(trained.path, tmp_path / name)
    os.truncate(tmp_path / "cut" / "model.keras", 10_000)
    (tmp_path / "without" / "model.keras").unlink()
    for name in ("bare", "torn", "headless"):
        shutil.copytree(trained.path, tmp_path / name)
    shutil.rmtree(tmp_path / "bare" / "pictures")
    os.truncate(tmp_path / "torn" / "result.json", 30)
    spoil_json(tmp_path / "headless" / "config.json", "preprocessing")
    (tmp_path / "note.txt").write_text("mine")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    before = sorted(tmp_path.rglob("*"))
    flags = [f"--workdir={trained.path}", "--output_dir=models/gaternet", *flags]
    run_module("export.main", *flags, cwd=tmp_path).assert_refused(*words)
    assert sorted(tmp_path.rglob("*")) == before


def test_required_flags_are_named(tmp_path):
    run_module("export.main", cwd=tmp_path).assert_refused("--workdir", "must have a value")


def test_a_specialised_export_says_what_it_left_out(tmp_path, trained, data_dir):
    flags = [f"--workdir={trained.path}", "--output_dir=gaternet", f"--data_dir={data_dir}"]
    done = run_module("export.main", *flags, "--optimize=specialize", cwd=tmp_path)
    assert done.status == 0, done.err
    assert "specialized (exact) on 1437 images of 'train'" in done.out
    report = read_manifest(tmp_path / "gaternet" / "1")["export"]["specialized"]
    assert f"{report['gates_free']} depend on the image" in done.out
    for name in ("specialized", "folded"):
        assert report["milliseconds"][name].keys() == {"1", "32"}
    changed = report["images_with_a_settled_gate_changed"]
    assert (
        f"held out 360 images of 'test': {changed} change a gate that was settled, 0 get another "
        f"prediction; {report['batches_in_full']} of 12 batches of 32 take the full network"
    ) in done.out
    assert re.search(r"measured batch 1: [\d.]+ ms, folded [\d.]+ ms, batch 32:", done.out)
    settled = report["gates_settled_on"] + report["gates_settled_off"]
    assert settled + report["gates_free"] == report["gates"] == 112

    flags += ["--optimize=specialize", "--specialize_mode=calibrated"]
    done = run_module("export.main", *flags, cwd=tmp_path)
    assert done.status == 0, done.err
    assert "specialized (calibrated) on 1437 images of 'train'" in done.out
    verified = run_module("export.verify", "gaternet/1", "gaternet/2", cwd=tmp_path)
    assert verified.out.count("good") == 2, verified.err


def test_other_pictures_warm_up_and_old_versions_go(tmp_path, exported, trained):
    shutil.copytree(exported, tmp_path / "gaternet")
    shutil.copytree(exported / "1", tmp_path / "gaternet" / "2")
    flags = [f"--workdir={trained.path}", "--output_dir=gaternet", "--keep=2"]
    flags.append(f"--warmup_images={trained.pictures}")
    done = run_module("export.main", *flags, cwd=tmp_path)
    assert done.status == 0, done.err
    assert "removed versions 1 of gaternet" in done.out
    assert sorted(os.listdir(tmp_path / "gaternet")) == ["2", "3"]


def test_readable_by_others_whatever_the_umask(tmp_path, trained):
    flags = [f"--workdir={trained.path}", "--output_dir=models/gaternet"]
    assert run_module("export.main", *flags, cwd=tmp_path, prepare="umask 077").status == 0
    for path in [tmp_path / "models", *(tmp_path / "models").rglob("*")]:
        wanted = 0o755 if path.is_dir() else 0o644
        assert path.stat().st_mode & 0o777 == wanted, path


def test_no_room_is_told_and_leaves_nothing(tmp_path, trained):
    flags = [f"--workdir={trained.path}", "--output_dir=models/gaternet"]
    # Stands for a full disk: no file may become larger than 50 blocks of 512 bytes.
    done = run_module("export.main", *flags, cwd=tmp_path, prepare="ulimit -f 50")
    done.assert_refused("could not be", "make room")
    assert os.listdir(tmp_path) == []


def start(workdir, cwd):
    return subprocess.Popen(
        [sys.executable, "-m", "export.main", f"--workdir={workdir}", "--output_dir=gaternet"],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def watch(base, process, until=float("inf")):
    """Looks at a model's directory every 2 ms, until then; no version in it may be unfinished."""
    running = True
    while running:
        # Once more after its end.
        running = process.poll() is None and time.monotonic() < until
        for number in existing_versions(base):
            names = set(os.listdir(base / str(number)))
            assert {"saved_model.pb", "variables", "assets.extra"} <= names
            read_manifest(base / str(number))
        time.sleep(0.002)


def test_killed_at_any_moment_it_leaves_whole_versions_only(tmp_path, trained):
    base = tmp_path / "gaternet"
    with start(trained.path, tmp_path) as process:
        started = time.monotonic()
        while not list(base.glob(".export-*")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.002)
        first_seen = time.monotonic() - started
        watch(base, process)
        whole = time.monotonic() - started
        assert process.returncode == 0, process.stderr.read()
    assert existing_versions(base) == [1]
    writing = whole - first_seen
    for share in (0.05, 0.3, 0.6, 0.9):
        with start(trained.path, tmp_path) as process:
            while not list(base.glob(".export-*")) and process.poll() is None:
                time.sleep(0.002)
            watch(base, process, time.monotonic() + share * writing)
            process.send_signal(signal.SIGKILL)
            process.wait()
        watch(base, process)
    for number in existing_versions(base):
        assert problems_of(base / str(number)) == []
    # The next one cleans up.
    with start(trained.path, tmp_path) as process:
        watch(base, process)
        assert process.returncode == 0, process.stderr.read()
    assert not list(base.glob(".export-*"))


def test_exports_at_once_do_not_collide(tmp_path, trained):
    with start(trained.path, tmp_path) as first, start(trained.path, tmp_path) as second:
        errors = [process.communicate(timeout=300)[1] for process in (first, second)]
        assert (first.returncode, second.returncode) == (0, 0), errors
    assert sorted(os.listdir(tmp_path / "gaternet")) == ["1", "2"]
    assert [problems_of(tmp_path / "gaternet" / name) for name in "12"] == [[], []]
