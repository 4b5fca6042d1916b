"""The summary of a tiny network equals a count by hand."""

import numpy as np

from gaternet_tf import build_gaternet
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
