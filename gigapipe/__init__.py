"""gigapipe: from raw pathology slides to trained whole-slide models, with no patching."""

__version__ = "0.1.0"
