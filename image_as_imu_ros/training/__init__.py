"""Training on synthetic blur."""
