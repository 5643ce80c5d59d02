"""Scores of estimated motion against a gyroscope: sources, metrics, reports, benchmark."""
