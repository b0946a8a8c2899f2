"""gigapipe: from raw pathology slides to trained whole-slide models, with no patching."""

__version__ = "0.2.0"
"""The release. pyproject.toml, CITATION.cff and what is written into results take it from here."""
