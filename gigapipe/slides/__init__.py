"""Slides: reading them at their true resolution, detecting tissue, and generating phantoms."""
