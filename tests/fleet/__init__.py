"""Tests of veillink.fleet."""
