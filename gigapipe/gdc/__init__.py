"""The Genomic Data Commons: from the name of a cohort to a sample sheet with checksums."""
