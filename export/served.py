"""Exported versions as a model server runs them: in a process that has TensorFlow's C++ alone."""

import dataclasses
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

C_SESSION = pathlib.Path(__file__).with_name("c_session.py")
SECONDS = 600


def read_meta_graph(version_dir: pathlib.Path):
    """The graph that a server loads, the one tagged exactly {serve}.

    Raises:
      ValueError: when saved_model.pb is not one, or has no such graph.
    """
    try:
        saved = saved_model_pb2.SavedModel.FromString((version_dir / "saved_model.pb").read_bytes())
    except DecodeError as error:
        raise ValueError(f"saved_model.pb cannot be parsed ({error})") from error
    tags = [set(graph.meta_info_def.tags) for graph in saved.meta_graphs]
    if {"serve"} not in tags:
        raise ValueError(f"saved_model.pb has no graph tagged exactly {{serve}}, but {tags}")
    return saved.meta_graphs[tags.index({"serve"})]


@dataclasses.dataclass
class Request:
    """One call of a signature: arrays by input name, and which outputs to fetch (all)."""

    signature: str
    inputs: Mapping[str, Any]
    model: str = ""


@dataclasses.dataclass
class Answer:
    """Arrays by output name, or the error's text; and how long each timed round took."""

    outputs: dict[str, Any]
    error: str
    seconds: list[float]


class Served:
    """Loads versions as a server does and runs their signatures.

    Args:
      directories: version directories by a name of yours; or one directory.
      config: the sessions' thread settings, for example.
    """

    def __init__(
        self,
        directories: Mapping[str, pathlib.Path] | pathlib.Path,
        config: tf.compat.v1.ConfigProto | None = None,
    ):
        if not isinstance(directories, Mapping):
            directories = {"": directories}
        self.directories = directories
        self.config = config.SerializeToString() if config else b""
        self.meta_graphs = {name: read_meta_graph(path) for name, path in directories.items()}
        self.load_errors: dict[str, str] = {}
        self.known_operations = b""

    def signatures(self, model: str = "") -> dict:
        """SignatureDefs by name, without TensorFlow's own."""
        return {
            name: signature
            for name, signature in self.meta_graphs[model].signature_def.items()
            if not name.startswith("__saved_model")
        }

    def run(self, requests: Sequence[Request], warm_up: int = 0, rounds: int = 0) -> list[Answer]:
        """Runs requests one after the other, and all of them again `warm_up + rounds` times.

        Raises:
          RuntimeError: when the process itself fails, or takes more than ten minutes.
        """
        job: list = []
        names: list = []
        for request in requests:
            signature = self.meta_graphs[request.model].signature_def[request.signature]
            feeds = [
                (signature.inputs[key].name, signature.inputs[key].dtype, value)
                for key, value in request.inputs.items()
            ]
            names.append(sorted(signature.outputs))
            fetches = [signature.outputs[name].name for name in names[-1]]
            job.append((request.model, feeds, fetches))
        answer = self._in_a_process(job, warm_up, rounds)
        self.load_errors = {name: text for name, text in answer["load"].items() if text}
        self.known_operations = answer["ops"]
        return [
            Answer({}, outputs, seconds)
            if isinstance(outputs, str)
            else Answer(dict(zip(keys, outputs, strict=True)), "", seconds)
            for keys, outputs, seconds in zip(
                names, answer["outputs"], answer["seconds"], strict=True
            )
        ]

    def _in_a_process(self, requests, warm_up, rounds):
        job = {
            "directories": {name: str(path) for name, path in self.directories.items()},
            "config": self.config,
            "requests": requests,
            "warm_up": warm_up,
            "rounds": rounds,
        }
        with tempfile.TemporaryDirectory() as scratch:
            files = [os.path.join(scratch, name) for name in ("job", "answer")]
            pathlib.Path(files[0]).write_bytes(pickle.dumps(job))
            # It finds NumPy wherever this process does, and nothing else.
            places = [os.path.dirname(tf.__file__), os.path.dirname(os.path.dirname(np.__file__))]
            command = [sys.executable, "-I", str(C_SESSION), *places, *files]
            environment = {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=SECONDS, env=environment
                )
            except subprocess.TimeoutExpired as error:
                raise RuntimeError(f"no answer within {SECONDS} s") from error
            if done.returncode:
                raise RuntimeError(f"it ended with {done.returncode}: {done.stderr[-500:]}")
            return pickle.loads(pathlib.Path(files[1]).read_bytes())
