"""Figures: data in, plotly figures out."""
