"""What a batch looks like under a model. Filled in with the gradient engine."""


class Probe:
    """Logits, losses, features and gradients of a batch, computed on demand."""
