"""Writes a run as a page that opens in a browser without a network."""
