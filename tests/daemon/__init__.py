"""Tests of veillink.daemon."""
