"""Tests of veillink.net."""
