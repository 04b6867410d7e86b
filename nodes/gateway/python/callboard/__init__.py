"""Callboard's Python front-end: `callboard.client` on the bus, `callboard.jupyter` in a Jupyter server."""
