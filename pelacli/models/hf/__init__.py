"""What pela knows about transformers."""
