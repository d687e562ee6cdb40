"""Rules become listeners: which are wanted, which are open, and who accepts."""
