"""What several tasks share: samples and batches of one kind of data, and figures."""
