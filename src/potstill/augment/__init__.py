"""What changes training rows before a model sees them; the same for every model that learns together."""
