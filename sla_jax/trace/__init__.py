"""Search traces: a search as JSON lines, enough to redraw it, and its replay (docs/traces.md)."""
