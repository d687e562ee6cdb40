"""Tests of veillink.admin."""
