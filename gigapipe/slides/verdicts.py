"""What is said of the tissue that was looked for on a slide."""

FINE, DOUBTFUL, NONE = "fine", "doubtful", "none"
NO_TISSUE = "no tissue was found"
