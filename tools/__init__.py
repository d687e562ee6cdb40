"""What measures VeilLink from outside, for its developers: not part of what is installed."""
