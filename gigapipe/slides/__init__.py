"""Slides: reading any of them at its true resolution, finding the tissue, and generating phantoms."""
