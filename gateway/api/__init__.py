"""The public HTTP interface: one module per group of endpoints, each a list of routes made from the service."""
