"""Converts between other tools' formats and our checkpoints: tensor names, configurations, files and adapters."""
