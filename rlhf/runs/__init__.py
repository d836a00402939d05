"""Files of a run: configuration, metrics, checkpoints, model card, upload to the Hub."""
