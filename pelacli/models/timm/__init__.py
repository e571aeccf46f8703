"""What pela knows about timm."""
