"""Curates data sets: checks them, finds evaluation questions in them, mixes, augments and selects rows."""
