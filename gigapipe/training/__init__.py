"""Training on whole canvases, decomposed over ranks: start-up, loading, the loop, prediction."""
