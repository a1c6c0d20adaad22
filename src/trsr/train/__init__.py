"""Fine-tunes a language model with LoRA to answer yes or no, and saves a model folder."""
