"""Decoding as lanes: one state, a few pure moves, and each decoder a short composition of them."""
