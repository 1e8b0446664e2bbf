"""Multimodal process reward models: three papers on one data format, driven by notebooks."""

import warnings

__version__ = "0.1.0"

# notebooks show plain progress lines, not widgets: the hint to install ipywidgets would be noise in each of them
warnings.filterwarnings("ignore", message="IProgress not found")
