"""Figures: pure functions from arrays to plotly. catalog.py lists them all, theme.py holds what they share."""
