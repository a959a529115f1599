"""Published checkpoints to gesso models and back. One file per family of models."""
