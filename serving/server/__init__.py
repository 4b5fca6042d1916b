"""A local model server for development and tests: one process, one model, gRPC only."""
