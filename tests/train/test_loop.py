"""A finished run is whole, and what is resumed is what began."""

import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import small_config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gaternet_tf import UserError
from gaternet_tf.data import evaluation_batches, hold_out, validation_batches
from gaternet_tf.evaluation import Evaluator
from gaternet_tf.losses import SmoothedCrossentropy
from gaternet_tf.runs import RunDirectory, open_run
from train.inputs import steps_of_epoch
from train.loop import train


def test_a_run_directory_has_everything_a_reader_needs(trained, digits):
    assert trained.document["dataset"]["labels"] == list("0123456789")
    assert trained.document["versions"]["tensorflow"] == tf.__version__
    records = trained.metrics()
    assert [record["epoch"] for record in records] == [1, 2, 3]
    expected = {"loss", "task_loss", "sparsity_loss", "accuracy", "gate_rate", "learning_rate"}
    assert expected <= records[0].keys()
    pictures = sorted(trained.pictures.glob("*/*.png"), key=lambda path: path.name)
    first_labels = [str(int(label)) for _, label in digits.examples("test").take(10)]
    assert [path.parent.name for path in pictures] == first_labels
    image = tf.io.decode_png(pictures[0].read_bytes()).numpy()
    np.testing.assert_array_equal(image, next(iter(digits.examples("test")))[0])


def test_the_result_is_that_of_the_saved_model(trained, digits):
    batches = evaluation_batches(digits, trained.preprocessing, 100)
    again = Evaluator(trained.load_model())(batches)
    result = trained.result
    assert result["test_accuracy"] == again["accuracy"]
    assert result["test_loss"] == pytest.approx(again["loss"], rel=1e-5)
    for key in ("gate_rate", "gates_always_on", "gates_input_dependent", "gates_on_max"):
        assert result[key] == pytest.approx(again[key])


def test_the_run_ends_with_the_best_epochs_weights(trained, digits):
    accuracies = [record["val_accuracy"] for record in trained.metrics()]
    best = max(range(3), key=lambda epoch: (accuracies[epoch], epoch))
    assert trained.result["selected_epoch"] == best + 1
    held_out = hold_out(digits, 0.1, seed=0)
    batches = validation_batches(held_out, trained.preprocessing, 100)
    assert Evaluator(trained.load_model())(batches)["accuracy"] == accuracies[best]


def tensorboard_values(run):
    """The last value of every tag."""
    values = {}
    for directory in run.tensorboard.iterdir():
        prefix = "val_" if directory.name == "validation" else ""
        events = EventAccumulator(str(directory), size_guidance={"tensors": 0}).Reload()
        for tag in events.Tags()["tensors"]:
            proto = events.Tensors(tag)[-1].tensor_proto
            values[prefix + tag.removeprefix("epoch_")] = tf.make_ndarray(proto).item()
    return values


def test_tensorboard_has_the_parts_of_the_loss_and_the_gate_statistics(trained):
    record = trained.metrics()[-1]
    values = tensorboard_values(trained)
    keys = ["loss", "task_loss", "sparsity_loss", "accuracy", "learning_rate", "gate_rate"]
    keys += ["val_accuracy", "val_gate_rate", "val_task_loss"]
    keys += [f"val_share_{kind}" for kind in ("always_on", "always_off", "input_dependent")]
    for key in keys:
        assert values[key] == pytest.approx(record[key], rel=1e-4, abs=1e-6), key
    assert sum(values[key] for key in keys[-3:]) == pytest.approx(1)
    assert "| backbone | resnet8 |" in values["configuration"].decode()
    assert "val_loss" not in values


@pytest.mark.usefixtures("eager")
@pytest.mark.filterwarnings("ignore:Even though:UserWarning")
def test_a_plain_network_in_bfloat16_trains_by_the_same_path(
    data_dir, digits, tmp_path, monkeypatch
):
    evaluated = []

    def record_split(dataset, preprocessing, batch_size, split=None):
        evaluated.append(split or dataset.test_split)
        return evaluation_batches(dataset, preprocessing, batch_size, split)

    monkeypatch.setattr("train.loop.evaluation_batches", record_split)
    config = small_config(
        data_dir,
        gater="none",
        epochs=2,
        steps_per_epoch=2,
        dtype_policy="mixed_bfloat16",
        select="last",
        weight_decay=0.01,
        label_smoothing=0.1,
    )
    result = train(config, tmp_path / "run")
    # The test split is evaluated once, at the end; every epoch has the validation images.
    assert evaluated == ["test"]
    assert "gate_rate" not in result
    assert result["parameters"] == 77_754
    assert result["selected_epoch"] == 2
    run = open_run(tmp_path / "run")
    model = run.load_model()
    assert {layer.compute_dtype for layer in model.layers} >= {"bfloat16"}
    assert keras.layers.Dense(1).compute_dtype == "float32"
    record = run.metrics()[-1]
    assert "gate_rate" not in record
    batches = validation_batches(hold_out(digits, 0.1, seed=0), run.preprocessing, 100)
    # The plain cross-entropy is 1 % less.
    smoothed = Evaluator(model)(batches, SmoothedCrossentropy(0.1))["loss"]
    assert record["val_task_loss"] == pytest.approx(smoothed, rel=1e-3)
    l2 = 0.005 * sum(float((v.numpy() ** 2).sum()) for v in model.weights if v.name == "kernel")
    # The kernels changed during the epoch.
    assert record["loss"] - record["task_loss"] == pytest.approx(l2, rel=0.1)


def test_an_epoch_has_whole_executions_only(digits, capsys):
    # 1437 // 256 = 5 steps, of which Keras would make 6 with one of the next epoch.
    config = small_config(None, batch_size=256, steps_per_execution=2)
    assert steps_of_epoch(config, digits) == 4
    assert "1 of the 5 steps of an epoch are left out" in capsys.readouterr().out
    with pytest.raises(UserError, match="must be at most the 5 steps of an epoch, got 6"):
        steps_of_epoch(small_config(None, batch_size=256, steps_per_execution=6), digits)


@pytest.fixture(name="stopped")
def stopped_fixture(trained, tmp_path):
    """An unfinished run of three epochs, all of them done."""
    shutil.copytree(trained.path, tmp_path / "stopped")
    (tmp_path / "stopped" / "result.json").unlink()
    return RunDirectory(tmp_path / "stopped")


def change_document(run, **changes):
    document = run.document
    document |= changes
    run.config_file.write_text(json.dumps(document))


def test_a_run_stopped_before_its_result_is_finished_without_training(
    data_dir, stopped, trained, capsys
):
    # The device may change, and a record may have been cut off by a full disk.
    change_document(stopped, replicas=4)
    with stopped.metrics_file.open("a") as file:
        file.write('{"epoch": 4, "lo')
    result = train(small_config(data_dir, epochs=3), stopped.path)
    out = capsys.readouterr().out
    assert "the run began on 4 replica(s) and is resumed on 1" in out
    assert "resuming after epoch 3" in out
    assert result["test_loss"] == pytest.approx(trained.result["test_loss"], rel=1e-5)
    assert stopped.metrics() == trained.metrics()


def test_a_run_is_not_resumed_on_other_data(data_dir, stopped):
    dataset = {**stopped.document["dataset"], "train_images": 7}
    change_document(stopped, dataset=dataset)
    with pytest.raises(UserError, match=r"data that it began with.*train_images: 7 then, 1294 now"):
        train(small_config(data_dir, epochs=3), stopped.path)


def test_a_run_without_its_checkpoints_does_not_start_anew(data_dir, stopped):
    shutil.rmtree(stopped.checkpoints)
    with pytest.raises(UserError, match="must have its checkpoints"):
        train(small_config(data_dir, epochs=3), stopped.path)
    assert len(stopped.metrics()) == 3


def test_a_second_process_does_not_train_into_the_same_run(data_dir, stopped):
    refused = pytest.raises(UserError, match="must not be in use, and another process")
    with stopped.locked(), refused:
        train(small_config(data_dir, epochs=3), stopped.path)


@pytest.mark.usefixtures("eager")
@pytest.mark.filterwarnings("ignore:Even though:UserWarning")
def test_a_run_starts_from_the_weights_of_another(trained, data_dir, tmp_path, capsys):
    changes = {"init_from": str(trained.path), "steps_per_epoch": 1, "learning_rate": 1e-9}
    # So small a rate leaves the weights as they are; only the moving moments change a little.
    result = train(small_config(data_dir, **changes), tmp_path / "run")
    assert result["test_accuracy"] == pytest.approx(trained.result["test_accuracy"], abs=0.1)
    before, after = (run.load_model() for run in (trained, open_run(tmp_path / "run")))
    for ours, theirs in zip(before.trainable_weights, after.trainable_weights, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6, err_msg=ours.path)
    assert "networks learn little" not in capsys.readouterr().out
    other = small_config(data_dir, **changes, backbone="resnet14")
    with pytest.raises(UserError, match=r"--init_from must be a run of the same network"):
        train(other, tmp_path / "other")
    assert not (tmp_path / "other").exists()
