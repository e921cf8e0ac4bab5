"""The base model and LoRA adapters, shared by training and generation."""
