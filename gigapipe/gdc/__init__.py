"""The Genomic Data Commons: from a cohort's name to a sample sheet with checksums."""
