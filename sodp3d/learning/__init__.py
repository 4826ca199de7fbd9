"""Training: pre-training, fine-tuning and their losses."""
