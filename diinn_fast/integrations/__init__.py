"""DIINN inside other programs: one module per program, imported where that program is."""
