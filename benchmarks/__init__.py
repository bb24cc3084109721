"""Measured numbers, each a program. A package of its own, because google-jetstream installs one of this name too."""
