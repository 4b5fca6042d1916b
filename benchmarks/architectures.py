"""Prints where gates stand in networks of keras.applications: python -m benchmarks.architectures"""

import collections

from absl import flags

from gaternet_tf.command import run, run_command
from gaternet_tf.errors import UserError

FLAGS = flags.FLAGS

flags.DEFINE_list(
    "networks",
    "VGG16,ResNet50,ResNet50V2,DenseNet121,InceptionV3,MobileNetV2,MobileNetV3Small,"
    "EfficientNetV2B0,ConvNeXtTiny,Xception",
    "Names in keras.applications.",
)
COLUMNS = ("network", "gated layers", "gates, all", "gates, last", "gates stand behind", "read by")
SHOWN = 3
"""Kinds of layers that a cell names."""


def main(argv):
    """Prints the table; returns the exit status."""
    return run_command("benchmarks.architectures", argv, print_table, prints_only=True)


def print_table():
    """Prints a row for each network."""
    import keras

    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for name in FLAGS.networks:
        network = getattr(keras.applications, name)
        plain = network(weights=None, classifier_activation=None)
        print(f"| {' | '.join([name, *row(plain)])} |", flush=True)


def row(plain) -> list[str]:
    """Returns the cells of a network."""
    import keras

    from gaternet_tf.layers import GateFilters
    from gaternet_tf.models import gate_map, gate_model

    gated = gate_model(plain, gater="resnet8", gater_size=32)
    try:
        last = f"{len(gate_map(gate_model(plain, 'resnet8', 'last', gater_size=32))):,}"
    except UserError:
        last = "none"
    behind, readers = collections.Counter[str](), collections.Counter[str]()
    outputs = {id(layer.output) for layer in gated.layers if isinstance(layer, GateFilters)}
    for operation in gated.operations:
        if isinstance(operation, GateFilters):
            behind[type(operation.input[0]._keras_history.operation).__name__] += 1
        for tensor in keras.tree.flatten(getattr(operation, "input", [])):
            readers[type(operation).__name__] += id(tensor) in outputs
    gates = gate_map(gated)
    kinds = [
        ", ".join(f"{kind} {number}" for kind, number in counts.most_common(SHOWN) if number)
        for counts in (behind, readers)
    ]
    return [str(len(gates.segments)), f"{len(gates):,}", last, *kinds]


if __name__ == "__main__":
    run(main)
