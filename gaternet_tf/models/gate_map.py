"""Which filter each gate switches: the one object that training, analysis and export read."""

import dataclasses
from collections.abc import Sequence

import keras

from gaternet_tf.layers import GateSplit


@dataclasses.dataclass(frozen=True)
class Gate:
    """The place of one gate: the layer and its unit by name, the filter's channel from 0."""

    layer: str
    unit: str
    channel: int


@dataclasses.dataclass(frozen=True)
class GateSegment:
    """Neighbouring gates that switch the filters of one layer, in channel order.

    Attributes:
      layer: name of the layer whose filters these gates switch.
      unit: name of the branch that it is in, such as a residual unit; its own without one.
      channels: number of its filters.
    """

    layer: str
    unit: str
    channels: int


class GateMap(Sequence[Gate]):
    """All gates of a model in the order of its `gates` output, layer after layer.

    `len(gates)` is the number of gates, `gates[i]` the place of gate `i`, and `gates.segments`
    the gated layers. A map is never changed.
    """

    def __init__(self, segments: Sequence[GateSegment]):
        self.segments = tuple(segments)
        self._gates = tuple(
            Gate(segment.layer, segment.unit, channel)
            for segment in self.segments
            for channel in range(segment.channels)
        )

    def __len__(self) -> int:
        return len(self._gates)

    def __getitem__(self, index):
        return self._gates[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GateMap) and self.segments == other.segments

    def __hash__(self) -> int:
        return hash(self.segments)

    def __repr__(self) -> str:
        return f"GateMap({len(self)} gates on {len(self.segments)} layers)"

    @property
    def units(self) -> tuple[str, ...]:
        """Names of the units with gates, in network order."""
        return tuple(dict.fromkeys(segment.unit for segment in self.segments))

    def to_rows(self) -> list[dict]:
        """The segments as JSON-ready dicts; `from_rows` reads them back."""
        return [dataclasses.asdict(segment) for segment in self.segments]

    @classmethod
    def from_rows(cls, rows: Sequence[dict]) -> "GateMap":
        """The map that `to_rows` wrote."""
        return cls([GateSegment(**row) for row in rows])


def gate_map(model: keras.Model) -> GateMap:
    """Returns the gate map of a GaterNet model, new or loaded; empty for one without gates."""
    for layer in model.layers:
        if isinstance(layer, GateSplit):
            return GateMap.from_rows(layer.segments)
    return GateMap([])
