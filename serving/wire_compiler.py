"""Compiles wire.proto to the descriptor set that `serving.wire` reads."""

import pathlib

HERE = pathlib.Path(__file__).resolve().parent
PROTO = "wire.proto"
DESCRIPTOR_SET = HERE / "wire.binpb"


def compile_descriptor_set(output: pathlib.Path) -> None:
    """Compiles wire.proto, with what it imports, to `output`. Needs grpcio-tools."""
    import grpc_tools
    from grpc_tools import protoc

    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    status = protoc.main(
        [
            "protoc",
            f"-I{HERE}",
            f"-I{well_known}",
            "--include_imports",
            f"--descriptor_set_out={output}",
            PROTO,
        ]
    )
    if status:
        raise RuntimeError(f"protoc ended with status {status} on {HERE / PROTO}")
