"""Tests of veillink.server."""
