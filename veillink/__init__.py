"""VeilLink: a TCP forwarder configured with one CSV line per port."""

__version__ = "1.0.0"
