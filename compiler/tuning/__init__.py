"""Fine-tuning: labelled texts, four methods, a source model with a report."""
