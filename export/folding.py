"""Folds what scales channels into the convolutions and dense layers before or behind it."""

import dataclasses

import numpy as np

from export.program import Affine, Filters, Program, Step


def fold(program: Program) -> Program:
    """Returns a program without the scalings that a neighbouring layer of filters can take over.

    A layer takes over the scaling behind it if nothing else reads its output, and the one before it
    if nothing else reads that and no border of zeros comes between.
    """
    readers = program.readers()
    makers: dict[int, Step] = {}
    steps: list[Step] = []
    for step in program.steps:
        step = dataclasses.replace(step)
        before = makers.get(step.inputs[0]) if step.inputs else None
        alone = before is not None and len(readers[before.output]) == 1
        if before is not None and alone and _scale_behind(before, step):
            before.outputs = step.outputs
            makers[step.output] = before
            continue
        if before is not None and alone and _scale_before(step, before):
            steps.remove(before)
            step.inputs = before.inputs
        steps.append(step)
        makers.update(dict.fromkeys(step.outputs, step))
    return dataclasses.replace(program, steps=steps)


def _scale_behind(before: Step, affine: Step) -> bool:
    """Gives a step the scaling behind it; returns whether there is one, and it could."""
    if not isinstance(affine, Affine):
        return False
    if isinstance(before, Affine):
        before.offset = before.offset * affine.scale + affine.offset
        before.scale = before.scale * affine.scale
    elif isinstance(before, Filters) and before.activation is None:
        scale = affine.scale[:, None] if before.kind == "depthwise" else affine.scale
        before.kernel = before.kernel * scale
        before.bias = before.bias * affine.scale + affine.offset
    else:
        return False
    return True


def _scale_before(step: Step, affine: Step) -> bool:
    """Gives a layer of filters the scaling before it; returns whether there is, and it could."""
    if not (isinstance(step, Filters) and isinstance(affine, Affine)):
        return False
    if step.groups > 1 or (step.pads and affine.offset.any()):
        return False
    channels = (slice(None), None)
    offset = step.kernel * affine.offset[channels]
    if step.kind == "depthwise":
        step.bias = step.bias + offset.sum((0, 1, 3))
    else:
        step.bias = step.bias + offset.reshape(-1, step.kernel.shape[-1]).sum(0)
    step.kernel = step.kernel * np.asarray(affine.scale)[channels]
    return True
