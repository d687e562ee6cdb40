"""Tests of veillink.stats."""
