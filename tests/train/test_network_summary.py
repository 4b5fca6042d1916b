"""The summary of a tiny network equals a count by hand."""

import keras
import numpy as np

from gaternet_tf import build_gaternet
from gaternet_tf.models.gating import gate_model
from train.network_summary import summary_rows


def cells(rows):
    return {row[0]: row[1:] for row in rows}


def test_rows_equal_a_count_by_hand():
    # ResNet-8 of 4 base channels on 8x8 grey pictures: a unit a stage, of 4, 8 and 16 filters.
    model = build_gaternet("resnet8", "none", (8, 8, 1), 10, width=4)
    rows = summary_rows(model)
    assert rows[0] == ["part", "output", "parameters", "MACs", "gates"]
    assert cells(rows[1:]) == {
        "stem": ["8 x 8 x 4", str(9 * 4 + 2 * 4), f"{64 * 9 * 4:,}", "0"],
        "stage1 unit1": [
            "8 x 8 x 4",
            str(2 * (9 * 4 * 4 + 2 * 4)),
            f"{64 * 2 * 9 * 4 * 4:,}",
            "0",
        ],
        "stage2 unit1": [
            "4 x 4 x 8",
            str(9 * 4 * 8 + 9 * 8 * 8 + 4 * 8 + 3 * 2 * 8),
            f"{16 * (9 * 4 * 8 + 9 * 8 * 8 + 4 * 8):,}",
            "0",
        ],
        "stage3 unit1": [
            "2 x 2 x 16",
            f"{9 * 8 * 16 + 9 * 16 * 16 + 8 * 16 + 3 * 2 * 16:,}",
            f"{4 * (9 * 8 * 16 + 9 * 16 * 16 + 8 * 16):,}",
            "0",
        ],
        "classifier": ["10", str(16 * 10 + 10), "160", "0"],
        "total": ["", "5,142", "49,568", "0"],
    }


def test_gates_are_counted_by_unit():
    model = build_gaternet("resnet8", "resnet8", (8, 8, 1), 10)
    gates_on = np.zeros(112, np.int64)
    gates_on[:5] = 20
    gates_on[16:20] = 7
    rows = summary_rows(model, gates_on, 20)
    assert rows[0][-3:] == ["always on", "always off", "input-dependent"]
    by_part = cells(rows)
    assert by_part["stage1 unit1"][-4:] == ["16", "5", "11", "0"]
    assert by_part["stage2 unit1"][-4:] == ["32", "0", "28", "4"]
    assert by_part["total"][-4:] == ["112", "5", "103", "4"]


def test_any_network_has_the_same_units_with_gates_as_without():
    plain = keras.applications.MobileNetV2((32, 32, 3), 0.35, weights=None, classes=10)
    # A gater without sums, of more convolutions than any unit has.
    gater = keras.Sequential(
        [keras.Input((32, 32, 3)), *(keras.layers.Conv2D(2, 3) for _ in range(4))]
    )
    gated = gate_model(plain, gater)
    rows = summary_rows(gated)
    by_part = cells(rows)
    weights = 8 * 48 + 9 * 48 + 48 * 8
    norms = 2 * (48 + 48 + 8)
    assert by_part["block 2"] == ["8 x 8 x 8", f"{weights + norms:,}", f"{64 * weights:,}", "56"]
    assert by_part["block 3 expand"] == ["8 x 8 x 48", "480", "24,576", "48"]
    assert [row[:-1] for row in rows[:-2]] == [row[:-1] for row in summary_rows(plain)[:-1]]
    assert [row[0] for row in rows[-3:]] == ["classifier", "gater", "total"]
    trainable = sum(np.prod(weight.shape) for weight in gated.trainable_weights)
    assert rows[-1][2] == f"{trainable:,}"
