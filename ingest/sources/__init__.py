"""Platforms that send events in their own form: one pure module each, from a body to groups for the log."""
