"""Training: the step, one replica against two, resuming, and what a run refuses."""

import dataclasses
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import small_config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gaternet_tf import UserError, build_gaternet
from gaternet_tf.data import evaluation_batches, hold_out, validation_batches
from gaternet_tf.evaluation import evaluate
from gaternet_tf.runs import RunDirectory, open_run
from train.callbacks import (
    BestWeights,
    Checkpoints,
    EpochLog,
    StopOnNonFinite,
    Stopped,
    Validation,
)
from train.distribution import check_replicas, choose_strategy
from train.loop import (
    TrainingConfig,
    build_and_compile,
    train,
)
from train.recipe import compile_model, set_weight_decay, with_targets

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(16, 8, 8, 1)).astype(np.float32)
LABELS = RNG.integers(0, 10, 16)
"""One batch, large enough that each of two replicas has more than one image."""


def quiet(model):
    """Switches noise and coins off: every sample soft, nothing random left."""
    model.get_layer("gates").noise_stddev = 0.0
    model.get_layer("gates").hard_share = 0.0
    return model


def step(strategy, sparsity=0.1, weight_decay=1e-2, steps=1, noise=False):
    """Trains on one batch; returns all weights by path, and the last logs."""
    replicas = strategy.num_replicas_in_sync
    with strategy.scope():
        model = build_gaternet(
            "resnet8", "resnet8", (8, 8, 1), seed=1, synchronized_batch_norm=replicas > 1
        )
        if not noise:
            quiet(model)
        set_weight_decay(model, weight_decay)
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True)
        compile_model(model, optimizer, sparsity)
    batches = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(16).repeat(steps)
    history = model.fit(with_targets(batches, model), shuffle=False, verbose=0)
    logs = {key: values[-1] for key, values in history.history.items()}
    return {variable.path: variable.numpy() for variable in model.weights}, logs


@pytest.fixture(scope="module")
def one_replica():
    return step(tf.distribute.get_strategy())


def test_one_and_two_replicas_take_the_same_step(one_replica):
    weights, logs = one_replica
    two_weights, two_logs = step(choose_strategy("mirrored"))
    assert weights.keys() == two_weights.keys()
    for path, value in weights.items():
        np.testing.assert_allclose(two_weights[path], value, rtol=2e-4, atol=2e-5, err_msg=path)
    for key, value in logs.items():
        assert two_logs[key] == pytest.approx(value, rel=1e-4), key


def test_a_step_moves_every_trainable_weight(one_replica):
    weights, _ = one_replica
    start = build_gaternet("resnet8", "resnet8", (8, 8, 1), seed=1)
    for variable in start.trainable_variables:
        assert (weights[variable.path] != variable.numpy()).any(), variable.path


def test_reported_losses_equal_an_independent_recomputation(one_replica):
    _, logs = one_replica
    model = quiet(build_gaternet("resnet8", "resnet8", (8, 8, 1), seed=1))
    outputs = {key: value.numpy() for key, value in model(IMAGES, training=True).items()}
    logits = outputs["logits"].astype(np.float64)
    log_sum = np.log(np.exp(logits).sum(axis=1))
    task = np.mean(log_sum - logits[np.arange(16), LABELS])
    sparsity = 0.1 * np.mean(np.abs(outputs["gates"]).sum(axis=1) / 112)
    kernels = [v.numpy() for v in model.trainable_variables if v.name == "kernel"]
    decay = 0.5 * 1e-2 * sum(np.sum(kernel**2) for kernel in kernels)
    assert logs["logits_loss"] == pytest.approx(task, rel=1e-4)
    assert logs["gates_loss"] == pytest.approx(sparsity, rel=1e-4)
    assert logs["loss"] == pytest.approx(task + sparsity + decay, rel=1e-4)
    assert logs["logits_accuracy"] == np.mean(logits.argmax(axis=1) == LABELS)
    assert logs["gates_gate_rate"] == pytest.approx(np.mean(outputs["gates"] > 0.5), abs=1e-6)


def test_golden_step(one_replica):
    _, logs = one_replica
    golden = {"loss": 7.3465, "logits_loss": 2.50485, "gates_loss": 0.050761}
    for key, value in golden.items():
        assert logs[key] == pytest.approx(value, rel=1e-3), (
            f"the first training step of a seeded ResNet-8 gives another {key} than before. If "
            f"initialisation or loss were changed on purpose, put these numbers here: {logs}"
        )


def test_lambda_scales_the_gradient_of_the_sparsity_loss():
    def gradient(sparsity):
        model = quiet(build_gaternet("resnet8", "resnet8", (8, 8, 1), seed=1))
        bias = model.get_layer("gater_fc2").bias
        compile_model(model, keras.optimizers.SGD(1.0), sparsity)
        before = bias.numpy()
        data = tf.data.Dataset.from_tensors((IMAGES, LABELS))
        model.fit(with_targets(data, model), shuffle=False, verbose=0)
        return before - bias.numpy()

    none, one, three = gradient(0.0), gradient(1.0), gradient(3.0)
    np.testing.assert_allclose(three - none, 3 * (one - none), rtol=2e-3, atol=1e-6)
    # d(lambda/c * sum g)/d(bias_i), by hand: the mean slope of the saturating sigmoid over c.
    model = quiet(build_gaternet("resnet8", "resnet8", (8, 8, 1), seed=1))
    inner = keras.Model(model.input, model.get_layer("gater_fc2").output)
    z = inner(IMAGES, training=True).numpy().astype(np.float64)
    sigmoid = 1 / (1 + np.exp(-z))
    slope = np.where(np.abs(z) > np.log(11), 0, 1.2 * sigmoid * (1 - sigmoid)).mean(axis=0) / 112
    np.testing.assert_allclose(one - none, slope, rtol=2e-3, atol=1e-6)


def test_weight_decay_is_pytorchs_and_spares_batch_norm_and_biases():
    strategy = tf.distribute.get_strategy()
    start = {
        v.path: v.numpy() for v in build_gaternet("resnet8", "resnet8", (8, 8, 1), seed=1).weights
    }
    without, _ = step(strategy, weight_decay=0.0)
    decayed, _ = step(strategy, weight_decay=0.5)
    for path, value in decayed.items():
        # The first Nesterov step is learning rate * (1 + momentum) * gradient.
        wanted = 0.1 * 1.9 * 0.5 * start[path] if path.endswith("kernel") else 0.0
        np.testing.assert_allclose(without[path] - value, wanted, atol=1e-5, err_msg=path)


def test_training_with_noise_repeats_with_the_seed():
    strategy = tf.distribute.get_strategy()
    (first, logs), (second, again) = step(strategy, noise=True), step(strategy, noise=True)
    assert logs == pytest.approx(again, rel=1e-5)
    for path, value in first.items():
        np.testing.assert_allclose(second[path], value, rtol=1e-4, atol=1e-5, err_msg=path)


def test_learning_rate_falls_at_one_half_and_three_quarters(digits):
    from gaternet_tf.data import Preprocessing

    config = TrainingConfig(backbone="resnet8", gater="none", epochs=160)
    model = build_and_compile(
        config, Preprocessing(8, 8, 1, (0.0,), (1.0,)), 10, 100, tf.distribute.get_strategy()
    )
    schedule = keras.optimizers.schedules.deserialize(model.optimizer.get_config()["learning_rate"])
    rates = [float(schedule(100 * epoch + 1)) for epoch in (0, 79, 80, 119, 120, 159)]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-5)


def test_a_run_directory_has_everything_a_reader_needs(trained, digits):
    assert trained.document["dataset"]["labels"] == list("0123456789")
    assert trained.config["backbone"] == "resnet8"
    assert trained.document["versions"]["tensorflow"] == tf.__version__
    records = list(trained.metrics())
    assert [record["epoch"] for record in records] == [1, 2, 3]
    wanted = {"loss", "task_loss", "sparsity_loss", "accuracy", "gate_rate", "learning_rate"}
    assert wanted <= records[0].keys()
    pictures = sorted(trained.pictures.glob("*/*.png"), key=lambda path: path.name)
    first_labels = [str(int(label)) for _, label in digits.examples("test").take(10)]
    assert [path.parent.name for path in pictures] == first_labels
    image = tf.io.decode_png(pictures[0].read_bytes()).numpy()
    np.testing.assert_array_equal(image, next(iter(digits.examples("test")))[0])


def test_the_result_is_that_of_the_saved_model(trained, digits):
    again = evaluate(trained.load_model(), evaluation_batches(digits, trained.preprocessing, 100))
    result = trained.result
    assert result["test_accuracy"] == again["accuracy"]
    assert result["test_loss"] == pytest.approx(again["loss"], rel=1e-5)
    for key in ("gate_rate", "gates_always_on", "gates_input_dependent", "gates_on_max"):
        assert result[key] == pytest.approx(again[key])


def tensorboard_values(run):
    """The last value of every tag, those of validation prefixed with "val_"."""
    values = {}
    for directory in run.tensorboard.iterdir():
        prefix = "val_" if directory.name == "validation" else ""
        events = EventAccumulator(str(directory), size_guidance={"tensors": 0}).Reload()
        for tag in events.Tags()["tensors"]:
            proto = events.Tensors(tag)[-1].tensor_proto
            values[prefix + tag.removeprefix("epoch_")] = float(tf.make_ndarray(proto))
    return values


def test_tensorboard_has_the_parts_of_the_loss_and_what_the_gates_do(trained):
    record = list(trained.metrics())[-1]
    shown = tensorboard_values(trained)
    keys = ["loss", "task_loss", "sparsity_loss", "accuracy", "learning_rate", "gate_rate"]
    keys += ["val_accuracy", "val_gate_rate"]
    keys += [f"val_gate_rate_stage{stage}" for stage in (1, 2, 3)]
    keys += [f"val_share_{kind}" for kind in ("always_on", "always_off", "input_dependent")]
    for key in keys:
        assert shown[key] == pytest.approx(record[key], rel=1e-4, abs=1e-6), key
    assert sum(shown[key] for key in keys[-3:]) == pytest.approx(1)


def test_the_run_ends_with_the_best_epochs_weights(trained, digits):
    accuracies = [record["val_accuracy"] for record in trained.metrics()]
    best = max(range(3), key=lambda epoch: (accuracies[epoch], epoch))
    assert trained.result["selected_epoch"] == best + 1
    held_out = hold_out(digits, 0.1, seed=0)
    batches = validation_batches(held_out, trained.preprocessing, 100)
    assert evaluate(trained.load_model(), batches)["accuracy"] == accuracies[best]


def test_the_best_epoch_is_known_after_a_restart(tmp_path):
    def parts():
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        best = BestWeights(model)
        best.set_model(model)
        checkpoints = Checkpoints(RunDirectory(tmp_path), model, best)
        checkpoints.set_model(model)
        return model, best, checkpoints

    def epochs(model, best, checkpoints, numbers, accuracies):
        for number, accuracy in zip(numbers, accuracies, strict=True):
            model.set_weights([np.full_like(weight, number) for weight in model.get_weights()])
            model.optimizer.iterations.assign_add(1)
            best.on_epoch_end(number, {"val_accuracy": accuracy})
            checkpoints.on_epoch_end(number)

    epochs(*parts(), range(4), [0.5, 0.7, 0.7, 0.6])
    model, best, checkpoints = parts()
    assert checkpoints.restore(tmp_path / "checkpoints") == (4, 0)
    epochs(model, best, checkpoints, [4], [0.65])
    assert best.put_back(model) == 3
    assert all((weight == 2).all() for weight in model.get_weights())


def test_the_last_epochs_weights_if_asked_for(data_dir, tmp_path, monkeypatch):
    # Accuracies that only fall would select the first epoch.
    falling = iter([0.9, 0.5])
    monkeypatch.setattr(
        Validation,
        "on_epoch_end",
        lambda self, epoch, logs: logs.update(val_accuracy=next(falling)),
    )
    config = small_config(data_dir, epochs=2, steps_per_epoch=1, gater="none", select="last")
    assert train(config, tmp_path / "last")["selected_epoch"] == 2


class InterruptionError(Exception):
    """Stands for whatever ends a process."""


def test_an_interrupted_run_resumes_to_where_an_unbroken_one_ends(
    data_dir, tmp_path, monkeypatch, capsys
):
    config = small_config(data_dir, epochs=3, batch_size=256)
    train(config, tmp_path / "unbroken")
    log = EpochLog.on_epoch_end

    def interrupt(self, epoch, logs=None):
        log(self, epoch, logs)
        if epoch == 1:
            # Epoch 2 is in the log already, and in no checkpoint yet.
            raise InterruptionError

    with monkeypatch.context() as patch:
        patch.setattr(EpochLog, "on_epoch_end", interrupt)
        with pytest.raises(InterruptionError):
            train(config, tmp_path / "broken")
    with pytest.raises(UserError, match="stopped after 2 of 3 epochs"):
        open_run(tmp_path / "broken")
    capsys.readouterr()
    train(config, tmp_path / "broken")
    assert "resuming after epoch 1" in capsys.readouterr().out

    broken, unbroken = open_run(tmp_path / "broken"), open_run(tmp_path / "unbroken")
    assert [record["epoch"] for record in broken.metrics()] == [1, 2, 3]
    for ours, theirs in zip(broken.metrics(), unbroken.metrics(), strict=True):
        for key in ("loss", "accuracy", "gate_rate", "learning_rate"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-3), (key, ours, theirs)
    for ours, theirs in zip(
        broken.load_model().weights, unbroken.load_model().weights, strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4, err_msg=ours.path)


def test_plain_backbone_trains_by_the_same_path(data_dir, tmp_path):
    result = train(small_config(data_dir, gater="none", batch_size=256), tmp_path / "plain")
    assert "gate_rate" not in result
    assert result["parameters"] == 77_754
    record = next(open_run(tmp_path / "plain").metrics())
    assert "accuracy" in record
    assert "gate_rate" not in record


def test_two_replicas_train_a_run(data_dir, tmp_path):
    config = small_config(data_dir, strategy="mirrored", batch_size=256)
    result = train(config, tmp_path / "two")
    model = open_run(tmp_path / "two").load_model()
    assert result["test_images"] == 360
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_a_diverging_run_stops_with_the_step(data_dir, tmp_path):
    config = small_config(data_dir, learning_rate=1e30, batch_size=256)
    with pytest.raises(UserError, match=r"finite, and was (nan|inf) at step \d+; lower"):
        train(config, tmp_path / "diverged")
    assert not (tmp_path / "diverged" / "result.json").exists()


def test_a_damaged_checkpoint_is_named(data_dir, trained, tmp_path):
    workdir = tmp_path / "damaged"
    shutil.copytree(trained.path, workdir)
    (workdir / "result.json").unlink()
    for path in (workdir / "checkpoints").glob("*.data-*"):
        path.write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"ckpt-60 is not.*--previous_checkpoint"):
        train(small_config(data_dir, epochs=3), workdir)
    assert len(list((workdir / "checkpoints").glob("*.index"))) == 2


def test_the_checkpoint_before_a_damaged_one_is_used_when_asked_for(
    data_dir, trained, tmp_path, capsys
):
    workdir = tmp_path / "damaged"
    shutil.copytree(trained.path, workdir)
    (workdir / "result.json").unlink()
    (latest,) = (workdir / "checkpoints").glob("ckpt-60.data-*")
    latest.write_bytes(b"damaged")
    result = train(small_config(data_dir, epochs=3), workdir, previous_checkpoint=True)
    assert "resuming after epoch 2" in capsys.readouterr().out
    assert [record["epoch"] for record in open_run(workdir).metrics()] == [1, 2, 3]
    assert result["test_loss"] == pytest.approx(trained.result["test_loss"], rel=1e-3)


def test_a_first_run_has_no_checkpoint_before_the_last(data_dir, tmp_path):
    with pytest.raises(UserError, match=r"--previous_checkpoint needs two.* has 0"):
        train(small_config(data_dir), tmp_path / "run", previous_checkpoint=True)


def test_a_full_disk_is_told_and_the_last_good_checkpoint_survives(data_dir, tmp_path, monkeypatch):
    save = tf.train.CheckpointManager.save

    def full_after_one(self, number):
        if self.checkpoints:
            raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")
        return save(self, number)

    config = small_config(data_dir, epochs=2, batch_size=256)
    with monkeypatch.context() as patch:
        patch.setattr(tf.train.CheckpointManager, "save", full_after_one)
        with pytest.raises(UserError, match=r"No space left on device.*resumes.*ckpt-5"):
            train(config, tmp_path / "run")
    train(config, tmp_path / "run")
    assert [record["epoch"] for record in open_run(tmp_path / "run").metrics()] == [1, 2]


def test_a_weight_that_is_lost_behind_a_finite_loss_stops_the_run():
    model = build_gaternet("resnet8", "resnet8", (8, 8, 1))
    model.compile("sgd", "mse")
    callback = StopOnNonFinite()
    callback.set_model(model)
    callback.on_epoch_end(0)
    gamma = model.get_layer("stem").normalization.gamma
    gamma.assign(np.where(np.arange(16) == 3, np.nan, 1.0))
    with pytest.raises(UserError, match=r"stem/normalization/gamma must stay finite, and was nan"):
        callback.on_epoch_end(0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"select": "worst"}, "--select must be one of best, last"),
        ({"gate_bias": float("nan")}, "--gate_bias must be a finite number"),
        ({"deterministic": True, "jit_compile": True}, "--deterministic cannot be kept"),
        ({"strategy": "multi_worker", "jit_compile": True}, "--jit_compile"),
        ({"resize": 7}, "--resize must be 0 or at least the 8 pixels"),
        ({"sparsity": -0.1}, "--sparsity must be 0 or more, got -0.1"),
        ({"sparsity": float("nan")}, "--sparsity must be 0 or more, got nan"),
        ({"learning_rate": 0.0}, "--learning_rate must be above 0"),
        ({"momentum": 1.0}, "--momentum must be below 1"),
        ({"epochs": 0}, "--epochs must be 1 or more"),
        ({"label_smoothing": 1.0}, "--label_smoothing must be below 1"),
        ({"validation": 1.0}, "--validation must be below 1"),
        ({"schedule": "linear"}, "--schedule must be one of step, cosine"),
        ({"optimizer": "lion"}, "--optimizer must be one of sgd, adam"),
        ({"attention": "se"}, "--attention=se takes the place of the gates and needs"),
        ({"width": 0}, "--width must be 1 or more"),
        ({"validation": 0.001}, "--validation=0.001 holds no image out of the 1437"),
        ({"backbone": "resnet21"}, "6n\\+2.*got 'resnet21'"),
        ({"gater": "resnet21"}, "6n\\+2.*got 'resnet21'"),
        ({"strategy": "all"}, "--strategy must be one of"),
        ({"dtype_policy": "float8"}, "--dtype_policy must be one of"),
        ({"batch_size": 2000}, "at most the 1294 training images"),
        ({"strategy": "mirrored", "steps_per_execution": 2}, "must be 1 on 2 replicas.*got 2"),
    ],
)
def test_settings_are_checked_before_anything_is_written(data_dir, tmp_path, change, words):
    with pytest.raises(UserError, match=words):
        train(small_config(data_dir, **change), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_the_batch_must_divide_among_the_replicas():
    check_replicas(2, 128)
    check_replicas(1, 33, steps_per_execution=4)
    with pytest.raises(UserError, match="multiple of the 2 replicas, got 33; take 32"):
        check_replicas(2, 33)


@pytest.mark.parametrize("left", ["index", "half"])
def test_a_run_stopped_while_it_wrote_its_first_checkpoint_begins_again(data_dir, tmp_path, left):
    config = small_config(data_dir)
    train(config, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "run" / "checkpoints" / "checkpoint").unlink()
    if left == "half":
        # What a full disk leaves of it.
        for path in (tmp_path / "run" / "checkpoints").glob("ckpt-*"):
            path.unlink()
        (tmp_path / "run" / "checkpoints" / "ckpt-20_temp").mkdir()
    train(config, tmp_path / "run")
    run = open_run(tmp_path / "run")
    assert [record["epoch"] for record in run.metrics()] == [1]
    assert len(list(run.checkpoints.glob("ckpt-*.index"))) == 1


def test_a_second_process_does_not_train_into_the_same_run(data_dir, tmp_path):
    config = small_config(data_dir)
    refused = pytest.raises(UserError, match="must not be in use, and another process")
    with RunDirectory(tmp_path / "run").locked(), refused:
        train(config, tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []
    # The lock of a process that was killed is in nobody's way, and is gone in the end.
    (tmp_path / "run" / ".lock").touch()
    train(config, tmp_path / "run")
    assert not (tmp_path / "run" / ".lock").exists()


def test_another_number_of_replicas_is_told(data_dir, stopped, capsys):
    document = json.loads((stopped / "config.json").read_text())
    assert document["replicas"] == 1
    document["replicas"] = 4
    (stopped / "config.json").write_text(json.dumps(document))
    train(small_config(data_dir, epochs=3), stopped)
    assert "the run began on 4 replica(s) and goes on on 1" in capsys.readouterr().out


def test_a_run_in_bfloat16_does_not_change_what_is_built_after_it(data_dir, tmp_path):
    train(small_config(data_dir, dtype_policy="mixed_bfloat16"), tmp_path / "run")
    model = open_run(tmp_path / "run").load_model()
    assert {layer.compute_dtype for layer in model.layers} >= {"bfloat16"}
    assert keras.layers.Dense(1).compute_dtype == "float32"


def test_a_plain_run_tells_its_task_loss(data_dir, tmp_path):
    config = small_config(data_dir, gater="none", weight_decay=0.01, label_smoothing=0.1)
    train(config, tmp_path / "run")
    (record,) = RunDirectory(tmp_path / "run").metrics()
    model = open_run(tmp_path / "run").load_model()
    l2 = 0.005 * sum(float((v.numpy() ** 2).sum()) for v in model.weights if v.name == "kernel")
    assert 0.5 < record["task_loss"] < record["loss"]
    # The kernels changed during the epoch.
    assert record["loss"] - record["task_loss"] == pytest.approx(l2, rel=0.1)


def test_collapsed_gates_are_told_without_validation_images_too(data_dir, tmp_path, capsys):
    config = small_config(data_dir, gate_bias=50.0, validation=0.0, steps_per_epoch=1)
    train(config, tmp_path / "run")
    assert "warning: all gates are on for every image" in (out := capsys.readouterr().out)
    assert "on 1000 training images" in out


def test_a_result_without_room_is_told_and_saved_by_the_same_command(
    data_dir, stopped, monkeypatch
):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("train.loop.save_pictures", full)
        with pytest.raises(UserError, match=r"No space left on device.*without training again"):
            train(small_config(data_dir, epochs=3), stopped)
    assert not (stopped / "result.json").exists()
    train(small_config(data_dir, epochs=3), stopped)
    assert [record["epoch"] for record in RunDirectory(stopped).metrics()] == [1, 2, 3]


def test_recorded_settings_are_the_flags(trained):
    fields = [field.name for field in dataclasses.fields(TrainingConfig)]
    assert list(json.loads(trained.config_file.read_text())["config"]) == fields


def test_an_epoch_has_whole_executions_only(data_dir, tmp_path, capsys):
    # 1294 // 256 = 5 steps, of which Keras would make 6 out of the next epoch's.
    config = small_config(data_dir, batch_size=256, epochs=3, steps_per_execution=2)
    train(config, tmp_path / "run")
    assert "1 of the 5 steps of an epoch are left out" in capsys.readouterr().out
    checkpoints = list((tmp_path / "run" / "checkpoints").glob("ckpt-*.index"))
    assert {path.stem for path in checkpoints} == {"ckpt-8", "ckpt-12"}
    with pytest.raises(UserError, match="must be at most the 5 steps of an epoch, got 6"):
        train(small_config(data_dir, batch_size=256, steps_per_execution=6), tmp_path / "more")


def test_a_stop_in_the_last_step_of_an_epoch_saves_the_whole_epoch(tmp_path):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    checkpoints = Checkpoints(RunDirectory(tmp_path), model)
    checkpoints.set_model(model)
    checkpoints.steps = 3
    checkpoints.on_epoch_begin(4)
    checkpoints.on_train_batch_end(1)
    checkpoints.stop()
    checkpoints.on_train_batch_end(2)
    with pytest.raises(Stopped, match="saved after epoch 5"):
        checkpoints.on_epoch_end(4)
    assert checkpoints.restore(tmp_path / "checkpoints") == (5, 0)


def test_a_stop_before_the_last_step_saves_in_the_middle(tmp_path):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    checkpoints = Checkpoints(RunDirectory(tmp_path), model)
    checkpoints.set_model(model)
    checkpoints.steps, checkpoints.first_step = 5, 1
    checkpoints.on_epoch_begin(4)
    checkpoints.stop()
    with pytest.raises(Stopped, match="saved after step 4 of epoch 5"):
        checkpoints.on_train_batch_end(2)
    assert checkpoints.restore(tmp_path / "checkpoints") == (4, 4)


@pytest.fixture(name="stopped")
def stopped_fixture(trained, tmp_path):
    """An unfinished run of three epochs, all of them done."""
    shutil.copytree(trained.path, tmp_path / "stopped")
    (tmp_path / "stopped" / "result.json").unlink()
    return tmp_path / "stopped"


def test_a_run_is_not_resumed_on_other_data(data_dir, stopped):
    document = json.loads((stopped / "config.json").read_text())
    document["dataset"]["train_images"] = 7
    document["preprocessing"]["mean"] = [0.1]
    (stopped / "config.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"train_images: 7 then, 1294 now, mean: \(0.1,\) then"):
        train(small_config(data_dir, epochs=3), stopped)


def test_a_record_that_a_full_disk_cut_off_does_not_count(data_dir, stopped):
    run = RunDirectory(stopped)
    with run.metrics_file.open("a") as file:
        file.write('{"epoch": 4, "lo')
    assert [record["epoch"] for record in run.metrics()] == [1, 2, 3]
    train(small_config(data_dir, epochs=3), stopped)
    assert [record["epoch"] for record in run.metrics()] == [1, 2, 3]
    run.metrics_file.write_text('{"epoch": 1\n{"epoch": 2}\n')
    with pytest.raises(UserError, match=r"line 1 of .*metrics.jsonl must be a JSON object"):
        list(run.metrics())


def test_a_record_without_room_is_told(tmp_path):
    run = RunDirectory(tmp_path)
    run.metrics_file.symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"metrics.jsonl.*No space left.*resumes"):
        run.append_metrics({"epoch": 1})


@pytest.mark.parametrize("content", [b"", b"nothing of the kind", None])
def test_a_damaged_list_of_checkpoints_is_named_and_nothing_is_lost(data_dir, stopped, content):
    path = stopped / "checkpoints" / "checkpoint"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    before = (stopped / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"checkpoints/checkpoint, must be readable"):
        train(small_config(data_dir, epochs=3), stopped)
    assert (stopped / "metrics.jsonl").read_bytes() == before
