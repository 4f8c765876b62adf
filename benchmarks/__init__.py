"""Measurements against the floor (`cp`) and against what people do by hand: `make bench`."""
