"""A world in memory for the gateway's logic: virtual time, a log with trimming, rollbacks and outages, clients of all
kinds, and an oracle that knows everything that ever happened. Deterministic: a seed names a scenario."""
