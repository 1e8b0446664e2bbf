"""Multimodal process reward models: three papers on one data format, driven by notebooks."""

__version__ = "0.1.0"
