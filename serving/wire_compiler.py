"""Compiles wire.proto to the descriptor set that `serving.wire` reads."""

import importlib.util
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
PROTO = "wire.proto"
DESCRIPTOR_SET = HERE / "wire.binpb"


def compile_descriptor_set(output: pathlib.Path) -> None:
    """Compiles wire.proto, with what it imports, to `output`.

    Raises:
      ImportError: without grpcio-tools.
      RuntimeError: when wire.proto does not compile.
    """
    if importlib.util.find_spec("grpc_tools") is None:
        raise ImportError("grpcio-tools is required to compile wire.proto, and is not installed")
    # In a process of its own: the compiler and TensorFlow bring a protobuf each, and one process
    # that has both crashes.
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{HERE}", "--include_imports"]
    done = subprocess.run(
        [*protoc, f"--descriptor_set_out={output}", PROTO], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"protoc ended with status {done.returncode}: {done.stderr.strip()}")
