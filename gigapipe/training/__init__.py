"""Training on whole canvases, divided over ranks: starting ranks, loading images, the training loop, prediction."""
