"""The libraries that the interactive parts are built from; an error names the extra that installs them."""

try:
    import anywidget  # noqa: F401  plotly's FigureWidget needs it, and no extra of plotly's brings it
    import ipywidgets as widgets
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots
except ModuleNotFoundError as error:
    message = f"the notebook widgets need {error.name}: pip install 'igrpo-kit[notebooks]'"
    raise ModuleNotFoundError(message, name=error.name) from None

__all__ = ["go", "make_subplots", "widgets"]
