"""Models that see an image and read a text, behind one interface for all libraries."""
