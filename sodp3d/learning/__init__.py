"""Training: pre-training, fine-tuning, distillation and their losses."""
