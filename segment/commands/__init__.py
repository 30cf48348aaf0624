"""One file per command: what it accepts and what it calls."""
