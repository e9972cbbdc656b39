"""The contract as machines read it: JSON Schemas, OpenAPI 3.1 (write side included), AsyncAPI 3.0.

Schemas are generated from msgspec structs: those the write side decodes with (`core.events`) and, for what readers
get, those in `gateway.contract.messages`. The tests hold real answers and messages against them.
"""
