"""Everything about docker/ that can be checked without a container engine."""
