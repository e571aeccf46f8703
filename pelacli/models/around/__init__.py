"""Models built around a backbone that is there already: segmenters and detectors."""
