"""Synthetic motion blur: training crops and whole simulated recordings."""
