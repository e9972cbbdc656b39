"""Tests of the write side, against a real Valkey; HTTP through ASGI, or real sockets where the wire matters."""
