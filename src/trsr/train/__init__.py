"""Fine-tune a language model with LoRA to answer yes or no, and save a model folder."""
