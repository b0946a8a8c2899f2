"""The Genomic Data Commons: from a cohort's name to a sample sheet with checksums."""

API = "https://api.gdc.cancer.gov"
STRATEGIES = ["Diagnostic Slide", "Tissue Slide"]  # as the archive calls paraffin sections, and frozen ones
LABELS = ["project", "sample_type", "primary_diagnosis"]
