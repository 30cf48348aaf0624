"""Training: precision, distribution, the step, optimizers, checkpoints, logs, validation and the loop around them."""
