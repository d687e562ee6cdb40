"""The kernel, one job in each module."""
