"""Serving: a gRPC client, and a local server for development and tests."""
