"""What happens beside the training steps, on a model of one layer."""

import io
import re

import keras
import numpy as np
import pytest

from gaternet_tf import UserError
from gaternet_tf.losses import SparsityLoss
from gaternet_tf.runs import RunDirectory
from train.callbacks import (
    BestWeights,
    Checkpoints,
    ProgressBar,
    SparsityWarmUp,
    StopOnNonFinite,
    Validation,
    epoch_line,
)


def small_model():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def small_checkpoints(directory, steps=1):
    """A model, its best weights and its checkpoints."""
    model = small_model()
    best = BestWeights(model)
    checkpoints = Checkpoints(RunDirectory(directory), model, best, steps)
    for callback in (best, checkpoints):
        callback.set_model(model)
    return model, best, checkpoints


def run_epochs(parts, numbers, accuracies):
    """Epochs of one step, whose weights are the epoch's number."""
    model, best, checkpoints = parts
    for number, accuracy in zip(numbers, accuracies, strict=True):
        model.set_weights([np.full_like(weight, number) for weight in model.get_weights()])
        model.optimizer.iterations.assign_add(1)
        best.on_epoch_end(number, {"val_accuracy": accuracy})
        checkpoints.on_epoch_end(number)


def test_the_best_epoch_is_known_after_a_restart(tmp_path):
    run_epochs(small_checkpoints(tmp_path), range(4), [0.5, 0.7, 0.7, 0.6])
    model, best, checkpoints = small_checkpoints(tmp_path)
    assert checkpoints.restore(tmp_path / "checkpoints") == (4, 0)
    run_epochs((model, best, checkpoints), [4], [0.65])
    assert best.restore(model) == 3
    assert all((weight == 2).all() for weight in model.get_weights())


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_can_be_used(tmp_path):
    run_epochs(small_checkpoints(tmp_path), range(3), [0.5, 0.6, 0.7])
    (latest,) = (tmp_path / "checkpoints").glob("ckpt-3.data-*")
    latest.write_bytes(b"damaged")
    model, _, checkpoints = small_checkpoints(tmp_path)
    with pytest.raises(UserError, match=r"--previous_checkpoint needs two.* has 0"):
        checkpoints.restore(tmp_path / "none", previous=True)
    with pytest.raises(UserError, match=r"ckpt-3 is not.*--previous_checkpoint"):
        checkpoints.restore(tmp_path / "checkpoints")
    assert checkpoints.restore(tmp_path / "checkpoints", previous=True) == (2, 0)
    assert all((weight == 1).all() for weight in model.get_weights())


def test_a_stop_saves_in_the_middle_of_an_epoch(tmp_path):
    *_, checkpoints = small_checkpoints(tmp_path, steps=5)
    checkpoints.first_step = 1
    checkpoints.on_epoch_begin(4)
    checkpoints.stop()
    with pytest.raises(UserError, match="saved after step 4 of epoch 5; the same command resumes"):
        checkpoints.on_train_batch_end(2)
    assert checkpoints.restore(tmp_path / "checkpoints") == (4, 4)


def test_a_stop_in_the_last_step_of_an_epoch_saves_the_whole_epoch(tmp_path):
    *_, checkpoints = small_checkpoints(tmp_path, steps=3)
    checkpoints.on_epoch_begin(4)
    checkpoints.stop()
    checkpoints.on_train_batch_end(2)
    with pytest.raises(UserError, match="saved after epoch 5"):
        checkpoints.on_epoch_end(4)
    assert checkpoints.restore(tmp_path / "checkpoints") == (5, 0)


def test_a_diverging_run_stops_with_the_step():
    model = small_model()
    model.optimizer.iterations.assign(7)
    callback = StopOnNonFinite()
    callback.set_model(model)
    callback.on_train_batch_end(0, {"loss": 1.0})
    callback.on_epoch_end(0)
    with pytest.raises(UserError, match=r"loss must stay finite, and was nan at step 7; lower"):
        callback.on_train_batch_end(0, {"loss": float("nan")})
    model.layers[0].kernel.assign([[np.inf]])
    with pytest.raises(UserError, match=r"kernel must stay finite, and was inf at step 7"):
        callback.on_epoch_end(0)


def test_the_line_of_an_epoch_fits_into_the_terminal():
    values = {"loss": 0.5, "task_loss": 0.4, "sparsity_loss": 0.1, "accuracy": 0.9}
    values |= {"gate_rate": 0.6, "val_accuracy": 0.91234, "learning_rate": 0.1, "seconds": 12.3}
    head = "epoch 3/20  loss 0.5  "
    whole = epoch_line(3, 20, values, False, np.inf)
    assert whole == (
        f"{head}task_loss 0.4  sparsity_loss 0.1  accuracy 0.9  gate_rate 0.6  "
        "val_accuracy 0.9123  learning_rate 0.1  seconds 12.3"
    )
    narrow = epoch_line(3, 20, values, True, 80)
    # As many values as fit with the mark of the best epoch, which this one may not be.
    assert narrow == f"{head}gate_rate 0.6  val_accuracy 0.9123 (best)"
    assert epoch_line(4, 20, values, False, 80) == narrow.replace("3/20", "4/20")[: -len(" (best)")]


def test_the_bar_of_an_epoch_is_on_a_terminal_only(monkeypatch):
    bar = ProgressBar(epochs=3)
    bar.set_params({"steps": 4})
    shown = {}
    for is_terminal in (True, False):
        stderr = io.StringIO()
        monkeypatch.setattr(stderr, "isatty", lambda is_terminal=is_terminal: is_terminal)
        monkeypatch.setattr("sys.stderr", stderr)
        bar.on_epoch_begin(1)
        bar.bar.mininterval = bar.bar.miniters = 0
        bar.on_train_batch_end(0, {"loss": 0.75})
        bar.on_epoch_end(1)
        shown[is_terminal] = stderr.getvalue()
    assert re.search(r"epoch 2/3  25% .* 1/4, epoch .*, run .* left, loss 0.75", shown[True])
    assert shown[False] == ""


def test_sparsity_warm_up_is_linear_over_epochs():
    loss = SparsityLoss(0.1)
    callback = SparsityWarmUp(loss, steps=15)
    model = small_model()
    callback.set_model(model)
    scales = []
    for epoch in range(2):
        model.optimizer.iterations.assign(10 * epoch)
        callback.on_epoch_begin(epoch)
        for batch in range(10):
            callback.on_train_batch_begin(batch)
            scales.append(float(loss.scale))
    np.testing.assert_allclose(scales, np.minimum(1, np.arange(1, 21) / 15), rtol=1e-6)


def validate(on, off, held_out=True):
    """The logs of an epoch after which so many of 8 gates are always on and always off."""
    result = {
        "accuracy": 0.5,
        "loss": 0.25,
        "images": 50,
        "gates": 8,
        "gates_always_on": on,
        "gates_always_off": off,
        "gates_input_dependent": 8 - on - off,
    }
    callback = Validation(lambda batches, loss: result, [], held_out)
    model = small_model()
    model.compile("sgd", {"logits": "mse"})
    callback.set_model(model)
    logs = {}
    callback.on_epoch_end(0, logs)
    return logs


def test_collapsed_gates_are_warned_about_and_counted(capsys):
    logs = validate(on=3, off=5)
    assert "(3 of 8 always on, 5 always off on 50 validation images)" in capsys.readouterr().out
    assert (logs["val_accuracy"], logs["val_task_loss"], logs["val_gates_always_on"]) == (
        0.5,
        0.25,
        3,
    )
    assert not {"val_loss", "val_images"} & logs.keys()
    validate(on=3, off=4)
    assert capsys.readouterr().out == ""


def test_without_held_out_images_training_images_show_a_collapse(capsys):
    assert validate(on=8, off=0, held_out=False) == {}
    assert "on 50 training images" in capsys.readouterr().out
