"""Tests of veillink.proxy."""
