"""Every number of an analysis, on gate matrices where it is known."""

import numpy as np
import pytest
from planted_analysis import record_of
from sklearn.metrics import mutual_info_score

from gaternet_tf.analysis.statistics import (
    CHUNK,
    count,
    histogram,
    kinds,
    mutual_information,
    statistics_of,
)
from gaternet_tf.models.gate_map import GateMap, GateSegment

GATES = np.array(
    [
        [1, 0, 1, 0, 0, 0, 0],
        [1, 0, 1, 1, 0, 0, 0],
        [1, 0, 0, 1, 0, 1, 0],
        [1, 0, 0, 1, 0, 1, 0],
    ]
)


@pytest.fixture
def numbers():
    record = record_of(GATES, labels=[0, 0, 1, 1], predictions=[0, 1, 1, 1])
    return statistics_of(record, count(record))


def test_the_papers_edges_of_100_and_9900_images():
    assert kinds(np.array([0, 1, 99, 100, 9900, 9901, 9999, 10_000]), 10_000) == {
        "total": 8,
        "always_on": 1,
        "always_off": 1,
        "input_dependent": 6,
        "nearly_always_off": 2,
        "nearly_always_on": 2,
        "between": 2,
    }


def test_units_and_layers(numbers):
    first, second = numbers["units"]
    assert (first["always_on"], first["always_off"], first["input_dependent"]) == (1, 1, 2)
    assert (second["always_on"], second["always_off"], second["input_dependent"]) == (0, 2, 1)
    assert (first["gate_rate"], second["gate_rate"]) == (9 / 16, 2 / 12)
    assert (first["last_layer_off"], second["last_layer_off"]) == (0, 2)
    assert [row["name"] for row in numbers["layers"]] == ["a_conv", "b_conv"]


def test_the_layers_of_a_unit_need_not_be_neighbours():
    gate_map = GateMap(
        [GateSegment("one", "a", 2), GateSegment("alone", "alone", 1), GateSegment("two", "a", 2)]
    )
    record = record_of([[1, 1, 1, 0, 0], [0, 1, 0, 0, 0]], [0, 1], gate_map=gate_map)
    numbers = statistics_of(record, count(record))
    first, second = numbers["units"]
    assert (first["name"], first["total"], first["always_on"]) == ("a", 4, 1)
    assert (first["last_layer_off"], second["last_layer_off"]) == (2, 1)
    assert numbers["gate_rate_by_class"] == [[0.5, 1.0], [0.25, 0.0]]


def test_gates_on_per_image(numbers):
    on = numbers["gates_on"]
    std = pytest.approx(0.4330127)
    assert on["all"] == {"images": 4, "min": 2, "max": 3, "mean": 2.75, "std": std}
    assert on["histogram"] == {"edges": [2, 3, 4], "counts": [1, 3]}
    assert on["right"]["mean"] == pytest.approx(8 / 3)
    assert (on["wrong"]["images"], on["wrong"]["mean"]) == (1, 3.0)
    assert [row["mean"] for row in on["by_class"]] == [2.5, 3.0]
    assert numbers["gate_rate_by_class"] == [[5 / 8, 0.0], [0.5, 1 / 3]]
    assert numbers["gate_rate"] == (4 + 2 + 3 + 2) / 28
    assert numbers["accuracy"] == 0.75
    assert numbers["distinct_gate_vectors"] == 3


def test_macs_without_off_filters(numbers):
    # Of image 0 five gates are off, each of 10.
    left = numbers["macs"]["without_off_filters"]
    assert (left["min"], left["max"]) == (950.0, 960.0)
    assert left["mean"] == (950 + 960 + 960 + 960) / 4
    assert numbers["macs"]["total"] == 1000
    assert numbers["macs"]["histogram"] == {"edges": [950, 960, 970], "counts": [1, 3], "step": 10}


def test_a_class_without_images_is_marked_as_absent():
    record = record_of(GATES, labels=[1, 1, 1, 1])
    numbers = statistics_of(record, count(record))
    assert numbers["gate_rate_by_class"][0] is None
    assert "absent" in numbers["gates_on"]["by_class"][0]
    assert numbers["characteristic"] == [[], []]


def test_characteristic_gates_come_by_mutual_information(numbers):
    best = numbers["characteristic"][0]
    # Gates 2 and 5 tell the class for sure: one bit. Gate 3 tells less, the others nothing.
    assert [row["gate"] for row in best] == [2, 5, 3]
    assert [row["mutual_information"] for row in best][:2] == [pytest.approx(1.0)] * 2
    assert (best[0]["rate_in_class"], best[0]["rate_elsewhere"]) == (1.0, 0.0)
    assert (best[1]["layer"], best[1]["unit"], best[1]["channel"]) == ("b_conv", "b", 1)


def test_mutual_information_equals_scikit_learns():
    rng = np.random.default_rng(3)
    member, gates = rng.random(200) < 0.3, rng.random((200, 6)) < 0.4
    bits = mutual_information(gates[member].sum(0), member.sum(), gates.sum(0), 200)
    wanted = [mutual_info_score(member, gate) / np.log(2) for gate in gates.T]
    np.testing.assert_allclose(bits, wanted, atol=1e-12)


def test_counting_in_chunks_changes_nothing():
    rng = np.random.default_rng(1)
    images = 2 * CHUNK + 7
    gates, labels = rng.random((images, 7)) < 0.3, rng.integers(0, 2, images)
    counts = count(record_of(gates, labels))
    np.testing.assert_array_equal(counts.on, gates.sum(axis=0))
    np.testing.assert_array_equal(counts.on_per_image, gates.sum(axis=1))
    np.testing.assert_array_equal(counts.on_by_class[1], gates[labels == 1].sum(axis=0))
    assert counts.last_layer_off["b"] == int((~gates[:, 4:].any(axis=1)).sum())


@pytest.mark.parametrize(("low", "high"), [(0, 0), (0, 49), (0, 50), (5, 10_000), (62, 74)])
def test_a_histogram_counts_every_number_once(low, high):
    values = np.arange(low, high + 1)
    made = histogram(values, low, high)
    assert sum(made["counts"]) == len(values)
    assert len(made["counts"]) <= 50
    assert made["edges"][0] == low
    assert made["edges"][-1] > high
