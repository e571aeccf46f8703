"""What several tasks share: samples of pairs, boxes and masks, augmentation, metrics."""
