"""One connection: from its accept to its access line."""
