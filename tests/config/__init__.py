"""Tests of veillink.config."""
