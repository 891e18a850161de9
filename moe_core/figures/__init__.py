"""Figures: pure functions from arrays to plotly. catalog.py lists them all, paper.py and theme.py hold what they share."""
