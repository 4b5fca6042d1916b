"""Serving: a client for model servers, and a local server for development and tests."""

import os

# gRPC logs every connection that fails, which our errors report too. It reads this at its import.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
