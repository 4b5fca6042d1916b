"""What analysis.json must hold: all that figures, tables and report read of it."""

import json
from typing import Any

from gaternet_tf.documents import NUMBER, OPTIONAL_TEXT, require_parts

DATASET = {"name": str, "version": str}
OF_KINDS = dict.fromkeys(("total", "always_on", "always_off", "input_dependent"), int)
UNIT = {"name": str, "stage": int, "unit": int, **OF_KINDS, "gate_rate": NUMBER}
HISTOGRAM = {"edges": [NUMBER], "counts": [int]}
SPREAD = {"images": int, "min": int, "max": int, "mean": NUMBER, "std": NUMBER}
SEGMENT = dict.fromkeys(("stage", "unit", "convolution", "channels"), int)
CHARACTERISTIC = {
    **dict.fromkeys(("gate", "stage", "unit", "convolution", "channel"), int),
    **dict.fromkeys(("mutual_information", "rate_in_class", "rate_elsewhere"), NUMBER),
}
PICTURES = ("images_on", "images_off")
"""Of a characteristic gate, both or none."""
CHANGED = {
    "change": str,
    "images": int,
    **dict.fromkeys(("gates", "images_unchanged", "predictions"), NUMBER),
}
PARTS = {
    "source": {
        **dict.fromkeys(("kind", "path", "backbone", "gater"), str),
        "dataset": DATASET,
        "git_commit": OPTIONAL_TEXT,
        "sparsity": NUMBER,
    },
    "dataset": {**DATASET, "split": str},
    "images": int,
    "classes": [str],
    "accuracy": NUMBER,
    "gates": {
        **OF_KINDS,
        **dict.fromkeys(("nearly_always_off", "nearly_always_on", "between"), int),
    },
    "units": [{**UNIT, "images_off": int, "never_runs": bool}],
    "convolutions": [{**UNIT, "convolution": int}],
    "images_per_input_dependent_gate": HISTOGRAM,
    "gates_on": {
        "all": SPREAD,
        "histogram": HISTOGRAM,
        **dict.fromkeys(("right", "wrong"), dict),
        "by_class": [dict],
    },
    "distinct_gate_vectors": int,
    "macs": dict,
    "gate_rate_by_class": list,
    "characteristic": [[CHARACTERISTIC]],
    "separation": {"images": int, **dict.fromkeys(("t_sne", "neighbours", "silhouette"), dict)},
    "changed_pictures": {"flip": dict},
    "strength": str,
    "gate_map": [SEGMENT],
}
"""What every document has at least."""
MACS = {
    "total": int,
    "without_off_filters": dict.fromkeys(("min", "max", "mean", "std"), NUMBER),
    "histogram": HISTOGRAM,
}
SEPARATION: dict[str, dict] = {
    "t_sne": {"pca_components": int},
    "neighbours": {"k": int, "accuracy": NUMBER, "accuracy_shuffled": NUMBER},
    "silhouette": {"images": int, "mean": NUMBER, "mean_shuffled": NUMBER},
}
"""What these parts hold unless they are {"absent": reason}, as some others may be too."""


def require_document(document: dict) -> None:
    """Checks that figures and report can be drawn from a document.

    Raises:
      ValueError: for a part that is missing, another thing, no finite number or does not fit the
        others.
    """
    require_parts(document, PARTS)
    try:
        json.dumps(document, allow_nan=False)
    except ValueError as error:
        raise ValueError("it has numbers that are not finite") from error
    _require_or_absent(document["macs"], MACS, "'macs'")
    for name, wanted in SEPARATION.items():
        _require_or_absent(document["separation"][name], wanted, f"'{name}'")
    spreads = document["gates_on"]
    for row in (spreads["right"], spreads["wrong"], *spreads["by_class"]):
        _require_or_absent(row, SPREAD, "an item of 'gates_on'")
    for row in document["changed_pictures"].values():
        require_parts(row, CHANGED, "an item of 'changed_pictures'")
        if not isinstance(row.get("input_dependent"), dict):
            require_parts(row, {"input_dependent": NUMBER}, "an item of 'changed_pictures'")
        else:
            require_parts(row["input_dependent"], {"absent": str}, "'input_dependent'")
    for gates in document["characteristic"]:
        for row in gates:
            if any(name in row for name in PICTURES):
                require_parts(row, {key: [int] for key in PICTURES}, "an item of 'characteristic'")
    _require_lengths(document)
    _require_sums(document)


def _require_or_absent(value: dict, wanted: Any, name: str) -> None:
    require_parts(value, {"absent": str} if "absent" in value else wanted, name)


def _require_lengths(document):
    classes, units = len(document["classes"]), len(document["units"])
    rates = document["gate_rate_by_class"]
    for name, rows in (
        ("gates_on.by_class", document["gates_on"]["by_class"]),
        ("gate_rate_by_class", rates),
        ("characteristic", document["characteristic"]),
    ):
        if len(rows) != classes:
            raise ValueError(f"'{name}' has {len(rows)} rows for {classes} classes")
    for row, spread in zip(rates, document["gates_on"]["by_class"], strict=True):
        if (row is None) != ("absent" in spread):
            raise ValueError("'gates_on' and 'gate_rate_by_class' have other classes")
        if row is None:
            continue
        require_parts(row, [NUMBER], "an item of 'gate_rate_by_class'")
        if len(row) != units or not all(0 <= rate <= 1 for rate in row):
            raise ValueError(f"'gate_rate_by_class' is not of {units} rates from 0 to 1")
    histograms = [document["images_per_input_dependent_gate"], document["gates_on"]["histogram"]]
    if "absent" not in document["macs"]:
        histograms.append(document["macs"]["histogram"])
    for histogram in histograms:
        edges, counts = histogram["edges"], histogram["counts"]
        if not counts or len(edges) != len(counts) + 1 or sorted(set(edges)) != edges:
            raise ValueError("a histogram has other edges than counts")


def _require_sums(document):
    """Gates of units and convolutions, against the gate map."""
    by_unit: dict[tuple, int] = {}
    by_convolution: dict[tuple, int] = {}
    for row in document["gate_map"]:
        place = (row["stage"], row["unit"])
        by_unit[place] = by_unit.get(place, 0) + row["channels"]
        by_convolution[*place, row["convolution"]] = row["channels"]
    gates = document["gates"]["total"]
    if gates != sum(by_unit.values()):
        raise ValueError(
            f"its numbers are of {gates} gates and its gate map of {sum(by_unit.values())}: one is "
            "of another network"
        )
    units = {(row["stage"], row["unit"]): row["total"] for row in document["units"]}
    convolutions = {
        (row["stage"], row["unit"], row["convolution"]): row["total"]
        for row in document["convolutions"]
    }
    if list(units.items()) != list(by_unit.items()):
        raise ValueError("'units' and 'gate_map' have other units")
    if list(convolutions.items()) != list(by_convolution.items()):
        raise ValueError("'convolutions' and 'gate_map' have other convolutions")
    for row in (document["gates"], *document["units"], *document["convolutions"]):
        kinds = [row[name] for name in OF_KINDS if name != "total"]
        if row["total"] < 1 or min(kinds) < 0 or sum(kinds) != row["total"]:
            raise ValueError(f"{kinds} gates of the three kinds are not {row['total']}")
