"""python -m export.main as a user types it, and what it refuses."""

import os
import shutil

import numpy as np
import pytest
from helpers import help_without_tensorflow

from gaternet_tf.manifest import read_manifest


def test_a_version_is_added_and_the_oldest_goes(call, tmp_path, exported, trained):
    models = tmp_path / "models" / "gaternet"
    shutil.copytree(exported, models)
    shutil.copytree(exported / "1", models / "2")
    config = 'config { name: "gaternet" version_labels { key: "stable" value: 2 } }'
    (tmp_path / "models.config").write_text(f"model_config_list {{ {config} }}")
    flags = [f"--workdir={trained.path}", "--output_dir=models/gaternet"]
    flags += ["--keep=1", "--server_config=models.config"]
    flags.append(f"--warmup_images={sorted(trained.pictures.glob('*/*'))[0]}")
    done = call("export.main", *flags)
    assert done.status == 0, done.err
    assert done.out.startswith("timing the export and the plain network, without gates")
    assert done.out.endswith(
        f"removed versions 1 of models/gaternet\nexported {trained.path} to models/gaternet/3\n"
    )
    assert sorted(os.listdir(models)) == ["2", "3"]
    assert read_manifest(models / "3")["export"]["compared"]["pictures"] == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["--optimize=specialize", "--calibration_split=test"], "must not be 'test'"),
        (["--cost=cost.json"], "--cost is for --optimize=conditional, got --optimize=auto"),
        (["--optimize=conditional", "--cost=no/cost.json"], "in a directory that exists, got 'no"),
        (["--optimize=conditional", "--specialize_mode=exact"], "exact is for --optimize=spec"),
        (["--warmup_images=nowhere"], "there are none in 'nowhere'"),
        (["--server_config=nowhere"], "--server_config must be"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_changes_nothing(
    call, tmp_path, exported, trained, data_dir, settings, words
):
    shutil.copytree(exported, tmp_path / "models" / "gaternet")
    before = sorted(tmp_path.rglob("*"))
    flags = [f"--workdir={trained.path}", "--output_dir=models/gaternet", f"--data_dir={data_dir}"]
    done = call("export.main", *flags, *settings)
    done.assert_refused("export.main: error: ", words)
    assert done.status == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_weights_that_are_not_finite_are_refused(call, tmp_path, trained, monkeypatch):
    model = trained.load_model()
    model.get_layer("gater_fc2").bias.assign(np.full(112, np.nan))
    monkeypatch.setattr(type(trained), "load_model", lambda run: model)
    done = call("export.main", f"--workdir={trained.path}", "--output_dir=models/gaternet")
    done.assert_refused("must be finite", "model.keras")
    assert not (tmp_path / "models").exists()


def test_flags_are_checked_and_explained_without_tensorflow(tmp_path, call):
    assert "--[no]" not in (text := help_without_tensorflow("export.main", tmp_path))
    assert "--warmup_images" in text
    done = call("export.main", "--workdir=run", "--output_dir=models", "extra")
    done.assert_refused("takes flags only")
