"""Results that travel: a folder that holds a trained model with all it needs, and the Hugging Face hub."""
