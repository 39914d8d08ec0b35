"""Pure tensor functions with gradients in closed form; nothing here knows about models."""
